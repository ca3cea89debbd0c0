"""What a device can do: arithmetic, memory and links of TPUs and GPUs, to plan runs for and to measure them against.

Figures are the makers', for one device as JAX counts them and for one direction of a link. Their sources, by letter:

    G  Google Cloud's page of the TPU (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x)
    S  Austin et al. 2025, "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus and /gpus). For links of TPUs
       it has 9/10 of what G's bandwidth of a chip comes to
    C  the compiler: what it says is available when a program is too large (libtpu 0.0.42)
    X  the descriptions of GPUs that XLA compiles for (openxla/xla, xla/backends/gpu/target_config/specs)
    N  NVIDIA's data sheets of the A100, H100, H200 and HGX B200, without sparsity
    D  NVIDIA's descriptions of the DGX A100, H100, H200 and B200: network cards of a host of eight
"""

import dataclasses
import os

_SHARE_OF_GPU = 0.75  # that JAX takes when it starts, unless one of these says otherwise
_SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Torus:
    """Chips of a slice, each linked to its two neighbours along every dimension (inter-chip interconnect, ICI).

    Attributes:
        dimensions: of the torus.
        link_bandwidth: of a link, one direction, in bytes/s.
        ring: an axis of so many chips is closed to a ring, a shorter one is not (S: the 16 x 16 pods of v5e and v6e).
            0: all axes are closed where all are multiples of 4, and none otherwise (G, S: cubes of 4 x 4 x 4 chips
            are joined by optical switches; v4, v5p, tpu7x).
    """

    dimensions: int
    link_bandwidth: float
    ring: int = 0

    def wraps(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Whether each axis of a slice of this shape, in chips, is closed to a ring."""
        if self.ring:
            return tuple(size == self.ring for size in shape)
        return (len(shape) == self.dimensions and all(size % 4 == 0 for size in shape),) * len(shape)


@dataclasses.dataclass(frozen=True)
class Switch:
    """Devices of a host, each linked to all others at the same speed (NVLink and NVSwitch).

    Attributes:
        bandwidth: of a device into the switch, one direction, in bytes/s.
    """

    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A kind of device.

    Attributes:
        name: as `--topology` has it.
        device_kinds: what JAX calls it (`device.device_kind`), or called it in earlier versions.
        platform: `tpu` or `gpu`.
        peak_flops: of dense bf16 matrix products, FLOP/s.
        memory_bytes: of a TPU what a program can use; of a GPU all there is, of which JAX takes a share
            (`usable_bytes`).
        memory_bandwidth: in bytes/s.
        links: between the devices of a slice or host.
        network_bandwidth: of a device to other slices or hosts, one direction, in bytes/s; its share of a host's cards.
        devices_per_host: that a host of several has; a slice of fewer chips than a host is one host.
        devices_per_chip: 2 where JAX counts the halves of a chip.
    """

    name: str
    device_kinds: tuple[str, ...]
    platform: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    links: Torus | Switch
    network_bandwidth: float
    devices_per_host: int
    devices_per_chip: int = 1

    @property
    def usable_bytes(self) -> int:
        """What a program can use, as JAX is set up in this environment."""
        return int(self.memory_bytes * (gpu_share() if self.platform == "gpu" else 1))


HARDWARE = (
    Hardware(
        "v4",
        ("TPU v4",),
        "tpu",
        peak_flops=275e12,  # G
        memory_bytes=int(30.75 * _GIB),  # C, of both cores: JAX makes one device of them (megacore)
        memory_bandwidth=1.2e12,  # G
        links=Torus(3, 4.5e10),  # S
        network_bandwidth=2.5e10 / 4,  # S: of a host
        devices_per_host=4,  # S
    ),
    Hardware(
        "v5e",
        ("TPU v5 lite", "TPU v5e"),
        "tpu",
        peak_flops=197e12,  # G
        memory_bytes=int(15.75 * _GIB),  # C
        memory_bandwidth=8.1e11,  # S; G: 800 GiB/s, earlier 819 GB/s
        links=Torus(2, 4.5e10, ring=16),  # S
        network_bandwidth=2 * 12.5e9 / 8,  # G: two cards of 100 Gbit/s for eight chips
        devices_per_host=4,  # G: of slices of several hosts
    ),
    Hardware(
        "v5p",
        ("TPU v5", "TPU v5p"),
        "tpu",
        peak_flops=459e12,  # G
        memory_bytes=int(95.74 * _GIB),  # C
        memory_bandwidth=2.765e12,  # G
        links=Torus(3, 9e10),  # S
        network_bandwidth=6.25e9,  # G: 50 Gbit/s a chip
        devices_per_host=4,  # G
    ),
    Hardware(
        "v6e",
        ("TPU v6 lite", "TPU v6e"),
        "tpu",
        peak_flops=918e12,  # G
        memory_bytes=int(31.25 * _GIB),  # C
        memory_bandwidth=1.638e12,  # G
        links=Torus(2, 9e10, ring=16),  # S
        network_bandwidth=4 * 25e9 / 8,  # G: four cards of 200 Gbit/s for eight chips
        devices_per_host=4,  # G: of slices of several hosts
    ),
    Hardware(
        "tpu7x",
        ("TPU7x",),
        "tpu",
        peak_flops=2307e12 / 2,  # G, of a chip
        memory_bytes=int(94.75 * _GIB),  # C
        memory_bandwidth=7.38e12 / 2,  # G, of a chip
        links=Torus(3, 9e10 / 2),  # G: a chip's are those of v5p, and its two devices share them
        network_bandwidth=12.5e9 / 2,  # G: 100 Gbit/s a chip
        devices_per_host=8,  # G: four chips
        devices_per_chip=2,
    ),
    Hardware(
        "a100-40gb",
        ("NVIDIA A100-SXM4-40GB",),
        "gpu",
        peak_flops=312e12,  # N
        memory_bytes=42331013120,  # X
        memory_bandwidth=1.555e12,  # N
        links=Switch(3e11),  # N: 600 GB/s both ways
        network_bandwidth=25e9,  # D: a card of 200 Gbit/s for each
        devices_per_host=8,
    ),
    Hardware(
        "a100-80gb",
        ("NVIDIA A100-SXM4-80GB",),
        "gpu",
        peak_flops=312e12,  # N
        memory_bytes=85100068864,  # X
        memory_bandwidth=2.039e12,  # N
        links=Switch(3e11),  # N: 600 GB/s both ways
        network_bandwidth=25e9,  # D: a card of 200 Gbit/s for each
        devices_per_host=8,
    ),
    Hardware(
        "h100",
        ("NVIDIA H100 80GB HBM3",),
        "gpu",
        peak_flops=989e12,  # N
        memory_bytes=84942979072,  # X
        memory_bandwidth=3.35e12,  # N
        links=Switch(4.5e11),  # N: 900 GB/s both ways
        network_bandwidth=50e9,  # D: a card of 400 Gbit/s for each
        devices_per_host=8,
    ),
    Hardware(
        "h200",
        ("NVIDIA H200", "NVIDIA H200 141GB HBM3e"),
        "gpu",
        peak_flops=989e12,  # N
        memory_bytes=151397597184,  # X
        memory_bandwidth=4.8e12,  # N
        links=Switch(4.5e11),  # N: 900 GB/s both ways
        network_bandwidth=50e9,  # D: a card of 400 Gbit/s for each
        devices_per_host=8,
    ),
    Hardware(
        "b200",
        ("NVIDIA B200",),
        "gpu",
        peak_flops=2250e12,  # N
        memory_bytes=191514411008,  # X
        memory_bandwidth=7.67e12,  # X; N: up to 8 TB/s
        links=Switch(9e11),  # N: 1.8 TB/s both ways
        network_bandwidth=50e9,  # D: a card of 400 Gbit/s for each
        devices_per_host=8,
    ),
)
_BY_KIND = {kind: hardware for hardware in HARDWARE for kind in hardware.device_kinds}
_BY_NAME = {hardware.name: hardware for hardware in HARDWARE}


def gpu_share() -> float:
    """The share of a GPU's memory that JAX takes.

    Raises:
        ValueError: the environment asks for what is no share.
    """
    name = next((name for name in _SHARE_VARIABLES if os.environ.get(name)), None)
    if name is None:
        return _SHARE_OF_GPU
    try:
        share = float(os.environ[name])
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ValueError(f"{name}={os.environ[name]} in the environment must be a share of a GPU's memory, as 0.75")
    return share


def hardware_of(device_kind: str) -> Hardware | None:
    """The hardware that JAX calls so; None where it is not known (a CPU, for example)."""
    return _BY_KIND.get(device_kind)


def hardware_named(name: str) -> Hardware:
    """The hardware of a name that `--topology` begins with.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _BY_NAME:
        raise ValueError(f"no hardware is called {name!r}; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def peak_flops(device_kind: str, devices: int) -> float | None:
    """Peak FLOP/s of `devices` devices; None where the kind is not known."""
    hardware = hardware_of(device_kind)
    return None if hardware is None else hardware.peak_flops * devices
