"""Hardware that is not there, by name: its devices, for which programs can be compiled.

`v5e:4x4` is a slice of 16 TPU chips, `h100:16` two hosts of eight GPUs, `cpu:8` eight emulated devices. TPUs are
compiled for by libtpu, GPUs by JAX's CUDA plugin; neither needs the hardware, a driver or the other one.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import MutableMapping
from typing import Any

from sft_jax.hardware import HARDWARE, Hardware, Torus, hardware_named
from sft_jax.planning import plugin_notes
from sft_jax.planning.gpu_targets import TARGETS, target_config

_FORM = re.compile(r"(?P<kind>[a-z0-9-]+):(?P<sizes>\d+(?:x\d+)*)")
_SHORT = {"a100": "a100-80gb"}
_CPU = "cpu"
# JAX's own devices are CPUs here. libtpu would look for its host and for a lock that another process may hold.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Hardware to plan for.

    Attributes:
        name: as it was asked for.
        kind: `v5e`, `h100-80gb`, `cpu`.
        shape: of a TPU slice in chips; of others the number of devices.
        slices: TPU slices of that shape, joined by the data centre's network.
        hardware: what its devices can do; None of a CPU.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int
    hardware: Hardware | None

    @property
    def platform(self) -> str:
        """`tpu`, `gpu` or `cpu`."""
        return _CPU if self.hardware is None else self.hardware.platform

    @property
    def title(self) -> str:
        """What is asked for, with its slices."""
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of a name.

    Args:
        name: `v5e:4x4`, `h100:8`, `cpu:8`.
        slices: of a TPU.

    Raises:
        ValueError: there is no such hardware, or not in that shape; says what there is.
    """
    found = _FORM.fullmatch(name)
    if found is None:
        raise ValueError(f"--topology={name}: expected KIND:SHAPE, for example {_examples()}")
    kind, shape = _SHORT.get(found["kind"], found["kind"]), tuple(map(int, found["sizes"].split("x")))
    if kind != _CPU and kind not in {hardware.name for hardware in HARDWARE}:
        raise ValueError(f"--topology={name}: no hardware is called {kind!r}. There are {_kinds()}")
    if 0 in shape:
        raise ValueError(f"--topology={name}: a shape of no devices; give {_examples()}, for example")
    hardware = None if kind == _CPU else hardware_named(kind)
    if hardware is not None and isinstance(hardware.links, Torus):
        _check_slice(name, shape, hardware, hardware.links)
    elif slices > 1:
        raise ValueError(f"--topology={name}: --slices={slices}: only TPUs have slices; leave that flag out")
    elif len(shape) > 1:
        raise ValueError(f"--topology={name}: slices with a shape are TPUs; give a number of devices: {kind}:8")
    elif hardware is not None and shape[0] > hardware.devices_per_host and shape[0] % hardware.devices_per_host:
        raise ValueError(
            f"--topology={name}: hosts have {hardware.devices_per_host} of these; give fewer, or a multiple of that"
        )
    return Topology(name, kind, shape, slices, hardware)


def doubled(topology: Topology) -> Topology | None:
    """The same with twice the devices: along the shortest side of a slice, which of two is the later one.

    None where there are no larger slices, those of a torus that is closed at its longest.
    """
    shape = list(topology.shape)
    side = min(range(len(shape)), key=lambda number: (shape[number], -number))
    shape[side] *= 2
    if topology.platform == "tpu" and set(topology.shape) == {1}:
        shape = [2, 2, *topology.shape[2:]]  # the smallest slice beyond one chip
    links = topology.hardware.links if topology.hardware else None
    if isinstance(links, Torus) and links.ring and max(shape) > links.ring:
        return None
    name = topology.name.partition(":")[0]
    return parse(f"{name}:{'x'.join(map(str, shape))}", topology.slices)


