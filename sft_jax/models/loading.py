"""Loads a pretrained checkpoint: the decoder that its config describes, and the parameters, placed on their devices."""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from sft_jax.agreement import agreed
from sft_jax.models.config import DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.families import decoder_of, tensors_of
from sft_jax.models.families.tables import ConfigReader, TensorRule
from sft_jax.models.initial import init_params
from sft_jax.models.layouts import place_in, resolved
from sft_jax.models.quantization import MXFP4, check_kernels, is_in_few_bits, quantize, quantized_tree
from sft_jax.models.shares import BLOCK_BYTES, Blocks, RowReader, Share, blocks_of, read_share
from sft_jax.models.variables import is_buffer, is_score
from sft_jax.sources import PretrainedCheckpoint, open_checkpoint

DtypeOf = Callable[[str, np.dtype], str]  # from the path of a parameter and the dtype that it is stored in
ShardingOf = Callable[[str, tuple[int, ...]], Sharding]


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
    return model, load_params(checkpoint, model.config, model.layout, dtype, on_one(jax.devices()[0]))


def decoder_config(checkpoint: PretrainedCheckpoint) -> DecoderConfig:
    """The decoder a checkpoint holds.

    Raises:
        ValueError: its config asks for what is not implemented, or holds what no model has; names the field.
    """
    wrapper = checkpoint.wrapper
    try:
        if wrapper is not None:
            outer = ConfigReader(wrapper.config)
            outer.skip(wrapper.kind.text_config, "tie_word_embeddings", *wrapper.kind.fields)
            outer.finish()
    except ValueError as error:
        raise ValueError(f"{checkpoint.location}: {error}") from error
    where = checkpoint.location if wrapper is None else f"{checkpoint.location}: {wrapper.kind.text_config}"
    try:
        return decoder_of(checkpoint.config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def on_one(device: jax.Device) -> ShardingOf:
    """Every array on this device."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    return lambda path, shape: sharding


def load_params(
    checkpoint: PretrainedCheckpoint,
    config: DecoderConfig,
    layout: str,
    dtype: str | DtypeOf,
    sharding: ShardingOf,
    quantized: str = "none",
) -> dict:
    """The parameters of a checkpoint as a nested dict in `layout`.

    Tensors are read one after the other and go to their devices at once, into their place in the stack where layers are
    scanned. Of several hosts each reads an equal share of each tensor, and their devices exchange what they need
    (`shares.py`): beside the result, a host holds its share of one tensor at a time, and of a large one a block of it.

    Args:
        checkpoint: what was opened.
        config: its decoder.
        layout: layer layout of the result; `scan` is that of this decoder.
        dtype: dtype of the result, or of each parameter; a tensor goes to the devices in no other.
        sharding: where the array of a path and shape lives.
        quantized: `int8`, `nf4` or `mxfp4` for kernels in few bits (`models/quantization.py`), quantized one by one;
            those in MXFP4 from what is stored, whatever `dtype` says, so that what was in MXFP4 is as it was.

    Raises:
        ValueError: tensors that are missing, unknown or of another shape; all are named.
    """
    layout = resolved(layout, config)
    if checkpoint.random_seed is not None:
        deviation = ConfigReader(checkpoint.config).get("initializer_range", 0.02)
        made_in = dtype if isinstance(dtype, str) else "float32"
        params = init_params(config, layout, made_in, sharding, checkpoint.random_seed, deviation)
        return placed_quantized(cast(params, dtype), quantized, sharding)
    rules = tensors_of(checkpoint.config, config)
    _check_table(checkpoint, rules)
    check_kernels((rule.path for rule in rules if rule.path is not None), quantized)
    if checkpoint.wrapper is not None and jax.process_index() == 0:
        _say(checkpoint.wrapper.summary())
    arrays: dict[str, jax.Array] = {}
    rows = RowReader(checkpoint.tensors)
    for rule in sorted(rules, key=lambda rule: rule.source):  # those of one tensor follow one another: it is read once
        if rule.path is None:
            _check_ignored(checkpoint, rule)
            continue
        stem, place = place_of(rule, layout, config.num_layers)
        counts = tuple(count for _, count in place)
        held_in = checkpoint.tensors[rule.source].dtype
        if quantized != MXFP4 or _is_kept(rule.path, quantized):
            held_in = jnp.dtype(_dtype_of(dtype, rule.path, held_in))
        wanted = functools.partial(_of_piece, sharding, stem, counts)
        numbers = tuple(number for number, _ in place)
        if (blocks := _blocks(rule, held_in, wanted, quantized)) is not None:
            whole = _whole(arrays, stem, (*counts, *blocks.shape), held_in, sharding)
            arrays[stem] = _in_blocks(rule, rows, blocks, wanted(blocks.shape), whole, numbers)
            continue
        share = read_share(rule, rows, held_in, wanted)
        for name, piece in _stored(rule.path, share, quantized).items():
            path, target = stem + name, _of_piece(sharding, stem + name, counts, piece.shape)
            if not place:
                arrays[path] = _placed(piece, target)
                continue
            whole = _whole(arrays, path, (*counts, *piece.shape), piece.array.dtype, sharding)
            arrays[path] = _writer(whole.sharding, target, len(place))(whole, piece, *numbers)
    return unflatten_dict({tuple(path.split("/")): array for path, array in arrays.items()})


@functools.cache
def _say(line: str) -> None:
    """Once in a process: a model may be loaded several times, and is read back after an export."""
    logging.warning("%s", line)


def cast(params: dict, dtype: str | DtypeOf) -> dict:
    """The parameters in this dtype, or each in its own; buffers in float32."""
    flat = flatten_dict(params, sep="/")
    made = {path: leaf.astype(_dtype_of(dtype, path, leaf.dtype)) for path, leaf in flat.items()}
    return unflatten_dict(made, sep="/")


def _dtype_of(dtype: str | DtypeOf, path: str, stored: np.dtype) -> str:
    if is_buffer(path) or is_score(path):
        return "float32"
    return dtype if isinstance(dtype, str) else dtype(path, stored)


def _of_piece(sharding: ShardingOf, path: str, counts: tuple[int, ...], shape: tuple[int, ...]) -> Sharding:
    """Of a piece of the parameter at `path`, which has leading axes of the sizes `counts` beside."""
    whole = sharding(path, (*counts, *shape))
    if not isinstance(whole, NamedSharding):
        return whole
    return NamedSharding(whole.mesh, PartitionSpec(*whole.spec[len(counts) :]))


def _stored(path: str, share: Share, quantized: str) -> dict[str, Share]:
    """What is kept of a tensor, by what its path is continued with: itself, or a kernel in few bits.

    Scales are of whole columns and of the whole kernel: to quantize it, every device has all of it for a while.
    """
    if _is_kept(path, quantized):
        return {"": share}
    sharding = share.array.sharding
    whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
    leaves = _quantizer(whole, quantized)(_placed(share, whole))
    return {f"/{name}": Share(leaf, leaf.shape, None) for name, leaf in leaves.items()}


def _is_kept(path: str, quantized: str) -> bool:
    """Whether a parameter is kept as it is, and not in few bits."""
    return not is_in_few_bits(path, quantized)


def _whole(
    arrays: dict[str, jax.Array], path: str, shape: tuple[int, ...], dtype: np.dtype, sharding: ShardingOf
) -> jax.Array:
    """The array that pieces are written into: taken out of `arrays`, or new."""
    found = arrays.pop(path, None)
    return _empty(shape, dtype, sharding(path, shape))() if found is None else found


def _blocks(
    rule: TensorRule, dtype: np.dtype, wanted: Callable[[tuple[int, ...]], Sharding], quantized: str
) -> Blocks | None:
    """How a tensor is read in blocks; None for one that is not large, of an expert, or not kept as it is."""
    if rule.part is not None or not _is_kept(rule.path, quantized):
        return None
    blocks = blocks_of(rule, dtype, wanted)
    return blocks if len(blocks.spans) > 1 else None


def _in_blocks(
    rule: TensorRule, rows: RowReader, blocks: Blocks, of_piece: Sharding, whole: jax.Array, numbers: tuple[int, ...]
) -> jax.Array:
    """`whole` with a tensor written into it, or into its place in a stack, a block after the other."""
    for span in blocks.spans:
        share = read_share(rule, rows, whole.dtype, lambda shape: of_piece, blocks.rows(span))
        write = _block_writer(whole.sharding, of_piece, blocks.axis, len(numbers))
        whole = write(whole, share, np.asarray([*numbers, span[0]], np.int32))
    return whole


@functools.cache
def _block_writer(sharding: Sharding, of_piece: Sharding, axis: int, leading: int) -> Callable[..., jax.Array]:
    """Writes a block into the whole, in place; each device into its own part, from the same index along `axis` on."""

    def on_device(whole, block, at):
        zeros = [0] * (whole.ndim - leading)
        zeros[axis] = at[leading]
        return jax.lax.dynamic_update_slice(whole, block, (*at[:leading], *zeros))

    def write(whole, share, at):
        block = share.placed(of_piece)
        block = block.reshape((1,) * leading + block.shape)
        if not isinstance(sharding, NamedSharding):
            return on_device(whole, block, at)
        spec = sharding.spec
        specs = {"in_specs": (spec, spec, PartitionSpec()), "out_specs": spec}
        return jax.shard_map(on_device, mesh=sharding.mesh, check_vma=False, **specs)(whole, block, at)

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


@functools.cache
def _quantizer(sharding: Sharding, kind: str) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """A program of its own, from a whole kernel to whole arrays: split, its sums would be rounded in another order."""
    return jax.jit(functools.partial(quantize, kind=kind), in_shardings=sharding, out_shardings=sharding)


def place_of(rule: TensorRule, layout: str, num_layers: int) -> tuple[str, list[tuple[int, int]]]:
    """The parameter that a tensor goes to, and where in it: (number, count) along each leading axis that has pieces."""
    path, in_stack = place_in(layout, rule.path, num_layers)
    return path, [pair for pair in (in_stack, rule.part) if pair is not None]


def placed_quantized(params: dict, quantized: str, sharding: ShardingOf) -> dict:
    """Parameters with their kernels in few bits, each array where `sharding` says."""
    if quantized == "none":
        return params
    make = functools.partial(quantized_tree, kind=quantized)
    shapes = flatten_dict(jax.eval_shape(make, params), sep="/")
    out = unflatten_dict({path: sharding(path, leaf.shape) for path, leaf in shapes.items()}, sep="/")
    return jax.jit(make, out_shardings=out)(params)


def _placed(share: Share, sharding: Sharding) -> jax.Array:
    """Where it is wanted; what lies there already stays."""
    if share.array.sharding.is_equivalent_to(sharding, share.array.ndim) and share.array.shape == share.shape:
        return share.array
    return _placer(sharding)(share)


@functools.cache
def _placer(sharding: Sharding) -> Callable[[Share], jax.Array]:
    return jax.jit(lambda share: share.placed(sharding))


@functools.cache
def _empty(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.cache
def _writer(sharding: Sharding, of_piece: Sharding, leading: int) -> Callable[..., jax.Array]:
    """Writes one piece (of one layer, of one expert) into the whole, in place."""

    def write(whole, share, *numbers):
        piece = share.placed(of_piece)
        piece = piece.reshape((1,) * leading + piece.shape)
        return jax.lax.dynamic_update_slice(whole, piece, (*numbers, *(0,) * (whole.ndim - leading)))

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _check_table(checkpoint: PretrainedCheckpoint, rules: list[TensorRule]) -> None:
    """All that is wrong with the tensors of a checkpoint, raised together."""
    problems, stored = [], checkpoint.stored_name
    for rule in rules:
        entry = checkpoint.tensors.get(rule.source)
        if entry is None:
            if rule.required:
                problems.append(f"{stored(rule.source)} is missing (expected shape {rule.shape})")
        elif tuple(entry.shape) != rule.shape:
            problems.append(f"{stored(rule.source)} has shape {tuple(entry.shape)}, expected {rule.shape}")
        elif rule.path is not None and not jnp.issubdtype(entry.dtype, jnp.floating):
            problems.append(f"{stored(rule.source)} holds {entry.dtype}, expected floating-point numbers")
    known = {rule.source for rule in rules}
    problems = list(dict.fromkeys(problems))  # a stored tensor may be several parameters
    problems += [f"{stored(name)} is not used by this model family" for name in checkpoint.tensors if name not in known]
    if problems:
        listed = "\n  ".join(problems[:20]) + (f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise ValueError(f"{checkpoint.location} does not match its config.json:\n  {listed}")


def _check_ignored(checkpoint: PretrainedCheckpoint, rule: TensorRule) -> None:
    """Compares a duplicate with what it must equal, each process some of the rows, a block of them at a time."""
    if not rule.equal_to or rule.source not in checkpoint.tensors:
        return
    ours, theirs = checkpoint.tensors[rule.equal_to], checkpoint.tensors[rule.source]
    start, stop = (
        ours.rows * number // jax.process_count() for number in (jax.process_index(), jax.process_index() + 1)
    )
    step = max(1, BLOCK_BYTES * ours.rows // (ours.size * ours.dtype.itemsize))
    spans = [(first, min(first + step, stop)) for first in range(start, stop, step)]
    with agreed():
        if not all(np.array_equal(theirs.read(*span), ours.read(*span)) for span in spans):
            raise ValueError(
                f"{checkpoint.location}: {checkpoint.stored_name(rule.source)} differs from "
                f"{checkpoint.stored_name(rule.equal_to)}, although {rule.ignored}; set tie_word_embeddings to false "
                "in config.json to load it as a head of its own"
            )
