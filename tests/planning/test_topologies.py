"""Names of hardware, and what is said where there is none of that name or its compiler is not installed."""

from pathlib import Path

import pytest

from sft_jax.hardware import HARDWARE
from sft_jax.planning import topologies
from sft_jax.planning.gpu_targets import TARGETS, target_config
from sft_jax.planning.topologies import check_compiler, devices_of, doubled, has_compiler, parse

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "slices", "kind", "shape", "platform", "title"),
    [
        ("v5e:4x4", 1, "v5e", (4, 4), "tpu", "v5e:4x4"),
        ("v5e:1x1", 1, "v5e", (1, 1), "tpu", "v5e:1x1"),
        ("v5p:8x8x16", 2, "v5p", (8, 8, 16), "tpu", "2 x v5p:8x8x16"),
        ("h100:16", 1, "h100", (16,), "gpu", "h100:16"),
        ("a100:4", 1, "a100-80gb", (4,), "gpu", "a100:4"),
        ("a100-40gb:1", 1, "a100-40gb", (1,), "gpu", "a100-40gb:1"),
        ("cpu:8", 1, "cpu", (8,), "cpu", "cpu:8"),
    ],
)
def test_names(name, slices, kind, shape, platform, title):
    topology = parse(name, slices)
    assert (topology.kind, topology.shape, topology.slices) == (kind, shape, slices)
    assert (topology.platform, topology.title) == (platform, title)


@pytest.mark.parametrize(
    ("name", "slices", "message", "mended"),
    [
        ("v5e", 1, "--topology=v5e: expected KIND:SHAPE, for example v5e:4x4, v5p:2x2x4", "v5e:4x4"),
        ("v9:4x4", 1, "no hardware is called 'v9'. There are v4, v5e, v5p, v6e, tpu7x (with a shape in ", "v5e:4x4"),
        ("v5e:16", 1, "slices of v5e have 2 dimensions of chips: v5e:4x4, for example", "v5e:4x4"),
        ("v5p:4x4", 1, "slices of v5p have 3 dimensions of chips: v5p:4x4x4, for example", "v5p:4x4x4"),
        ("v5e:3x4", 1, "hosts of v5e have 2 x 2 chips, of which a slice has whole ones; give even numbers", "v5e:4x4"),
        ("v5e:0x4", 1, "a shape of no devices; give v5e:4x4", "v5e:4x4"),
        ("h100:2x4", 1, "slices with a shape are TPUs; give a number of devices: h100:8", "h100:8"),
        ("h100:12", 1, "hosts have 8 of these; give fewer, or a multiple of that", "h100:16"),
        ("cpu:8", 2, "--topology=cpu:8: --slices=2: only TPUs have slices; leave that flag out", "cpu:8"),
    ],
)
def test_what_there_is_not_and_what_is_advised(name, slices, message, mended):
    with pytest.raises(ValueError, match=r"^--topology=") as error:
        parse(name, slices)
    assert message in str(error.value)
    assert parse(mended).name == mended


@pytest.mark.parametrize(
    ("name", "twice"),
    [
        ("v5e:2x2", "v5e:2x4"),
        ("v5e:2x4", "v5e:4x4"),
        ("v5p:2x2x2", "v5p:2x2x4"),
        ("v5e:1x1", "v5e:2x2"),
        ("v5p:1x1x1", "v5p:2x2x1"),
        ("h100:8", "h100:16"),
        ("a100:1", "a100:2"),
    ],
)
def test_more_devices(name, twice):
    assert doubled(parse(name)).name == twice


def test_the_largest_slice_has_no_larger_one():
    assert doubled(parse("v5e:16x16")) is None
    assert doubled(parse("v5p:16x16x16")) is not None


def test_emulated_devices_are_those_of_this_process():
    assert [device.id for device in devices_of(parse("cpu:4"))] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"--topology=cpu:16: JAX has started with fewer CPU devices"):
        devices_of(parse("cpu:16"))


@pytest.mark.parametrize("name", ["v5e:4x4", "h100:8"])
def test_a_compiler_that_is_not_installed(name, monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: None)
    assert not has_compiler(parse(name).platform)
    with pytest.raises(ValueError, match=f"--topology={name}: to compile for it .* must be installed: pip install -r "):
        check_compiler(parse(name))


def test_the_requirements_that_are_named_are_there(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: None)
    for name in ("v5e:4x4", "h100:8"):
        with pytest.raises(ValueError, match="installed") as error:
            check_compiler(parse(name))
        for word in str(error.value).replace(",", " ").split():
            if word.startswith("requirements"):
                assert (ROOT / word).exists()


def test_each_gpu_can_be_described():
    gpus = {hardware.name: hardware for hardware in HARDWARE if hardware.platform == "gpu"}
    assert gpus.keys() == TARGETS.keys()
    for hardware in gpus.values():
        text = target_config(hardware)
        assert f"device_memory_size: {hardware.memory_bytes}\n" in text
        assert text.count("{") == text.count("}")


def test_environment_of_the_compilers():
    environment = {"JAX_PLATFORMS": "tpu", "HOME": "/x"}
    topologies.prepare(environment)
    assert environment["JAX_PLATFORMS"] == "cpu"  # what is planned for is not there
    assert environment["HOME"] == "/x"


@pytest.mark.compilers
@pytest.mark.parametrize(
    ("name", "slices", "devices", "hosts"),
    [
        ("v5e:4x4", 1, 16, 4),
        ("v5e:1x1", 1, 1, 1),
        ("v5p:2x2x2", 2, 16, 4),
        ("v4:2x2x1", 1, 4, 1),
        ("h100:16", 1, 16, 2),
    ],
)
def test_devices(name, slices, devices, hosts):
    found = devices_of(parse(name, slices))
    assert len(found) == devices
    assert len({device.process_index for device in found}) == hosts
    assert len({getattr(device, "slice_index", 0) for device in found}) == slices
