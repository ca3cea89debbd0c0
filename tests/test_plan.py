"""The command that plans, from outside: for emulated devices, and for TPUs and GPUs where their compilers are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
GIB = 2**30
# The width of Llama 3.1 8B with two layers, as its own config has them.
WIDE = (
    "--config=configs/sft.py:full",
    "--config.model.source=random:meta-llama/Llama-3.1-8B?num_hidden_layers=2",
    "--config.data.sequence_length=4096",
    "--config.precision.activations=bfloat16",
    "--config.duration=100 steps",
    "--price_per_chip_hour=2",
    "--quick",
    "--json=-",
)


def plan(*arguments):
    """The command as a user starts it: without the flags of XLA that tests have."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "-m", "sft_jax.plan", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tiny_flags(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    tiny.config(root)
    return (
        "--config",
        "configs/sft.py:full",
        f"--config.model.source={root / 'model'}",
        "--config.data.sequence_length=64",
        "--config.batch.sequences=4",
    )


@pytest.mark.slow
def test_emulated_devices(tiny_flags, tmp_path):
    done = plan(*tiny_flags, "--topology=cpu:4", f"--json={tmp_path / 'plans' / 'tiny.json'}")
    assert done.returncode == 0, done.stderr
    assert "mesh                fsdp=4" in done.stdout
    numbers = json.loads((tmp_path / "plans" / "tiny.json").read_text())
    assert numbers["config"] == " ".join(tiny_flags[1:])
    assert numbers["topology"] == {"name": "cpu:4", "slices": 1, "devices": 4, "device_kind": "cpu"}
    assert {each["kind"] for each in numbers["collectives"]} >= {"all-gather"}


def test_flags_that_do_not_go_together(tiny_flags):
    done = plan(*tiny_flags, "--topology=cpu:4", "--search", "--compare=configs/sft.py:lora")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --search and --compare: give one of them")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--topology=v5e:4x4", "--search", "--quick", "--price_per_chip_hour=2"), "a plan without --search"),
        (("--topology=cpu:4", "--price_per_chip_hour=2"), "--topology of a TPU or GPU, whose times are known"),
    ],
)
def test_flags_that_nothing_would_read(tiny_flags, given, message):
    done = plan(*tiny_flags, *given)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --price_per_chip_hour")
    assert f"not read here, it goes with {message}; leave it out" in done.stderr


@pytest.mark.slow
def test_a_mesh_that_the_devices_do_not_make(tiny_flags):
    done = plan(*tiny_flags, "--topology=cpu:4", "--config.mesh.tensor=3", "--config.mesh.fsdp=1")
    assert done.returncode == 1
    assert "--config.mesh: " in done.stderr
    assert "does not make 4 devices" in done.stderr


def of_wide(*arguments):
    done = plan(*WIDE, *arguments)
    assert done.returncode in (0, 3), done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.compilers("tpu")
def test_two_wide_layers_on_tpus():
    """1.49 billion weights with two moments each on 16 chips; kernels are gathered in loops over layers."""
    code, numbers = of_wide("--topology=v5e:4x4", "--config.batch.sequences=16")
    assert code == 0
    memory = numbers["memory"]
    assert memory["limit"] == int(15.75 * GIB)
    assert memory["arguments"] == pytest.approx(numbers["parameters"]["model"] * 12 / 16, rel=0.01)
    assert memory["arguments"] < memory["peak"] < 8 * GIB
    assert numbers["topology"]["device_kind"] == "TPU v5 lite"
    layers = [each for each in numbers["collectives"] if each["scope"].startswith("layers") and each["bytes"] > 2**20]
    assert layers
    assert all(each["in_loop"] and each["axes"] == ["fsdp"] and each["count"] % 2 == 0 for each in layers)
    assert numbers["estimate"]["seconds"] > 0
    # The model's FLOPs count whole scores, the computed ones the triangle of them: recomputation may weigh less.
    estimate, flops = numbers["estimate"], numbers["flops"]
    assert 0 < estimate["mfu"] < 1
    assert 0 < estimate["hfu"] < 1
    assert estimate["hfu"] / estimate["mfu"] == pytest.approx(flops["computed"] / flops["model"])
    run = numbers["run"]
    assert run["steps"] == 100
    assert run["cost"] == pytest.approx(run["chip_hours"] * 2)
    assert run["chip_hours"] == pytest.approx(16 * run["hours"])
    assert run["hours"] == pytest.approx(100 * numbers["estimate"]["seconds"] / 3600)


@pytest.mark.compilers("gpu")
def test_two_wide_layers_on_gpus():
    code, numbers = of_wide("--topology=h100:8", "--config.batch.sequences=8")
    assert code == 0
    assert numbers["memory"]["arguments"] == pytest.approx(numbers["parameters"]["model"] * 12 / 8, rel=0.01)
    assert numbers["memory"]["peak"] < 12 * GIB
    assert {each["kind"] for each in numbers["collectives"]} >= {"all-gather", "reduce-scatter"}
    assert all(each["axes"] == ["fsdp"] for each in numbers["collectives"])


@pytest.mark.compilers("tpu")
def test_what_does_not_fit_has_its_own_status():
    """Its arguments alone are more than a chip has."""
    code, numbers = of_wide("--topology=v5e:1x1", "--config.batch.sequences=1", "--noadvice")
    assert code == 3
    assert not numbers["memory"]["fits"]
    assert numbers["memory"]["arguments"] > numbers["memory"]["limit"]
    assert numbers["memory"]["over"] == numbers["memory"]["peak"] - numbers["memory"]["limit"]