def _check_slice(name: str, shape: tuple[int, ...], hardware: Hardware, links: Torus) -> None:
    if len(shape) != links.dimensions:
        like = "x".join(["4"] * links.dimensions)
        raise ValueError(
            f"--topology={name}: slices of {hardware.name} have {links.dimensions} dimensions of chips: "
            f"{hardware.name}:{like}, for example"
        )
    if math.prod(shape) > 1 and (shape[0] % 2 or shape[1] % 2):
        raise ValueError(
            f"--topology={name}: hosts of {hardware.name} have 2 x 2 chips, of which a slice has whole ones; give even "
            "numbers for the first two, or one chip"
        )


def _examples() -> str:
    return "v5e:4x4, v5p:2x2x4, v6e:4x4, h100:8 or cpu:8"


def _kinds() -> str:
    tpus = [each.name for each in HARDWARE if each.platform == "tpu"]
    gpus = [*_SHORT, *(each.name for each in HARDWARE if each.name in TARGETS)]
    return f"{', '.join(tpus)} (with a shape in chips), {', '.join(gpus)} and {_CPU} (with a number of devices)"


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets what JAX and its compilers read when they start; to be called before JAX is imported."""
    environment.update(_ENVIRONMENT)


def devices_of(topology: Topology) -> list[Any]:
    """Its devices, which only say what they are; those of `cpu:N` are there.

    Raises:
        ValueError: the compiler for them is not installed, or knows no such slice.
    """
    return list(_emulated(topology) if topology.platform == _CPU else _described(topology))


@functools.cache
def _described(topology: Topology) -> tuple[Any, ...]:
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    check_compiler(topology)
    describe = _describe_tpu if topology.platform == "tpu" else _describe_gpu
    try:
        with plugin_notes.left_out():
            return tuple(topologies.get_topology_desc(**describe(topology)).devices)
    except JaxRuntimeError as error:
        raise ValueError(f"--topology={topology.name}: its compiler refuses it: {error}") from error


def check_compiler(topology: Topology) -> None:
    """Checks that the compiler for a topology is installed.

    Raises:
        ValueError: it is not; says what to install.
    """
    if not has_compiler(topology.platform):
        what, to_run = {
            "tpu": ("libtpu", "requirements-tpu.txt"),
            "gpu": ("JAX's CUDA plugin", "requirements-gpu.txt"),
        }[topology.platform]
        raise ValueError(_missing(topology, what, to_run))


def _missing(topology: Topology, what: str, to_run: str) -> str:
    return (
        f"--topology={topology.name}: to compile for it {what} must be installed: pip install -r "
        f"requirements-plan.txt (compilers only, for planning), or {to_run} on a machine that has such devices"
    )


def has_compiler(platform: str) -> bool:
    """Whether programs can be compiled for `tpu`, `gpu` or `cpu`; what has the compiler is not imported."""
    if platform == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    if platform == "gpu":
        plugins = importlib.util.find_spec("jax_plugins") is not None
        return plugins and any(importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13))
    return True


def _describe_tpu(topology: Topology) -> dict[str, Any]:
    given: dict[str, Any] = {"platform": "tpu", "topology_name": topology.name}
    if topology.slices > 1:
        given["num_slices"] = topology.slices
    if set(topology.shape) == {1}:
        given["chips_per_host_bounds"] = [1, 1, 1]
    if topology.kind == "v4":
        given["chip_config_name"] = "megacore"  # both cores of a chip as one device
    return given


def _describe_gpu(topology: Topology) -> dict[str, Any]:
    devices, a_host = topology.shape[0], topology.hardware.devices_per_host
    hosts = max(1, devices // a_host)
    return {
        "platform": "cuda",
        "topology_name": topology.name,
        "topology": f"1x{hosts}x{devices // hosts}",
        "target_config": target_config(topology.hardware),
    }


def _emulated(topology: Topology) -> list[Any]:
    """CPU devices of this process; as many as are asked for where JAX has not started yet."""
    import jax

    from sft_jax import emulation

    count = topology.shape[0]
    if emulation.emulated_devices() < count:
        try:
            jax.config.update("jax_num_cpu_devices", count)
        except RuntimeError as error:
            raise ValueError(f"--topology={topology.name}: JAX has started with fewer CPU devices") from error
    emulation.reserve_threads()
    with plugin_notes.left_out():
        return jax.devices(_CPU)[:count]
