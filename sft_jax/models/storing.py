"""From parameters to the tensors of a Hugging Face checkpoint: the way of `loading`, back."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import get_family
from sft_jax.models.families.tables import TensorRule
from sft_jax.models.loading import place_of
from sft_jax.sources.safetensors_writer import PendingTensor


def pending_tensors(params: dict, hf_config: dict, config: DecoderConfig, dtype: str) -> dict[str, PendingTensor]:
    """The tensors of a checkpoint of this family, by their names, in the order of its table.

    Nothing is fetched or cast before a tensor's turn comes: beside the parameters, the host holds one tensor.

    Args:
        params: parameters in either layout, on their devices.
        hf_config: names the family.
        config: the decoder they are parameters of.
        dtype: dtype of the tensors.

    Raises:
        ValueError: a parameter that the family's table does not name, or the other way round.
    """
    flat = flatten_dict(params, sep="/")
    layout = "scan" if any(path.startswith("layers/") for path in flat) else "unrolled"
    by_source: dict[str, list[TensorRule]] = {}
    used = set()
    for rule in get_family(hf_config).tensor_table(config):
        if rule.path is None:
            continue
        path, _ = place_of(rule, layout, config.num_layers)
        if path not in flat:
            raise ValueError(f"there is no parameter {path} to make {rule.source} of")
        used.add(path)
        by_source.setdefault(rule.source, []).append(rule)
    unknown = sorted(flat.keys() - used)
    if unknown:
        raise ValueError(f"this model family has no tensor for {', '.join(unknown)}")
    stored = np.dtype(jax.numpy.dtype(dtype))
    make = functools.partial(_make, flat, layout, config.num_layers, stored)
    return {
        source: PendingTensor(rules[0].shape, stored, functools.partial(make, rules))
        for source, rules in by_source.items()
    }


def _make(
    flat: Mapping[str, jax.Array], layout: str, num_layers: int, dtype: np.dtype, rules: list[TensorRule]
) -> np.ndarray:
    tensor = np.empty(rules[0].shape, dtype)
    for rule in rules:
        path, place = place_of(rule, layout, num_layers)
        rule.write(np.asarray(flat[path][tuple(number for number, _ in place)].astype(dtype)), tensor)
    return tensor
