"""What is known of devices: found by what JAX calls them; axes of a torus are rings where the makers say so."""

import subprocess
import sys

import pytest

from sft_jax.hardware import HARDWARE, hardware_named, hardware_of, peak_flops

TOO_LARGE = """
import re, sys
from sft_jax.planning import topologies
topologies.prepare()
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
devices = topologies.devices_of(topologies.parse(sys.argv[1]))
x = jax.ShapeDtypeStruct((300_000, 300_000), jnp.bfloat16, sharding=SingleDeviceSharding(devices[0]))
try:
    jax.jit(lambda x: x @ x).lower(x).compile()
except jax.errors.JaxRuntimeError as error:
    print(devices[0].device_kind, len(devices), re.search(r"available HBM .([0-9.]+)G", str(error))[1], sep="|")
"""


def test_devices_are_found_by_what_jax_calls_them():
    assert hardware_of("TPU v5 lite") is hardware_named("v5e")
    assert hardware_of("TPU v5") is hardware_named("v5p")
    assert hardware_of("NVIDIA H100 80GB HBM3") is hardware_named("h100")
    assert hardware_of("cpu") is None
    kinds = [kind for hardware in HARDWARE for kind in hardware.device_kinds]
    assert len(kinds) == len(set(kinds))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no hardware is called 'v9'; known are v4, v5e, v5p, v6e, tpu7x, a100-40gb"):
        hardware_named("v9")


def test_peak_of_several_devices():
    assert peak_flops("TPU v4", 4) == 4 * 275e12
    assert peak_flops("TPU7x", 8) == 4 * 2307e12  # JAX counts two devices a chip
    assert peak_flops("cpu", 8) is None


@pytest.mark.parametrize(
    ("name", "shape", "wraps"),
    [
        ("v5e", (4, 4), (False, False)),
        ("v5e", (8, 16), (False, True)),
        ("v6e", (16, 16), (True, True)),
        ("v5p", (2, 2, 4), (False, False, False)),  # no cube of 4 x 4 x 4
        ("v5p", (4, 4, 4), (True, True, True)),
        ("v4", (4, 8, 16), (True, True, True)),
        ("tpu7x", (2, 2, 1), (False, False, False)),
    ],
)
def test_which_axes_of_a_slice_are_rings(name, shape, wraps):
    assert hardware_named(name).links.wraps(shape) == wraps


def test_arithmetic_per_byte_is_that_of_such_devices():
    """Peak over memory bandwidth lies in 150 … 700 FLOPs a byte for all: a slipped power of ten would not."""
    for hardware in HARDWARE:
        assert 150 < hardware.peak_flops / hardware.memory_bandwidth < 700, hardware.name
        assert 2**33 < hardware.memory_bytes < 2**38, hardware.name
        assert 1e9 < hardware.network_bandwidth < 1e11, hardware.name


@pytest.mark.compilers("tpu")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "devices"),
    [("v4:2x2x1", 4), ("v5e:2x2", 4), ("v5p:2x2x1", 4), ("v6e:2x2", 4), ("tpu7x:2x2x1", 8)],
)
def test_the_compiler_says_the_same_of_memory_and_names(topology, devices):
    """Of a product far too large for a chip: how much it has. In a process that has libtpu from its start."""
    done = subprocess.run([sys.executable, "-c", TOO_LARGE, topology], capture_output=True, text=True)
    kind, count, limit = done.stdout.strip().split("|")
    hardware = hardware_of(kind)
    assert hardware is hardware_named(topology.partition(":")[0])
    assert int(count) == devices == 4 * hardware.devices_per_chip
    assert hardware.memory_bytes == pytest.approx(float(limit) * 2**30, abs=2**30 / 200)
