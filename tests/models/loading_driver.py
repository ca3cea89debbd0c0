"""One of several processes that load checkpoints together, for `tests.children`."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sft_jax.models.loading import decoder_config, load_params, on_one
from sft_jax.sharding import make_mesh, placement
from sft_jax.sources import PretrainedCheckpoint, TensorEntry, open_checkpoint

MESHES = ({"fsdp": 8}, {"fsdp": 2, "expert": 2, "tensor": 2}, {"replica": 2, "fsdp": 4})


def counted(checkpoint: PretrainedCheckpoint, counts: list[int]) -> PretrainedCheckpoint:
    """The same, noting the bytes of what is read."""

    def entry(plain: TensorEntry) -> TensorEntry:
        def read(start: int, stop: int) -> np.ndarray:
            found = plain.read(start, stop)
            counts.append(found.nbytes)
            return found

        return dataclasses.replace(plain, read=read)

    return dataclasses.replace(checkpoint, tensors={name: entry(found) for name, found in checkpoint.tensors.items()})


def load(directory: Path) -> tuple[int, bool]:
    """The most bytes read over any of the meshes, and whether all numbers are as they should be."""
    checkpoint, most, equal = open_checkpoint(directory), 0, True
    config = decoder_config(checkpoint)
    plain = load_params(checkpoint, config, "scan", "float32", on_one(jax.local_devices()[0]))
    plain = {path: np.asarray(array) for path, array in flatten_dict(plain, sep="/").items()}
    for sizes in MESHES:
        counts: list[int] = []
        mesh = make_mesh(sizes, jax.devices())
        params = load_params(counted(checkpoint, counts), config, "scan", "float32", placement(mesh))
        for path, array in flatten_dict(params, sep="/").items():
            equal &= all(np.array_equal(piece.data, plain[path][piece.index]) for piece in array.addressable_shards)
        most = max(most, sum(counts))
    return most, equal


def load_all(spec: dict) -> dict[str, dict]:
    """By checkpoint how many bytes of tensors this process read, and whether its devices hold what they should."""
    jax.config.update("jax_num_cpu_devices", spec["devices"])
    jax.distributed.initialize(spec["coordinator"], spec["processes"], spec["process"])
    found = {name: load(Path(spec["root"]) / name) for name in spec["names"]}
    jax.distributed.shutdown()
    return {"bytes": {n: most for n, (most, _) in found.items()}, "equal": {n: e for n, (_, e) in found.items()}}
