"""Where arrays live: the device mesh, the table from parameter path to PartitionSpec, and the placing of batches."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.models.partitioning import BATCH_AXES, MESH_AXES, PARAM_AXES, fit_spec

Tree = Any

_STORED = r"(/(values|codes|block))?$"  # a kernel, or what stands for it in few bits

# First match wins; matched at the end of the path, so that moments and adapters follow their parameters.
# Specs are for one layer; stacked layers get a leading None.
PARTITION_RULES: tuple[tuple[str, P], ...] = (
    # The vocabulary over fsdp, the model dimension over tensor: a lookup gathers tokens, without moving dimensions.
    (r"embedding$", P(PARAM_AXES, "tensor")),
    (r"head$", P(PARAM_AXES, "tensor")),
    (r"block_(scale|mean)$", P()),
    (r"experts/(gate|up)/kernel" + _STORED, P("expert", "fsdp", "tensor")),
    (r"experts/down/kernel" + _STORED, P("expert", "tensor", "fsdp")),
    (r"experts/(gate|up|down)/(constant_)?a$", P("expert", "fsdp", None)),
    (r"experts/(gate|up|down)/(constant_)?b$", P("expert", None, "fsdp")),
    (r"router/kernel" + _STORED, P(PARAM_AXES, None)),
    (r"(query|key|value|gate|up)/kernel" + _STORED, P(PARAM_AXES, "tensor")),
    (r"(out|down)/kernel" + _STORED, P("tensor", PARAM_AXES)),
    (r"(query|key|value|gate|up)/bias$", P("tensor")),
    (r"/(constant_)?a$", P(PARAM_AXES, None)),
    (r"/(constant_)?b$", P(None, PARAM_AXES)),
    (r"(scale|bias|dropout|magnitude)$", P()),
    (r"^effect/", P()),
    (r"/(count|v|v_row|v_col)$", P()),  # of Adafactor, which keeps whole second moments of small arrays only
)
_STACKED = re.compile(r"(^|/)layers/")


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """The mesh `replica, fsdp, expert, tensor`; an axis of size -1 takes the devices that are left.

    Args:
        sizes: of each axis, as `config.mesh` has them.
        devices: `jax.devices()`, some of them, or those of a topology that is not here.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or these are more than one TPU slice.
    """
    sizes = {axis: sizes[axis] for axis in MESH_AXES}
    asked = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"--config.mesh: {asked}: sizes are at least 1, and one of them may be -1 (the rest)")
    if open_axes:
        sizes[open_axes[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(f"--config.mesh: {asked} does not make {len(devices)} devices")
    return Mesh(arranged(tuple(sizes.values()), devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def arranged(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of the mesh's shape, by how they are wired.

    As `jax.make_mesh` does it, but an axis of the mesh may also be a part of an axis of the torus: without that there
    are no places for `tensor=2` on 4 x 4 chips.

    Args:
        sizes: of the mesh's axes; those that exchange the most come last.
        devices: as JAX gives them (`Any`, as in `mesh_utils`: what they say of their places is all that counts).

    Raises:
        ValueError: they are more than one TPU slice.
    """
    if devices[0].platform == "tpu" and len({device.slice_index for device in devices}) > 1:
        raise ValueError("the devices are several TPU slices; a run takes the devices of one")
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def inference_mesh(devices: Sequence[Any], tensor: int = 1) -> Mesh:
    """The mesh of generation and export.

    Args:
        devices: prompts, and parameters that are not prepared for inference, are split over them along `fsdp`.
        tensor: how many of them hold parts of the same weights.

    Raises:
        ValueError: this does not divide the number of devices.
    """
    if len(devices) % tensor:
        raise ValueError(f"--tensor={tensor} does not divide {len(devices)} devices")
    return make_mesh({"replica": 1, "fsdp": -1, "expert": 1, "tensor": tensor}, devices)


def platform_of(mesh: Mesh) -> str:
    """`cpu`, `gpu` or `tpu`."""
    return mesh.devices.flat[0].platform


def spec_of(path: str, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> P:
    """The PartitionSpec of the array at `path`; axes that do not divide their dimension are dropped.

    Raises:
        ValueError: no rule of the table matches a path that is not a scalar's.
    """
    if not shape:
        return P()
    for pattern, spec in PARTITION_RULES:
        if re.search(pattern, path):
            stacked = P(None, *spec) if _STACKED.search(path) else spec
            return fit_spec(stacked, shape, dict(axis_sizes))
    raise ValueError(f"no rule in PARTITION_RULES matches the parameter {path!r} of shape {shape}")


def placement(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Where a loaded parameter lives: as PARTITION_RULES says."""
    return lambda path, shape: NamedSharding(mesh, spec_of(path, shape, dict(mesh.shape)))


def shardings_of(tree: Tree, mesh: Mesh) -> Tree:
    """NamedShardings for a tree of arrays or shapes, by path."""
    sizes = dict(mesh.shape)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_string(path), leaf.shape, sizes)), tree
    )


def abstract_like(shapes: Tree, shardings: Tree) -> Tree:
    """Shapes and dtypes with the shardings to restore or to compile them with."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def path_string(path: tuple) -> str:
    """`params/layers/ffn/up/kernel` from a key path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sequences of the batch over the axes that split it; all other dimensions whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def data_shards(mesh: Mesh) -> int:
    """Into how many parts the sequences of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def shards_asked(sizes: Mapping[str, int], devices: int) -> int:
    """`data_shards` of the mesh that `make_mesh` makes of so many devices; of a mesh that it refuses, about that."""
    known = math.prod(size for size in sizes.values() if size > 0)
    left = max(1, devices // known)
    return math.prod(size if size > 0 else left for size in (sizes[axis] for axis in BATCH_AXES))


def sequences_here(mesh: Mesh, sequences: int) -> list[int]:
    """Which of the `sequences` of a batch the devices of this process hold, ascending.

    Processes that differ only along an axis that does not split the batch (`tensor`) hold the same ones. Where devices
    are arranged by how they are wired, the sequences of a process need not follow one another.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((sequences,)).values()
    return sorted({sequence for (index,) in held for sequence in range(*index.indices(sequences))})


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch, of which `batch` has the sequences that this process holds (`sequences_here`)."""
    sharding, shards = batch_sharding(mesh), data_shards(mesh)
    held = sequences_here(mesh, shards)  # with one sequence a shard, the numbers of the shards

    def put(own: np.ndarray) -> jax.Array:
        size = len(own) // len(held)
        sequences = size * shards

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            place = held.index(index[0].indices(sequences)[0] // size)
            return own[place * size : (place + 1) * size]

        return jax.make_array_from_callback((sequences, *own.shape[1:]), sharding, shard)

    return {name: put(array) for name, array in batch.items()}
