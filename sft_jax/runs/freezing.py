"""What is trained and what is frozen: one predicate over paths."""

import re
from collections.abc import Callable
from typing import Any

import jax

from sft_jax.models import adapters
from sft_jax.models.config import DecoderConfig
from sft_jax.models.initial import parameter_shapes
from sft_jax.models.layouts import is_stacked, numbers_of, to_layout
from sft_jax.models.loading import cast
from sft_jax.models.quantization import quantized_tree
from sft_jax.models.variables import canonical_path, is_buffer, is_score, split
from sft_jax.options import AdapterOptions, TrainedOptions, WeightOptions
from sft_jax.runs.adapting import adapter_hyperparameters, has_adapters, init_beside

Tree = Any


def trained_predicate(adapter: AdapterOptions, trained: TrainedOptions, num_layers: int) -> Callable[[str], bool]:
    """True for the paths (`params/layers_3/ffn/up/kernel`) of what is trained.

    Adapters are, but for their constants. Of the weights: none beside adapters; otherwise those that match one of
    `trained.weights`, all where it is empty, and of those only what lies in the last `trained.last_layers` layers,
    where that is not 0. Buffers never are; the head of a decoder that scores always is.
    """
    patterns, last, adapted = trained.weights, trained.last_layers, has_adapters(adapter)

    def is_trained(path: str) -> bool:
        if is_score(path):
            return True
        if adapted:
            return adapters.is_trained(path)
        if is_buffer(path):
            return False
        if last and not _is_of_last(path, last, num_layers):
            return False
        return not patterns or any(re.fullmatch(pattern, canonical_path(path)) for pattern in patterns)

    return is_trained


def _is_of_last(path: str, last: int, num_layers: int) -> bool:
    """Whether a weight is of one of the last layers, which are not stacked."""
    layers = None if is_stacked(path) else numbers_of(path, 1)
    return layers is not None and layers[0] >= num_layers - last


def trains_all_weights(adapter: AdapterOptions, trained: TrainedOptions) -> bool:
    """True for full fine-tuning: no weight is frozen but buffers, which checkpoints of the run hold."""
    return not (has_adapters(adapter) or trained.weights or trained.last_layers)


def base_dtype(options: WeightOptions) -> str:
    """The dtype in which the base's weights are read: where some of them are trained, that of the trained ones."""
    return options.precision.frozen if has_adapters(options.adapter) else options.precision.params


def weight_shapes(options: WeightOptions, decoder: DecoderConfig, layout: str) -> tuple[Tree, Tree]:
    """(trained, frozen): shapes and dtypes of {"params": …, "adapters": …} as the state of a run holds them.

    Args:
        options: of the run.
        decoder: of the base, with the embeddings of its new tokens.
        layout: layer layout of the result.

    Raises:
        ValueError: adapters have no place in this model, or its kernels none in so few bits; says what to give.
    """

    def make(params: Tree) -> Tree:
        stored = cast(params, base_dtype(options))
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
        frozen = jax.eval_shape(lambda tree: cast(tree, options.precision.frozen), frozen)
    return trained, frozen


def saved_shapes(options: WeightOptions, decoder: DecoderConfig, layout: str) -> tuple[Tree, Tree]:
    """What `weight_shapes` says of what a checkpoint holds: what is trained, and what of the rest it keeps."""
    trained, frozen = weight_shapes(options, decoder, layout)
    return trained, kept_of_frozen(trained, frozen)


def kept_of_frozen(trained: Tree, frozen: Tree) -> Tree:
    """What of the frozen part checkpoints hold: the constants of adapters; without adapters the model's buffers."""
    if adapters.COLLECTION in trained:
        return {name: tree for name, tree in frozen.items() if name == adapters.COLLECTION}
    return split(frozen, is_buffer)[0]
