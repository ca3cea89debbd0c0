"""Cores and devices of a machine, divided among workers."""

import os

import pytest

from sft_jax.sweeps.launchers import places as module
from sft_jax.sweeps.launchers.places import Place, default_workers, places


@pytest.fixture
def cores(monkeypatch):
    """A machine with eight cores, and without devices."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None, raising=False)
    monkeypatch.setattr(module, "_gpus_listed", lambda: 0)
    monkeypatch.setattr(module, "_tpu_chips_listed", lambda: 0)


def test_one_worker_has_everything(cores):
    assert places(1, {"CUDA_VISIBLE_DEVICES": "0,1"}) == [Place()]


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (3, [(0, 1), (2, 3, 4), (5, 6, 7)]),
        (10, [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,), (0,), (1,)]),
    ],
)
def test_cores(workers, expected, cores):
    assert [place.cores for place in places(workers, {})] == expected


@pytest.mark.parametrize(
    ("workers", "environment", "devices", "fraction"),
    [
        (2, {"CUDA_VISIBLE_DEVICES": "2,3,5,7"}, ["2,3", "5,7"], None),
        (3, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ["0", "1", "2"], None),  # equal shares; one is left over
        (4, {"CUDA_VISIBLE_DEVICES": "0,1"}, ["0", "1", "0", "1"], "0.450"),
        (3, {"CUDA_VISIBLE_DEVICES": "GPU-x"}, ["GPU-x"] * 3, "0.300"),
        (2, {"CUDA_VISIBLE_DEVICES": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, ["0", "0"], None),
        (2, {"CUDA_VISIBLE_DEVICES": ""}, [None, None], None),
        (2, {"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cpu"}, [None, None], None),
    ],
)
def test_gpus(workers, environment, devices, fraction, cores):
    found = [place.environment for place in places(workers, environment)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in found] == devices
    assert {each.get("XLA_CLIENT_MEM_FRACTION") for each in found} == {fraction}


def test_a_worker_for_each_gpu_by_default(cores, monkeypatch):
    assert default_workers({}) == 1
    assert default_workers({"CUDA_VISIBLE_DEVICES": "1,2"}) == 2
    monkeypatch.setattr(module, "_gpus_listed", lambda: 8)
    assert default_workers({}) == 8
    assert default_workers({"JAX_PLATFORMS": "cpu"}) == 1


def test_a_tpu_chip_has_one_process(cores, monkeypatch):
    monkeypatch.setattr(module, "_tpu_chips_listed", lambda: 4)
    assert [place.environment["TPU_VISIBLE_CHIPS"] for place in places(3, {})] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="--workers=5: a TPU chip has one process at a time, and there are 4"):
        places(5, {})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_place_is_taken_and_left():
    before = os.sched_getaffinity(0)
    core = min(before)
    with Place((core,)).taken():
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before
