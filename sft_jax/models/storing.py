"""The tensors of a Hugging Face checkpoint, by name, made from our parameters: the reverse of `loading`."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import tensors_of
from sft_jax.models.families.tables import TensorRule
from sft_jax.models.loading import place_of
from sft_jax.models.variables import is_buffer
from sft_jax.sources import stacked_experts
from sft_jax.sources.safetensors_writer import PendingTensor
from sft_jax.sources.wrappers import Wrapper

# (index along leading axes that tensors divide, of experts) -> the parameter there, on its devices
WeightMaker = Callable[[tuple[int, ...]], jax.Array]


def pending_tensors(
    weights: Mapping[str, WeightMaker], hf_config: dict, config: DecoderConfig, dtype: str
) -> dict[str, PendingTensor]:
    """The tensors of a checkpoint of this family, by their names, in the order of its table.

    A tensor is computed, fetched and cast only when it is written: the host holds one tensor at a time.

    Args:
        weights: path in the unrolled layout (`layers_3/ffn/up/kernel`) -> makes that parameter.
        hf_config: names the family.
        config: the decoder they are parameters of.
        dtype: dtype of the tensors; buffers are float32.

    Raises:
        ValueError: a parameter that the family's table does not name, or the other way round.
    """
    by_source: dict[str, list[TensorRule]] = {}
    for rule in stored_rules(weights, hf_config, config):
        by_source.setdefault(rule.source, []).append(rule)
    stored = np.dtype(jnp.dtype(dtype))
    tensors = {}
    for source, rules in by_source.items():
        kind = np.dtype(np.float32) if is_buffer(rules[0].path) else stored
        tensors[source] = PendingTensor(rules[0].shape, kind, functools.partial(_make, weights, kind, config, rules))
    return tensors


def put_back(
    tensors: Mapping[str, PendingTensor], wrapper: Wrapper, hf_config: dict, config: DecoderConfig
) -> dict[str, PendingTensor]:
    """The tensors of a whole multimodal checkpoint: those of its text model are these, all others its own, bit for bit.

    Names and their order are the wrapper's. A tied head that it stores beside the embedding is stored again.

    Args:
        tensors: of `pending_tensors`.
        wrapper: around the text model.
        hf_config: of the text model.
        config: its decoder.
    """
    copies = {rule.source: rule.equal_to for rule in tensors_of(hf_config, config) if rule.path is None}
    made = {}
    for stored, entry in wrapper.tensors.items():
        name = wrapper.text_name(stored)
        trained = tensors.get(name) or tensors.get(copies.get(name)) or _stacked(name, entry.shape, tensors)
        made[stored] = trained or PendingTensor(entry.shape, entry.dtype, entry.load)
    return made


def _stacked(name: str | None, shape: tuple[int, ...], tensors: Mapping[str, PendingTensor]) -> PendingTensor | None:
    """Of experts that a wrapper has in one tensor; None for any other."""
    singles = {} if name is None else stacked_experts.places(name, shape)
    if not singles.keys() or not singles.keys() <= tensors.keys():
        return None
    dtype = tensors[next(iter(singles))].dtype

    def make() -> np.ndarray:
        whole = np.empty(shape, dtype)
        for single, (number, start, stop) in singles.items():
            whole[number, start:stop] = tensors[single].make()
        return whole

    return PendingTensor(shape, dtype, make)


def stored_rules(weights: Mapping[str, WeightMaker], hf_config: dict, config: DecoderConfig) -> list[TensorRule]:
    """The rules of the family's table that have a parameter, in its order.

    Raises:
        ValueError: see `pending_tensors`.
    """
    rules = [rule for rule in tensors_of(hf_config, config) if rule.path is not None]
    for rule in rules:
        if rule.path not in weights:
            raise ValueError(f"there is no parameter {rule.path} to make {rule.source} of")
    unknown = sorted(weights.keys() - {rule.path for rule in rules})
    if unknown:
        raise ValueError(f"this model family has no tensor for {', '.join(unknown)}")
    return rules


def make_weight(
    weights: Mapping[str, WeightMaker], rule: TensorRule, config: DecoderConfig, dtype: np.dtype
) -> np.ndarray:
    """The parameter, or the piece of it, that a rule is about, cast on its devices and brought to the host."""
    path, place = place_of(rule, "unrolled", config.num_layers)
    return np.asarray(weights[path](tuple(number for number, _ in place)).astype(dtype))


def _make(
    weights: Mapping[str, WeightMaker], dtype: np.dtype, config: DecoderConfig, rules: list[TensorRule]
) -> np.ndarray:
    tensor = np.empty(rules[0].shape, dtype)
    for rule in rules:
        rule.write(make_weight(weights, rule, config, dtype), tensor)
    return tensor
