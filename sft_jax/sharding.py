"""Where arrays live: the device mesh, the table from parameter path to PartitionSpec, and the placing of batches."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.data.batches import PER_SLOT
from sft_jax.models.context import dealt_order
from sft_jax.models.partitioning import BATCH_AXES, MESH_AXES, spec_of

Tree = Any


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """The mesh `replica, fsdp, expert, context, tensor`; an axis of size -1 takes the devices that are left.

    Args:
        sizes: of each axis, as `config.mesh` has them; 1 where it is not given.
        devices: `jax.devices()`, some of them, or those of a topology that is not here.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or TPU slices are not equally large.
    """
    sizes = {axis: sizes.get(axis, 1) for axis in MESH_AXES}
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
    are no places for `tensor=2` on 4 x 4 chips. Of several TPU slices the first axes, those that exchange the least, go
    from slice to slice (`over_slices`). GPUs are in the order of their hosts, so that the last axes lie within one.

    Args:
        sizes: of the mesh's axes; those that exchange the most come last.
        devices: as JAX gives them (`Any`, as in `mesh_utils`: what they say of their places is all that counts).

    Raises:
        ValueError: TPU slices of which the devices are not equally many of each.
    """
    if devices[0].platform == "gpu":
        place = lambda device: (getattr(device, "slice_index", 0), device.process_index, device.id)
        return np.asarray(sorted(devices, key=place), dtype=object).reshape(sizes)
    if devices[0].platform != "tpu":
        return np.asarray(devices, dtype=object).reshape(sizes)
    slices = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if len(set(slices.values())) > 1:
        each = ", ".join(f"{count} of slice {index}" for index, count in sorted(slices.items()))
        raise ValueError(f"the run has {each}; give as many devices of each TPU slice")
    outer = over_slices(sizes, len(slices))
    inner = [size // parts for size, parts in zip(sizes, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def over_slices(sizes: Sequence[int], slices: int) -> list[int]:
    """Into how many parts each axis of the mesh is cut by the network between TPU slices.

    The first axes take as much of it as they can. Worked example: 4 slices and axes of 2, 8 and 4 give 2, 2 and 1: the
    first axis goes from slice to slice, the second within pairs of slices and within each slice.

    Args:
        sizes: of the mesh's axes; their product is a multiple of `slices`.
        slices: how many.
    """
    parts = []
    for size in sizes:
        parts.append(math.gcd(size, slices))
        slices //= parts[-1]
    return parts


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
    """Sequences of the batch over the axes that split it, what each consists of over `context`."""
    return NamedSharding(mesh, P(BATCH_AXES, "context"))


def data_shards(mesh: Mesh) -> int:
    """Into how many parts the sequences of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def shards_asked(sizes: Mapping[str, int], devices: int) -> int:
    """`data_shards` of the mesh that `make_mesh` makes of so many devices; of a mesh that it refuses, about that."""
    known = math.prod(size for size in sizes.values() if size > 0)
    left = max(1, devices // known)
    return math.prod(size if size > 0 else left for size in (sizes.get(axis, 1) for axis in BATCH_AXES))


def sequences_here(mesh: Mesh, sequences: int) -> list[int]:
    """Which of the `sequences` of a batch the devices of this process hold, ascending.

    Processes that differ only along an axis that does not split the batch (`tensor`) hold the same ones, and so do
    those that hold other tokens of them (`context`). Where devices are arranged by how they are wired, the sequences of
    a process need not follow one another.
    """
    held = NamedSharding(mesh, P(BATCH_AXES)).addressable_devices_indices_map((sequences,)).values()
    return sorted({sequence for (index,) in held for sequence in range(*index.indices(sequences))})


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch, dealt out (`dealt_batch`), of which `batch` has the sequences that this process holds whole
    (`sequences_here`)."""
    sharding, shards = batch_sharding(mesh), data_shards(mesh)
    held = sequences_here(mesh, shards)  # with one sequence a shard, the numbers of the shards

    def put(own: np.ndarray) -> jax.Array:
        size = len(own) // len(held)
        sequences = size * shards

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            place = held.index(index[0].indices(sequences)[0] // size)
            return own[place * size : (place + 1) * size, index[1]]

        return jax.make_array_from_callback((sequences, *own.shape[1:]), sharding, shard)

    return {name: put(array) for name, array in dealt_batch(batch, mesh.shape["context"]).items()}


def dealt_batch(batch: Mapping[str, np.ndarray], parts: int) -> dict[str, np.ndarray]:
    """The batch with the tokens of each sequence in the order in which they are dealt out to the axis `context`.

    So are slots for targets where each token has one. Where there are fewer they stay in order, and are filled up with
    slots of weight 0 to as many for each device, but never to as many as tokens: that says that slot i is token i's.

    Args:
        batch: as `assemble` makes it.
        parts: devices of the axis; 1 leaves the batch as it is.

    Raises:
        ValueError: sequences of this length cannot be dealt out to so many.
    """
    if parts == 1:
        return dict(batch)
    length, slots = batch["tokens"].shape[1], batch["targets"].shape[1]
    order = dealt_order(length, parts)
    place = np.argsort(order).astype(np.int32)  # of each token among those that are dealt out
    made = {name: array if name in PER_SLOT else array[:, order] for name, array in batch.items()}
    made["target_slots"] = place[batch["target_slots"]]
    if slots == length:
        return made | {name: made[name][:, order] for name in PER_SLOT if name in made}
    filled = -(-slots // parts) * parts
    filled += parts if filled == length else 0
    more = lambda array: [(0, 0), (0, filled - slots), *[(0, 0)] * (array.ndim - 2)]
    return made | {name: np.pad(made[name], more(made[name])) for name in PER_SLOT if name in made}
