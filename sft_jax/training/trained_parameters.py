"""Checks that what the options say of parameters fits the model."""

import re
from collections.abc import Sequence

from flax.traverse_util import flatten_dict

from sft_jax.models import adapters
from sft_jax.models.config import DecoderConfig
from sft_jax.models.layouts import SCAN, UNROLLED, resolved
from sft_jax.models.variables import canonical_path
from sft_jax.options import AdapterOptions, WeightOptions
from sft_jax.runs.freezing import weight_shapes
from sft_jax.training.groups import check_groups, parse_groups
from sft_jax.training.update_rules import RULES

_ADAPTED_LAYERS = f"{adapters.COLLECTION}/layers/"


def check_trained(options: WeightOptions, decoder: DecoderConfig) -> None:
    """Checks that what the options say of parameters fits this model.

    Raises:
        ValueError: more layers than there are, a pattern that names nothing, nothing that the optimizer is made for, or
            dropout that nothing draws; names the flag.
    """
    trained, last = options.trained, options.trained.last_layers
    if last > decoder.num_layers:
        raise ValueError(f"--config.trained.last_layers={last}: the model has {decoder.num_layers} layers")
    shapes = weight_shapes(options, decoder, UNROLLED if last else resolved(SCAN, decoder))
    paths, frozen = (list(flatten_dict(tree, sep="/")) for tree in shapes)
    names = sorted({canonical_path(path) for path in (*paths, *frozen)})
    for pattern in trained.weights:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"--config.trained.weights: {pattern!r} matches no weight; there are: {', '.join(names)}")
    if not paths:
        raise ValueError(
            f"--config.trained.weights={trained.weights!r} and --config.trained.last_layers={last} leave "
            "nothing to train; leave one of them out"
        )
    _check_dropout(options.adapter, names)
    check_groups(parse_groups(options.optimizer.groups), paths)
    if not any(RULES[options.optimizer.name].needs(path) for path in paths):
        raise ValueError(
            f"--config.optimizer.name={options.optimizer.name}: it is made for kernels of layers, and none is trained; "
            "give --config.optimizer.name=adamw"
        )


def _check_dropout(adapter: AdapterOptions, names: Sequence[str]) -> None:
    """Embedding and head draw none, whichever pattern or adapter to begin with says that they are adapted."""
    if adapter.method == "none" or not adapter.dropout or any(name.startswith(_ADAPTED_LAYERS) for name in names):
        return
    origin = f"the adapter in --config.adapter.initial={adapter.initial} has" if adapter.initial else "they are"
    raise ValueError(
        f"--config.adapter.dropout={adapter.dropout}: dropout is drawn in the projections of the layers, and none is "
        f"among --config.adapter.targets; {origin} {adapter.targets}. Leave it at 0"
    )
