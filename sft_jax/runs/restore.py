"""A model for use, not for training: from a checkpoint of a run directory, or from a pretrained checkpoint."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized.cache_key import code_digest
from sft_jax.generation.prepared import dtypes_for_inference
from sft_jax.models.attention.choice import choose_backend
from sft_jax.models.config import DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.runs.base import FinishedRun, load_base_tokenizer, open_base, open_run, with_positions
from sft_jax.runs.checkpoints import DIRECTORY
from sft_jax.runs.digests import FILE
from sft_jax.sharding import platform_of

Tree = Any
_FLAG = "--max_positions"
_PACKAGE, _ROOMS = Path(__file__).parents[1], ("models", "generation", "objectives")  # whose code answers follow from


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to be applied.

    Attributes:
        name: what was asked for, with the step that was found.
        model: the decoder.
        variables: what its `apply` takes.
        renderer: chat template and tokenizer.
        fingerprint: changes with the weights, and with all else that answers follow from.
    """

    name: str
    model: Decoder
    variables: Tree
    renderer: ConversationRenderer
    fingerprint: str


def load_for_inference(
    source: str,
    mesh: Mesh,
    matmul_dtype: str = "bfloat16",
    weights: str = "trained",
    max_positions: int = 0,
    mix: float = 1.0,
    *,
    scores: bool = False,
) -> Loaded:
    """Loads a model to generate with or to measure.

    Args:
        source: a run directory, with `:best`, `:latest` (the default) or `:<step>`; or any source of a pretrained
            checkpoint.
        mesh: where its arrays go.
        matmul_dtype: dtype of the inputs of matrix products.
        weights: `trained`, or `ema` for the average that the run kept.
        max_positions: limit of prompt and answer together; 0 for what the checkpoint says.
        mix: of a run: 1 for its result, 0 for its base, or what lies between them (`mix.py`).
        scores: it is to be a reward model; others are to predict tokens.

    Raises:
        ValueError: there is no such checkpoint, or no such average (names those there are); or positions that the model
            cannot have; or a mix that is not between 0 and 1, or not of a run; or it is a model of the other kind.
    """
    # One layer after the other is read faster token by token on CPU; scanned layers compile faster elsewhere.
    layout = "unrolled" if platform_of(mesh) == "cpu" else "scan"
    renderer = ConversationRenderer(load_base_tokenizer(source))

    def executed(decoder: DecoderConfig) -> Execution:
        attention = choose_backend("auto", platform_of(mesh), decoder, matmul_dtype)
        return Execution(matmul_dtype=matmul_dtype, layer_layout=layout, attention_backend=attention)

    run = open_run(source, mix)
    base = open_base(source) if run is None else run.base
    _check_kind(source, base.decoder, scores)
    if run is not None:
        decoder = with_positions(run.base, max_positions, _FLAG).decoder
        model = Decoder(decoder, executed(decoder), run.adapter)
        name = run.name if weights == "trained" else f"{run.name} ({weights})"
        fingerprint = _fingerprint(run.fingerprint() + digest_of(run), weights, mix, model, renderer)
        variables = run.variables(model.layout, mesh, weights, dtypes_for_inference(model))
        return Loaded(name, model, variables, renderer, fingerprint)
    if weights != "trained":
        raise ValueError(f"--weights={weights} is for runs, and {source} is a pretrained checkpoint")
    if mix != 1:
        raise ValueError(f"--mix={mix} is for runs, and {source} is a pretrained checkpoint")
    base = with_positions(base, max_positions, _FLAG)
    model = Decoder(base.decoder, executed(base.decoder))
    variables = {"params": base.params(model.layout, dtypes_for_inference(model), mesh)}
    return Loaded(source, model, variables, renderer, _fingerprint(base.fingerprint, weights, mix, model, renderer))


def _check_kind(source: str, decoder: DecoderConfig, scores: bool) -> None:
    """Refuses a reward model where tokens are to be predicted, and the reverse.

    Raises:
        ValueError: it is of the other kind.
    """
    if decoder.scores and not scores:
        raise ValueError(
            f"{source} is a reward model: it scores texts and writes none; python -m sft_jax.score scores pairs by it"
        )
    if scores and not decoder.scores:
        raise ValueError(f"{source} is no reward model; --config=configs/reward_model.py trains one")


def digest_of(run: FinishedRun) -> str:
    """Of the checkpoint itself: trained anew by other code, a run of the same config has other weights.

    Empty for a checkpoint without digests, of which the reader is warned.
    """
    path = run.directory / DIRECTORY / str(run.step) / FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _fingerprint(of_weights: str, weights: str, mix: float, model: Decoder, renderer: ConversationRenderer) -> str:
    code = [code_digest(without=(), root=_PACKAGE / room) for room in _ROOMS]
    made_of = [of_weights, weights, mix, repr(model), repr(renderer.chat_template), list(renderer.stop_ids), code]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
