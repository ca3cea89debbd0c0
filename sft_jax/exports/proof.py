"""Checks an export: reads back what was written, as others would load it, and compares it with its source."""

import dataclasses
import json
import reprlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Float32

from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.rendering.special_tokens import tokens_in_contents
from sft_jax.exports.directory import ExportError, files_in
from sft_jax.exports.golden import Golden
from sft_jax.exports.hf_files import CONFIG, GENERATION_CONFIG
from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import tensors_of
from sft_jax.models.storing import WeightMaker, make_weight, stored_rules
from sft_jax.sources.checkpoint import open_checkpoint
from sft_jax.sources.huggingface import read_json
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase
from sft_jax.sources.wrappers import Wrapper

_SMALLEST = 1e-6  # standard deviation that a drift is measured in: scores of a head of zeros have none


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far what was exported predicts something else than what was trained, along the golden text.

    Attributes:
        logits: largest difference of a logit.
        relative: the same in standard deviations of the logits.
        same_choice: share of positions where the likeliest next token is the same.
    """

    logits: float
    relative: float
    same_choice: float


def drift(before: Float32[np.ndarray, "tokens V"], after: Float32[np.ndarray, "tokens V"]) -> Drift:
    """Compares the logits of two models."""
    largest = float(np.abs(before - after).max())
    same = float((before.argmax(-1) == after.argmax(-1)).mean())
    return Drift(largest, largest / max(float(before.std()), _SMALLEST), same)


def check_drift(measured: Drift, largest: float, what: str, dtype: str) -> None:
    """Refuses a drift beyond the tolerance.

    Args:
        measured: along the golden text.
        largest: tolerance, in standard deviations of the logits.
        what: what was done to the weights, for the message.
        dtype: in which they are stored.

    Raises:
        ExportError: it is beyond.
    """
    if not measured.relative <= largest:
        wider = "" if dtype == "float32" else "export in --dtype=float32, or "
        raise ExportError(
            f"{what} moves the logits of the golden conversation by up to {measured.logits:.3g}, which is "
            f"{measured.relative:.3g} of their standard deviation (tolerance {largest:g}); the likeliest next token is "
            f"the same at {measured.same_choice:.0%} of positions. Nothing was written. To go on {wider}"
            "accept more with --max_drift."
        )


def check_weights(
    directory: epath.Path,
    weights: Mapping[str, WeightMaker],
    hf_config: dict,
    decoder: DecoderConfig,
    progress: Callable[[int], None],
) -> None:
    """Reads a Hugging Face directory back, and compares each parameter with what it was made of, bit for bit.

    Raises:
        ExportError: a file that cannot be read, or one whose content differs.
    """
    checkpoint = open_checkpoint(directory)
    rules = stored_rules(weights, hf_config, decoder)
    copies = {rule.source for rule in tensors_of(hf_config, decoder) if rule.path is None}
    unknown = (checkpoint.tensors.keys() - copies) ^ {rule.source for rule in rules}
    if unknown:
        raise ExportError(f"{directory}: the tensors {sorted(unknown)[:5]} are only on one side of the comparison")
    for rule in rules:
        entry = checkpoint.tensors[rule.source]
        found, expected = rule.read(entry.load()), make_weight(weights, rule, decoder, entry.dtype)
        if not np.array_equal(found, expected, equal_nan=True):
            raise ExportError(f"{directory}: {rule.source} reads back as other numbers than were written")
        check_finite(rule.source, expected)
        progress(expected.nbytes)


def check_rest(directory: epath.Path, wrapper: Wrapper, progress: Callable[[int], None]) -> None:
    """Reads a multimodal checkpoint back: the names are the source's, what is not of its text model has the same bits.

    Args:
        directory: what was written.
        wrapper: of the source.
        progress: told the bytes of each tensor after it is compared.

    Raises:
        ExportError: it is another.
    """
    found = open_checkpoint(directory).wrapper.tensors
    if differing := sorted(found.keys() ^ wrapper.tensors.keys()):
        raise ExportError(f"{directory}: the tensors {differing[:5]} are in it or in its source alone")
    for name, entry in wrapper.tensors.items():
        if wrapper.kind.what_is_skipped(name):
            before, after = entry.load(), found[name].load()
            same = (before.dtype, before.shape) == (after.dtype, after.shape)
            if not same or not np.array_equal(before.ravel().view(np.uint8), after.ravel().view(np.uint8)):
                raise ExportError(f"{directory}: {name} is not what it is in the source")
            progress(before.nbytes)


def check_finite(name: str, stored: np.ndarray) -> None:
    """Refuses a tensor with NaN or infinity: from training, or of a number too large for the dtype it is stored in.

    Raises:
        ExportError: some are not finite.
    """
    if not np.isfinite(stored.astype(np.float32)).all():
        wider = "" if stored.dtype == np.float32 else ", or export this one in --dtype=float32"
        raise ExportError(
            f"{name} has numbers that are not finite as {stored.dtype}; export another checkpoint of the run{wider}"
        )


def check_files(
    directory: epath.Path,
    golden: Golden,
    trained_with: PreTrainedTokenizerBase,
    configs: Sequence[str] = (CONFIG, GENERATION_CONFIG),
) -> None:
    """Loads tokenizer and configs back as others do: same chat templates, same ids of the golden text, answers end.

    Args:
        directory: what was written.
        golden: the golden conversation.
        trained_with: the tokenizer of the model.
        configs: files that say what ends an answer.

    Raises:
        ExportError: chat templates, ids or stop ids differ.
    """
    import transformers  # slow to import

    with tempfile.TemporaryDirectory() as local:  # transformers reads no buckets
        for name, file in files_in(directory).items():
            if not name.endswith(".safetensors"):
                Path(local, name).parent.mkdir(exist_ok=True)
                Path(local, name).write_bytes(file.read_bytes())
        tokenizer = transformers.AutoTokenizer.from_pretrained(local, local_files_only=True, trust_remote_code=False)
    if golden.messages:
        rendered = ConversationRenderer(tokenizer).render(golden.messages)
        text, ids = rendered.text, rendered.tokens.tolist()
    else:
        text, ids = golden.text, tokenizer(golden.text)["input_ids"]
    if text != golden.text or ids != golden.ids.tolist():
        raise ExportError(
            f"{directory}: AutoTokenizer makes another text or other ids of the golden conversation: {text!r}, {ids}; "
            f"trained with were {golden.text!r}, {golden.ids.tolist()}"
        )
    if tokenizer.chat_template != trained_with.chat_template:
        raise ExportError(
            f"{directory}: AutoTokenizer reads other chat templates than the model was trained with: "
            f"{reprlib.repr(tokenizer.chat_template)} and not {reprlib.repr(trained_with.chat_template)}"
        )
    in_contents, expected = tokens_in_contents(tokenizer), tokens_in_contents(trained_with)
    if in_contents != expected:
        raise ExportError(f"{directory}: reads back with special tokens {in_contents} in contents, not {expected}")
    for name in configs:
        found = read_json(directory / name).get("eos_token_id")
        stops = {found} if isinstance(found, int) else set(found or ())
        if not stops >= set(golden.stop_ids):
            raise ExportError(f"{directory / name}: eos_token_id={json.dumps(found)} lacks ids of {golden.stop_ids}")
