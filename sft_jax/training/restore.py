"""A model for use, not for training: from a checkpoint of a run directory, or from a pretrained checkpoint."""

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from jax.sharding import Mesh

from sft_jax.data.rendering import ConversationRenderer
from sft_jax.models.config import AdapterSpec, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.layouts import to_layout
from sft_jax.models.loading import decoder_config, load_params
from sft_jax.sources import load_tokenizer, open_checkpoint
from sft_jax.training.checkpoints import DIRECTORY, Checkpoints
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.setup import make_renderer, placement
from sft_jax.training.sharding import abstract_like, shardings_of
from sft_jax.training.state import init_adapters, variables
from sft_jax.training.workdir import CONFIG, TEMPLATE, check_inputs

Tree = Any
_RUN = re.compile(r"(?P<directory>.+?)(?::(?P<which>\d+|latest|best))?")


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


def run_config(directory: epath.Path) -> ml_collections.ConfigDict | None:
    """The config of a run directory; None where `directory` is not one."""
    path = directory / CONFIG
    if not (directory / DIRECTORY).exists() or not path.exists():
        return None
    fields = json.loads(path.read_text())
    return ml_collections.ConfigDict(fields, convert_dict=True)


def load_for_inference(source: str, mesh: Mesh, product_dtype: str = "bfloat16") -> Loaded:
    """Loads a model to generate with or to measure.

    Args:
        source: a run directory, with `:best`, `:latest` (the default) or `:<step>`; or any source of a pretrained
            checkpoint.
        mesh: where its arrays go.
        product_dtype: dtype of the inputs of matrix products.

    Raises:
        ValueError: there is no such checkpoint; names those there are.
    """
    # One layer after the other is read faster token by token on CPU; scanned layers compile faster elsewhere.
    layout = "unrolled" if jax.default_backend() == "cpu" else "scan"
    execution = Execution(product_dtype=product_dtype, layer_layout=layout)
    match = _RUN.fullmatch(source)
    directory = epath.Path(match["directory"])
    config = run_config(directory)
    if config is not None:
        return _load_run(directory, match["which"] or "latest", config, execution, mesh)
    checkpoint = open_checkpoint(source)
    model = Decoder(decoder_config(checkpoint), execution)
    params = load_params(checkpoint, model.config, layout, "float32", placement(mesh))
    return Loaded(source, model, {"params": params}, ConversationRenderer(load_tokenizer(source)))


def _load_run(
    directory: epath.Path, which: str, config: ml_collections.ConfigDict, execution: Execution, mesh: Mesh
) -> Loaded:
    checkpoints = Checkpoints(directory, keep_last=1_000_000, read_only=True)
    try:
        step = _step(directory, which, checkpoints)
        base = open_checkpoint(config.model.source, config.model.revision or None)
        check_inputs(directory, {"model": base.fingerprint})
        decoder = decoder_config(base)
        layout = execution.layer_layout
        adapted = config.adapter.method != "none"
        model = Decoder(decoder, execution, AdapterSpec(config.adapter.method) if adapted else None)
        saved_layout = checkpoints.position(step).layout
        shapes = _param_shapes(model, config.precision.params)
        if adapted:
            stacked = jax.eval_shape(lambda params: to_layout(params, "scan"), shapes)
            make = lambda: {"adapters": init_adapters(stacked, config.adapter, config.seed, saved_layout)}
        else:
            make = lambda: {"params": to_layout(shapes_as_arrays(shapes), saved_layout)}
        abstract = jax.eval_shape(make)
        trained = checkpoints.restore_trained(step, abstract_like(abstract, shardings_of(abstract, mesh)))
    finally:
        checkpoints.close()
    trained = {name: to_layout(tree, layout) for name, tree in trained.items()}
    frozen = {}
    if adapted:
        params = load_params(base, decoder, layout, config.precision.frozen, placement(mesh))
        frozen = {"params": params}
    weights = variables(trained, frozen, hyperparameters(config, 0, 1))
    return Loaded(f"{directory}:{step}", model, weights, make_renderer(config, directory / TEMPLATE))


def _param_shapes(model: Decoder, dtype: str) -> Tree:
    """Shapes of the parameters, without making them."""
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), jax.eval_shape(init))


def shapes_as_arrays(shapes: Tree) -> Tree:
    """Zeros of those shapes; for use under `jax.eval_shape`, where nothing is allocated."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _step(directory: epath.Path, which: str, checkpoints: Checkpoints) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise ValueError(f"{directory} holds no finished checkpoint yet")
    found = {"latest": checkpoints.latest, "best": checkpoints.best}.get(which, lambda: int(which))()
    if found is None:
        raise ValueError(f"{directory}: no checkpoint has the metric that 'best' is chosen by; there are {steps}")
    if found not in steps:
        raise ValueError(f"{directory} has no checkpoint of step {found}; there are {steps}")
    return found
