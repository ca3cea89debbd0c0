"""Loads a pretrained checkpoint: the decoder that its config describes, and the parameters, placed on their devices."""

import functools
import os
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from sft_jax.models.config import DecoderConfig, Execution, LayerLayout
from sft_jax.models.decoder import Decoder
from sft_jax.models.families import get_family
from sft_jax.models.families.tables import ConfigReader, TensorRule
from sft_jax.models.initial import init_params
from sft_jax.models.quantization import quantize, quantized_tree
from sft_jax.sources import PretrainedCheckpoint, open_checkpoint

ShardingOf = Callable[[str, tuple[int, ...]], Sharding]
_LAYER = re.compile(r"layers_(?P<number>\d+)/(?P<rest>.+)")


def load_pretrained(
    source: str | os.PathLike,
    dtype: str = "float32",
    execution: Execution | None = None,
    revision: str | None = None,
) -> tuple[Decoder, dict]:
    """A decoder and its parameters from a pretrained checkpoint.

    Args:
        source: a Hugging Face directory, a `.gguf` file, a hub name, or a short name (`smollm2-135m-instruct`);
            `random:` before any of them takes its config alone, and `?num_hidden_layers=4&seed=1` behind it changes
            the config and seeds the weights.
        dtype: dtype of the parameters.
        execution: how the decoder will be run; by default unsharded float32, scanned layers.
        revision: branch, tag or commit of a hub name.

    Returns:
        The Linen module and a nested dict of parameters on the first device: `model.apply({"params": params}, tokens)`
        gives logits [batch, sequence, vocab].

    Raises:
        ValueError: the checkpoint is of a family or has a feature, a tensor or a shape that is not implemented; all
            such tensors are named at once.
    """
    checkpoint = open_checkpoint(source, revision)
    execution = execution or Execution()
    model = Decoder(decoder_config(checkpoint), execution)
    return model, load_params(checkpoint, model.config, execution.layer_layout, dtype, on_one(jax.devices()[0]))


def decoder_config(checkpoint: PretrainedCheckpoint) -> DecoderConfig:
    """The decoder a checkpoint holds.

    Raises:
        ValueError: its config asks for what is not implemented, or holds what no model has; names the field.
    """
    try:
        return get_family(checkpoint.config).decoder_config(checkpoint.config)
    except ValueError as error:
        raise ValueError(f"{checkpoint.location}: {error}") from error


def on_one(device: jax.Device) -> ShardingOf:
    """Every array on this device."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    return lambda path, shape: sharding


def load_params(
    checkpoint: PretrainedCheckpoint,
    config: DecoderConfig,
    layout: LayerLayout,
    dtype: str,
    sharding: ShardingOf,
    quantized: str = "none",
) -> dict:
    """The parameters of a checkpoint as a nested dict in `layout`.

    Tensors are read one after the other and go to their devices at once, into their place in the stack where layers are
    scanned: beside the result, the host holds one tensor at a time.

    Args:
        checkpoint: what was opened.
        config: its decoder.
        layout: layer layout of the result.
        dtype: dtype of the result.
        sharding: where the array of a path and shape lives.
        quantized: `int8` or `nf4` for kernels in few bits (`models/quantization.py`), quantized one by one.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape; all are named.
    """
    if checkpoint.random_seed is not None:
        deviation = ConfigReader(checkpoint.config).get("initializer_range", 0.02)
        params = init_params(config, layout, dtype, sharding, checkpoint.random_seed, deviation)
        return placed_quantized(params, quantized, sharding)
    rules = get_family(checkpoint.config).tensor_table(config)
    _check_table(checkpoint, rules)
    arrays: dict[str, jax.Array] = {}
    for rule in rules:
        if rule.path is None:
            _check_ignored(checkpoint, rule)
            continue
        read = rule.read(checkpoint.tensors[rule.source].load()).astype(jnp.dtype(dtype))
        stem, place = place_of(rule, layout, config.num_layers)
        for name, array in _stored(rule.path, read, quantized).items():
            path, shape = stem + name, (*(count for _, count in place), *array.shape)
            if not place:
                arrays[path] = _put(array, sharding(path, shape))
                continue
            whole = arrays.pop(path, None)
            if whole is None:
                whole = _empty(shape, array.dtype, sharding(path, shape))()
            placed = _put(array, _without_leading(whole.sharding, len(place)))
            arrays[path] = _writer(whole.sharding, len(place))(whole, placed, *(number for number, _ in place))
    return unflatten_dict({tuple(path.split("/")): array for path, array in arrays.items()})


def _stored(path: str, array: np.ndarray, quantized: str) -> dict[str, np.ndarray]:
    """What is kept of a tensor, by what its path is continued with: itself, or a kernel in few bits."""
    if quantized == "none" or not path.endswith("/kernel"):
        return {"": array}
    return {f"/{name}": np.asarray(leaf) for name, leaf in _quantize(array, quantized).items()}


_quantize = jax.jit(quantize, static_argnums=1)


def place_of(rule: TensorRule, layout: LayerLayout, num_layers: int) -> tuple[str, list[tuple[int, int]]]:
    """The parameter that a tensor goes to, and where in it: (number, count) along each leading axis that has pieces."""
    layer, parts = _LAYER.match(rule.path), [] if rule.part is None else [rule.part]
    if layer is None or layout == "unrolled":
        return rule.path, parts
    return f"layers/{layer['rest']}", [(int(layer["number"]), num_layers), *parts]


def _without_leading(sharding: Sharding, count: int) -> Sharding:
    """Of one piece along the first `count` axes."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[count:]))


