"""A model for use, not for training: from a checkpoint of a run directory, or from a pretrained checkpoint."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from sft_jax.data.rendering import ConversationRenderer
from sft_jax.models.config import Execution
from sft_jax.models.decoder import Decoder
from sft_jax.training.base import load_base_tokenizer, open_base, open_run

Tree = Any


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model ready to be applied.

    Attributes:
        name: what was asked for, with the step that was found.
        model: the decoder.
        variables: what its `apply` takes.
        renderer: chat template and tokenizer.
    """

    name: str
    model: Decoder
    variables: Tree
    renderer: ConversationRenderer


def load_for_inference(source: str, mesh: Mesh, product_dtype: str = "bfloat16", weights: str = "trained") -> Loaded:
    """Loads a model to generate with or to measure.

    Args:
        source: a run directory, with `:best`, `:latest` (the default) or `:<step>`; or any source of a pretrained
            checkpoint.
        mesh: where its arrays go.
        product_dtype: dtype of the inputs of matrix products.
        weights: `trained`, or `ema` for the average that the run kept.

    Raises:
        ValueError: there is no such checkpoint, or no such average; names those there are.
    """
    # One layer after the other is read faster token by token on CPU; scanned layers compile faster elsewhere.
    layout = "unrolled" if jax.default_backend() == "cpu" else "scan"
    execution = Execution(product_dtype=product_dtype, layer_layout=layout)
    renderer = ConversationRenderer(load_base_tokenizer(source))
    run = open_run(source)
    if run is not None:
        model = Decoder(run.base.decoder, execution, run.adapter)
        name = run.name if weights == "trained" else f"{run.name} ({weights})"
        return Loaded(name, model, run.variables(layout, mesh, weights), renderer)
    if weights != "trained":
        raise ValueError(f"--weights={weights} is for runs, and {source} is a pretrained checkpoint")
    base = open_base(source)
    variables = {"params": base.params(layout, "float32", mesh)}
    return Loaded(source, Decoder(base.decoder, execution), variables, renderer)
