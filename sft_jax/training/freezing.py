"""What is trained and what is frozen: one predicate over paths, made from the config."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax.traverse_util import flatten_dict

from sft_jax.models import adapters
from sft_jax.models.config import DecoderConfig, Execution, LayerLayout
from sft_jax.models.decoder import Decoder
from sft_jax.models.layouts import to_layout
from sft_jax.training.adapting import has_adapters, init_beside
from sft_jax.training.groups import check_groups, parse_groups
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.state import canonical_path, split
from sft_jax.training.update_rules import RULES

Tree = Any
_ADAPTED_LAYERS = f"{adapters.COLLECTION}/layers/"
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


def all_shapes(config: ml_collections.ConfigDict, decoder: DecoderConfig, layout: LayerLayout) -> Tree:
    """Shapes and dtypes of {"params": …, "adapters": …} with the weights in the dtype of trained ones.

    Raises:
        ValueError: adapters have no place in this model; names the flag.
    """

    def make() -> Tree:
        model = Decoder(decoder, Execution(layer_layout="scan"))
        params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        cast = jax.tree.map(lambda leaf: leaf.astype(config.precision.params), params)
        tree = {"params": to_layout(cast, layout)}
        if has_adapters(config):
            hyper = hyperparameters(config, 0, 1)
            rows = range(len(config.model.new_tokens))  # any as many: only shapes are asked for
            tree[adapters.COLLECTION] = init_beside(params, config, hyper, layout, rows)
        return tree

    return jax.eval_shape(make)


def saved_shapes(config: ml_collections.ConfigDict, decoder: DecoderConfig, layout: LayerLayout) -> tuple[Tree, Tree]:
    """What `all_shapes` says of what is trained, and of the constants of adapters."""
    trained, frozen = split(all_shapes(config, decoder, layout), trained_predicate(config, decoder.num_layers))
    return trained, {name: tree for name, tree in frozen.items() if name == adapters.COLLECTION}


def check_trained(config: ml_collections.ConfigDict, decoder: DecoderConfig) -> None:
    """Checks that what the config says of parameters fits this model.

    Raises:
        ValueError: more layers than there are, a pattern that names nothing, nothing that the optimizer is made for, or
            dropout that nothing draws; names the flag.
    """
    last = config.trained.last_layers
    if last > decoder.num_layers:
        raise ValueError(f"--config.trained.last_layers={last}: the model has {decoder.num_layers} layers")
    shapes = flatten_dict(all_shapes(config, decoder, "unrolled" if last else "scan"), sep="/")
    names = sorted({canonical_path(path) for path in shapes})
    for pattern in config.trained.weights:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"--config.trained.weights: {pattern!r} matches no weight; there are: {', '.join(names)}")
    is_trained = trained_predicate(config, decoder.num_layers)
    paths = [path for path in shapes if is_trained(path)]
    if not paths:
        raise ValueError(
            f"--config.trained.weights={config.trained.weights!r} and --config.trained.last_layers={last} leave "
            "nothing to train; leave one of them out"
        )
    _check_dropout(config, names)
    check_groups(parse_groups(config.optimizer.groups), paths)
    if not any(RULES[config.optimizer.name].needs(path) for path in paths):
        raise ValueError(
            f"--config.optimizer.name={config.optimizer.name}: it is made for kernels of layers, and none is trained; "
            "give --config.optimizer.name=adamw"
        )


def _check_dropout(config: ml_collections.ConfigDict, names: Sequence[str]) -> None:
    """Embedding and head draw none, whichever pattern or adapter to begin with says that they are adapted."""
    adapter = config.adapter
    if adapter.method == "none" or not adapter.dropout or any(name.startswith(_ADAPTED_LAYERS) for name in names):
        return
    origin = f"the adapter in --config.adapter.initial={adapter.initial} has" if adapter.initial else "they are"
    raise ValueError(
        f"--config.adapter.dropout={adapter.dropout}: dropout is drawn in the projections of the layers, and none is "
        f"among --config.adapter.targets; {origin} {tuple(adapter.targets)}. Leave it at 0"
    )