def placed_quantized(params: dict, quantized: str, sharding: ShardingOf) -> dict:
    """Parameters with their kernels in few bits, each array where `sharding` says."""
    if quantized == "none":
        return params
    make = functools.partial(quantized_tree, kind=quantized)
    shapes = flatten_dict(jax.eval_shape(make, params), sep="/")
    out = unflatten_dict({path: sharding(path, leaf.shape) for path, leaf in shapes.items()}, sep="/")
    return jax.jit(make, out_shardings=out)(params)


def _put(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Each device takes its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.cache
def _empty(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.cache
def _writer(sharding: Sharding, leading: int) -> Callable[..., jax.Array]:
    """Writes one piece (of one layer, of one expert) into the whole, in place."""

    def write(whole, piece, *numbers):
        piece = piece.reshape((1,) * leading + piece.shape)
        return jax.lax.dynamic_update_slice(whole, piece, (*numbers, *(0,) * (whole.ndim - leading)))

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _check_table(checkpoint: PretrainedCheckpoint, rules: list[TensorRule]) -> None:
    """All that is wrong with the tensors of a checkpoint, raised together."""
    problems = []
    for rule in rules:
        entry = checkpoint.tensors.get(rule.source)
        if entry is None:
            if rule.required:
                problems.append(f"{rule.source} is missing (expected shape {rule.shape})")
        elif tuple(entry.shape) != rule.shape:
            problems.append(f"{rule.source} has shape {tuple(entry.shape)}, expected {rule.shape}")
        elif rule.path is not None and not jnp.issubdtype(entry.dtype, jnp.floating):
            problems.append(f"{rule.source} holds {entry.dtype}, expected floating-point numbers")
    known = {rule.source for rule in rules}
    problems = list(dict.fromkeys(problems))  # a stored tensor may be several parameters
    problems += [f"{name} is not used by this model family" for name in checkpoint.tensors if name not in known]
    if problems:
        listed = "\n  ".join(problems[:20]) + (f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"{checkpoint.location} does not match its config.json:\n  {listed}")


def _check_ignored(checkpoint: PretrainedCheckpoint, rule: TensorRule) -> None:
    if not rule.equal_to or rule.source not in checkpoint.tensors:
        return
    if not np.array_equal(checkpoint.tensors[rule.source].load(), checkpoint.tensors[rule.equal_to].load()):
        raise ValueError(
            f"{checkpoint.location}: {rule.source} differs from {rule.equal_to}, although {rule.ignored}; set "
            "tie_word_embeddings to false in config.json to load it as a head of its own"
        )
