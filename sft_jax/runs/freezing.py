"""What is trained and what is frozen: one predicate over paths."""

import re
from collections.abc import Callable
from typing import Any

import jax

from sft_jax.models import adapters
from sft_jax.models.config import DecoderConfig, LayerLayout
from sft_jax.models.initial import parameter_shapes
from sft_jax.models.layouts import to_layout
from sft_jax.models.quantization import quantized_tree
from sft_jax.models.variables import canonical_path, split
from sft_jax.options import AdapterOptions, TrainedOptions, WeightOptions
from sft_jax.runs.adapting import adapter_hyperparameters, has_adapters, init_beside

Tree = Any
_LAYER = re.compile(r"(?:^|/)layers_(\d+)/")


def trained_predicate(adapter: AdapterOptions, trained: TrainedOptions, num_layers: int) -> Callable[[str], bool]:
    """True for the paths (`params/layers_3/ffn/up/kernel`) of what is trained.

    Adapters are, but for their constants. Of the weights: none beside adapters; otherwise those that match one of
    `trained.weights`, all where it is empty, and of those only what lies in the last `trained.last_layers` layers,
    where that is not 0.
    """
    patterns, last, adapted = trained.weights, trained.last_layers, has_adapters(adapter)

    def is_trained(path: str) -> bool:
        if adapted:
            return adapters.is_trained(path)
        layer = _LAYER.search(path)
        if last and (layer is None or int(layer[1]) < num_layers - last):
            return False
        return not patterns or any(re.fullmatch(pattern, canonical_path(path)) for pattern in patterns)

    return is_trained


def trains_all_weights(adapter: AdapterOptions, trained: TrainedOptions) -> bool:
    """True for full fine-tuning: no weight is frozen."""
    return not (has_adapters(adapter) or trained.weights or trained.last_layers)


def base_dtype(options: WeightOptions) -> str:
    """The dtype in which the base's weights are read: where some of them are trained, that of the trained ones."""
    return options.precision.frozen if has_adapters(options.adapter) else options.precision.params


def weight_shapes(options: WeightOptions, decoder: DecoderConfig, layout: LayerLayout) -> tuple[Tree, Tree]:
    """(trained, frozen): shapes and dtypes of {"params": …, "adapters": …} as the state of a run holds them.

    Args:
        options: of the run.
        decoder: of the base, with the embeddings of its new tokens.
        layout: layer layout of the result.

    Raises:
        ValueError: adapters have no place in this model, or its kernels none in so few bits; says what to give.
    """

    def make(params: Tree) -> Tree:
        stored = jax.tree.map(lambda leaf: leaf.astype(base_dtype(options)), params)
        if options.precision.quantized != "none":
            stored = quantized_tree(stored, options.precision.quantized)
        tree = {"params": to_layout(stored, layout)}
        if has_adapters(options.adapter):
            hyper = adapter_hyperparameters(options.adapter)
            new = range(len(options.model.new_tokens))  # any as many: only shapes are asked for
            tree[adapters.COLLECTION] = init_beside(params, options.adapter, options.seed, hyper, layout, new)
        return tree

    trained, frozen = split(
        jax.eval_shape(make, parameter_shapes(decoder)),
        trained_predicate(options.adapter, options.trained, decoder.num_layers),
    )
    if not has_adapters(options.adapter):
        frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, options.precision.frozen), frozen)
    return trained, frozen


def saved_shapes(options: WeightOptions, decoder: DecoderConfig, layout: LayerLayout) -> tuple[Tree, Tree]:
    """What `weight_shapes` says of what a checkpoint holds: what is trained, and the constants of adapters."""
    trained, frozen = weight_shapes(options, decoder, layout)
    return trained, {name: tree for name, tree in frozen.items() if name == adapters.COLLECTION}
