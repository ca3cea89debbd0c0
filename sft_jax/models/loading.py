"""From a pretrained checkpoint to a decoder and its parameters."""

import functools
import os
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Sharding

from sft_jax.models.config import DecoderConfig, Execution, LayerLayout
from sft_jax.models.decoder import Decoder
from sft_jax.models.families import get_family
from sft_jax.models.families.tables import TensorRule
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
        source: a Hugging Face directory, a `.gguf` file, a hub name, or a short name (`smollm2-135m-instruct`).
        dtype: dtype of the parameters.
        execution: how the decoder will be run; by default unsharded float32, scanned layers.
        revision: branch, tag or commit of a hub name.

    Returns:
        The Linen module and a nested dict of parameters: `model.apply({"params": params}, tokens)` gives logits
        [batch, sequence, vocab].

    Raises:
        ValueError: the checkpoint is of a family or has a feature, a tensor or a shape that is not implemented; all
            such tensors are named at once.
    """
    checkpoint = open_checkpoint(source, revision)
    execution = execution or Execution()
    model = Decoder(decoder_config(checkpoint), execution)
    return model, load_params(checkpoint, model.config, execution.layer_layout, dtype)


def decoder_config(checkpoint: PretrainedCheckpoint) -> DecoderConfig:
    """The decoder a checkpoint holds.

    Raises:
        ValueError: its config asks for what is not implemented, or holds what no model has; names the field.
    """
    try:
        return get_family(checkpoint.config).decoder_config(checkpoint.config)
    except ValueError as error:
        raise ValueError(f"{checkpoint.location}: {error}") from error


def load_params(
    checkpoint: PretrainedCheckpoint,
    config: DecoderConfig,
    layout: LayerLayout,
    dtype: str = "float32",
    sharding: ShardingOf | None = None,
) -> dict:
    """The parameters of a checkpoint as a nested dict in `layout`.

    Tensors are read one after the other and go to their devices at once, into their place in the stack where layers are
    scanned: beside the result, the host holds one tensor at a time.

    Args:
        checkpoint: what was opened.
        config: its decoder.
        layout: layer layout of the result.
        dtype: dtype of the result.
        sharding: where the array of a path and shape lives; by default on the first device.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape; all are named.
    """
    rules = get_family(checkpoint.config).tensor_table(config)
    _check_table(checkpoint, rules)
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    sharding = sharding or (lambda path, shape: one_device)
    arrays: dict[str, jax.Array] = {}
    for rule in rules:
        if rule.path is None:
            _check_ignored(checkpoint, rule)
            continue
        array = rule.transform(checkpoint.tensors[rule.source].load()).astype(jnp.dtype(dtype))
        layer = _LAYER.match(rule.path)
        if layer is None or layout == "unrolled":
            arrays[rule.path] = _put(array, sharding(rule.path, array.shape))
            continue
        path, shape = f"layers/{layer['rest']}", (config.num_layers, *array.shape)
        if path not in arrays:
            arrays[path] = _empty(shape, array.dtype, sharding(path, shape))
        stack = arrays.pop(path)
        placed = _put(array, sharding(rule.path, array.shape))
        arrays[path] = _writer(stack.sharding)(stack, placed, int(layer["number"]))
    return unflatten_dict({tuple(path.split("/")): array for path, array in arrays.items()})


def _put(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Each device takes its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _empty(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


@functools.cache
def _writer(sharding: Sharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Writes one layer into a stack, in place."""

    def write(stack, layer, number):
        return jax.lax.dynamic_update_index_in_dim(stack, layer, number, axis=0)

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
