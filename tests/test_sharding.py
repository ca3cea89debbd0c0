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
from sft_jax.models import decoder
from sft_jax.options import options_of
from sft_jax.preparation import run_data
from sft_jax.runs.base import open_base
from sft_jax.sharding import arranged
from sft_jax.training import optimizer, programs, setup, step
from tests import tiny
from tests.chips import torus


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_axes_of_the_mesh_may_split_those_of_the_torus(tensor):
    chips = torus(4, 4)
    devices = arranged((1, 16 // tensor, 1, tensor), chips)
    assert devices.shape == (1, 16 // tensor, 1, tensor)
    assert set(devices.flat) == set(chips)
    for group in devices.reshape(-1, tensor):  # neighbours: a line or a rectangle of chips
        places = np.array([chip.coords for chip in group])
        assert np.prod(np.ptp(places, axis=0) + 1) == tensor


def test_several_slices_are_refused():
    chips = [dataclasses.replace(chip, slice_index=chip.process_index // 2) for chip in torus(4, 4)]
    with pytest.raises(ValueError, match="several TPU slices"):
        arranged((1, 16, 1, 1), chips)


SEQUENCES, TOKENS = 8, 136  # 17 divides no dimension of the model
MESH = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "execution.layer_layout": "scan"}


def compiled_step(root, arg: str) -> str:
    """What XLA makes of the train step for one device."""
    config = tiny.config(root, arg, **MESH, **{"batch.sequences": SEQUENCES, "data.sequence_length": TOKENS})
    data, base = run_data.load_data(options_of(config)), open_base(config.model.source)
    mesh = sharding.make_mesh(config.mesh.to_dict(), jax.devices())
    model = setup.make_model(options_of(config), base.decoder, "cpu")
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
    monkeypatch.setattr(decoder, "constrain", whole)
    programs.forget()  # another test's, and afterwards this one, which is not what the model says
    try:
        assert of_whole_batch(compiled_step(tmp_path, "full"))
    finally:
        programs.forget()
