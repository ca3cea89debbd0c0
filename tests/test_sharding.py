"""The mesh on devices that are wired as a torus, as TPUs are; what a device holds of a step."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sft_jax import sharding
from sft_jax.data.batches import assemble
from sft_jax.models import decoder, decoder_layer
from sft_jax.options import options_of
from sft_jax.preparation import run_data
from sft_jax.runs.base import open_base
from sft_jax.sharding import arranged
from sft_jax.training import optimizer, programs, setup, step
from tests import tiny
from tests.chips import Client, Gpu, shuffled, torus


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_axes_of_the_mesh_may_split_those_of_the_torus(tensor):
    chips = torus(4, 4)
    devices = arranged((1, 16 // tensor, 1, tensor), chips)
    assert devices.shape == (1, 16 // tensor, 1, tensor)
    assert set(devices.flat) == set(chips)
    for group in devices.reshape(-1, tensor):  # neighbours: a line or a rectangle of chips
        places = np.array([chip.coords for chip in group])
        assert np.prod(np.ptp(places, axis=0) + 1) == tensor


def of(group: np.ndarray, what: str) -> set:
    return {getattr(device, what) for device in group.flat}


V5E, V5P, V6E = "TPU v5 lite", "TPU v5p", "TPU v6 lite"
MACHINES = {
    "v6e:4x4, tensor 2": (torus(4, 4, kind=V6E), {"fsdp": 8, "tensor": 2}),
    "v6e:4x4, tensor 4": (torus(4, 4, kind=V6E), {"fsdp": 4, "tensor": 4}),
    "v5e:4x4, context 2, tensor 2": (torus(4, 4, kind=V5E), {"fsdp": 4, "context": 2, "tensor": 2}),
    "v5p:4x4x4, tensor 2": (torus(4, 4, 4, kind=V5P), {"fsdp": 32, "tensor": 2}),
    "v5p:4x4x4, replica 8": (torus(4, 4, 4, kind=V5P), {"replica": 8, "fsdp": 8}),
    "v5p:2x2x4, expert 8": (torus(2, 2, 4, kind=V5P), {"fsdp": 2, "expert": 8}),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_exchanges_most_lies_closest(machine):
    """Along the last axis, what lies together is a line or a block of chips."""
    chips, axes = MACHINES[machine]
    mesh = sharding.make_mesh(axes, shuffled(chips))
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == axes
    assert set(mesh.devices.flat) == set(chips)
    last = list(axes)[-1]
    for group in mesh.devices.reshape(-1, axes[last]):
        places = np.array([chip.coords for chip in group])
        assert np.prod(np.ptp(places, axis=0) + 1) == axes[last]


def along(mesh, axis: str) -> np.ndarray:
    """The devices, [others, along the axis]."""
    index = mesh.axis_names.index(axis)
    return np.moveaxis(mesh.devices, index, -1).reshape(-1, mesh.shape[axis])


SLICES = {  # of 4 x 4 chips: the mesh, and how many slices each axis goes over
    "replica over 2": (2, {"replica": 2, "fsdp": 16}, {"replica": 2, "fsdp": 1}),
    "fsdp over 2": (2, {"fsdp": 32}, {"fsdp": 2}),
    "fsdp over 2, tensor within": (2, {"fsdp": 16, "tensor": 2}, {"fsdp": 2, "tensor": 1}),
    "more replicas than slices": (2, {"replica": 4, "fsdp": 8}, {"replica": 2, "fsdp": 1}),
    "replicas of two slices each": (4, {"replica": 2, "fsdp": 32}, {"replica": 2, "fsdp": 2}),
    "context over 2": (2, {"context": 32}, {"context": 2}),
}


@pytest.mark.parametrize("case", SLICES)
def test_the_first_axes_go_over_slices(case):
    """Between slices is the slow network: as few axes go over it as can, the first ones."""
    slices, axes, over = SLICES[case]
    chips = torus(4, 4, kind=V5E, slices=slices)
    mesh = sharding.make_mesh(axes, shuffled(chips))
    assert set(mesh.devices.flat) == set(chips)
    for axis, number in over.items():
        assert {len(of(group, "slice_index")) for group in along(mesh, axis)} == {number}, axis


@pytest.mark.parametrize(
    ("sizes", "slices", "parts"),
    [
        ((2, 8, 4), 4, [2, 2, 1]),
        ((4, 8), 4, [4, 1]),
        ((3, 8), 4, [1, 4]),
        ((1, 1, 6), 3, [1, 1, 3]),
        ((6, 4), 12, [6, 2]),
    ],
)
def test_the_network_between_slices_is_shared_out(sizes, slices, parts):
    assert sharding.over_slices(sizes, slices) == parts
    assert math.prod(parts) == slices


def rows_of_hosts(axes: dict[str, int], chips: list, rows: int) -> dict[int, list[int]]:
    """Which sequences of a batch each host holds, by what it says of its own chips."""
    held = {}
    for host in of(np.array(chips), "process_index"):
        seen = [dataclasses.replace(chip, client=Client(host)) for chip in chips]
        held[host] = sharding.sequences_here(sharding.make_mesh(axes, seen), rows)
    return held


@pytest.mark.parametrize("case", SLICES)
def test_hosts_of_several_slices_hold_what_their_chips_do(case):
    slices, axes, _ = SLICES[case]
    chips = shuffled(torus(4, 4, kind=V5E, slices=slices))
    mesh = sharding.make_mesh(axes, chips)
    rows = 2 * sharding.data_shards(mesh)
    expected = {host: set() for host in of(mesh.devices, "process_index")}
    for shard, group in enumerate(mesh.devices.reshape(rows // 2, -1)):  # chips that hold the same two sequences
        for host in of(group, "process_index"):
            expected[host] |= {2 * shard, 2 * shard + 1}
    assert rows_of_hosts(axes, chips, rows) == {host: sorted(held) for host, held in expected.items()}


def test_a_replica_over_slices_has_its_half_of_the_batch():
    held = rows_of_hosts({"replica": 2, "fsdp": 16}, torus(4, 4, kind=V5E, slices=2), 64)
    halves = ({row for host in hosts for row in held[host]} for hosts in (range(4), range(4, 8)))
    assert [*halves] == [{*range(32)}, {*range(32, 64)}]


def test_parts_of_slices_are_refused():
    chips = torus(4, 4, kind=V5E, slices=2)[:24]
    with pytest.raises(ValueError, match=r"16 of slice 0, 8 of slice 1; give as many devices of each TPU slice"):
        sharding.make_mesh({"fsdp": -1}, chips)


def test_gpus_of_a_host_lie_together():
    gpus = [Gpu(i, i // 8) for i in range(32)]
    mesh = sharding.make_mesh({"replica": 2, "fsdp": 2, "tensor": 8}, shuffled(gpus))
    assert {len(of(group, "process_index")) for group in along(mesh, "tensor")} == {1}
    assert {len(of(group, "process_index")) for group in along(mesh, "replica")} == {2}


SEQUENCES, TOKENS = 8, 136  # 17 divides no dimension of the model
MESH = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "execution.layer_layout": "scan"}


def compiled_step(root, arg: str) -> str:
    """What XLA makes of the train step for one device."""
    config = tiny.config(root, arg, **MESH, **{"batch.sequences": SEQUENCES, "data.sequence_length": TOKENS})
    data, base = run_data.load_data(options_of(config)), open_base(config.model.source)
    mesh = sharding.make_mesh(config.mesh.to_dict(), jax.devices())
    model = setup.make_model(options_of(config), base.decoder, mesh)
    with jax.set_mesh(mesh):
        state = setup.init_state(
            options_of(config), base, model, mesh, optimizer.hyperparameters(options_of(config), 2, 6)
        )
        batch = assemble(
            data.examples, data.plan.batch_bins(0), sequence_length=TOKENS, sequence_targets=data.plan.sequence_targets
        )
        train_step = step.compile_train_step(model, setup.step_settings(options_of(config), mesh), state, mesh)
        return train_step.lower(state, sharding.put_batch(batch, mesh)).compile().as_text()


def of_whole_batch(program: str) -> set[str]:
    """Shapes of the arrays that hold a vector for each token of the whole batch."""
    shapes = set(re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", program))
    sizes = {shape: [int(size) for size in shape.split(",")] for shape in shapes}
    whole = lambda dims: SEQUENCES * TOKENS in [math.prod(dims[:end]) for end in range(1, min(len(dims), 4))]
    return {shape for shape, dims in sizes.items() if whole(dims)}


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["full", "lora"])
def test_no_device_holds_the_whole_batch(arg, tmp_path):
    """Where XLA cannot go from one layout to another it makes an array whole on each device and cuts it anew."""
    program = compiled_step(tmp_path, arg)
    assert re.search(rf"\[{SEQUENCES // 4},{TOKENS},", program)
    assert of_whole_batch(program) == set()


@pytest.mark.slow
def test_what_holds_the_whole_batch_is_seen(tmp_path, monkeypatch):
    whole = lambda x, *axes: jax.lax.with_sharding_constraint(x, P())
    for module in (decoder, decoder_layer):
        monkeypatch.setattr(module, "constrain", whole)
    programs.forget()  # another test's, and afterwards this one, which is not what the model says
    try:
        assert of_whole_batch(compiled_step(tmp_path, "full"))
    finally:
        programs.forget()
