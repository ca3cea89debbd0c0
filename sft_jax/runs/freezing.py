"""What is trained and what is frozen: one predicate over paths, made from the config."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from sft_jax.models import adapters
from sft_jax.models.config import DecoderConfig, Execution, LayerLayout
from sft_jax.models.decoder import Decoder
from sft_jax.models.layouts import to_layout
from sft_jax.models.quantization import quantized_tree
from sft_jax.models.variables import canonical_path, split
from sft_jax.runs.adapting import adapter_hyperparameters, has_adapters, init_beside

Tree = Any
_LAYER = re.compile(r"(?:^|/)layers_(\d+)/")


def trained_predicate(config: ml_collections.ConfigDict, num_layers: int) -> Callable[[str], bool]:
    """True for the paths (`params/layers_3/ffn/up/kernel`) of what is trained.

    Adapters are, but for their constants. Of the weights: none beside adapters; otherwise those that match one of
    `trained.weights`, all where it is empty, and of those only what lies in the last `trained.last_layers` layers,
    where that is not 0.
    """
    patterns, last = tuple(config.trained.weights), config.trained.last_layers
    adapted = has_adapters(config)

    def is_trained(path: str) -> bool:
        if adapted:
            return adapters.is_trained(path)
        layer = _LAYER.search(path)
        if last and (layer is None or int(layer[1]) < num_layers - last):
            return False
        return not patterns or any(re.fullmatch(pattern, canonical_path(path)) for pattern in patterns)

    return is_trained


def trains_all_weights(config: ml_collections.ConfigDict) -> bool:
    """True for full fine-tuning: no weight is frozen."""
    return not (has_adapters(config) or config.trained.weights or config.trained.last_layers)


def base_dtype(config: ml_collections.ConfigDict) -> str:
    """The dtype in which the base's weights are read: where some of them are trained, that of the trained ones."""
    return config.precision.frozen if has_adapters(config) else config.precision.params


def weight_shapes(config: ml_collections.ConfigDict, decoder: DecoderConfig, layout: LayerLayout) -> tuple[Tree, Tree]:
    """(trained, frozen): shapes and dtypes of {"params": …, "adapters": …} as the state of a run holds them.

    Args:
        config: the experiment config.
        decoder: of the base, with the rows of its new tokens.
        layout: layer layout of the result.

    Raises:
        ValueError: adapters have no place in this model, or its kernels none in so few bits; says what to give.
    """

    def make() -> Tree:
        model = Decoder(decoder, Execution(layer_layout="scan"))
        params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        stored = jax.tree.map(lambda leaf: leaf.astype(base_dtype(config)), params)
        if config.precision.quantized != "none":
            stored = quantized_tree(stored, config.precision.quantized)
        tree = {"params": to_layout(stored, layout)}
        if has_adapters(config):
            hyper = adapter_hyperparameters(config.adapter)
            rows = range(len(config.model.new_tokens))  # any as many: only shapes are asked for
            tree[adapters.COLLECTION] = init_beside(params, config, hyper, layout, rows)
        return tree

    trained, frozen = split(jax.eval_shape(make), trained_predicate(config, decoder.num_layers))
    if not has_adapters(config):
        frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.precision.frozen), frozen)
    return trained, frozen


def saved_shapes(config: ml_collections.ConfigDict, decoder: DecoderConfig, layout: LayerLayout) -> tuple[Tree, Tree]:
    """What `weight_shapes` says of what a checkpoint holds: what is trained, and the constants of adapters."""
    trained, frozen = weight_shapes(config, decoder, layout)
    return trained, {name: tree for name, tree in frozen.items() if name == adapters.COLLECTION}
