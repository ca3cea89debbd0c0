"""Divides cores and devices of this machine among worker processes, without starting JAX."""

import contextlib
import dataclasses
import glob
import math
import os
from collections.abc import Iterator, Mapping, Sequence

_PLATFORMS = "JAX_PLATFORMS"
_GPUS = "CUDA_VISIBLE_DEVICES"
_MEMORY = "XLA_CLIENT_MEM_FRACTION"  # which a user may have set, or one of these
_OF_MEMORY = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR")
_OF_A_GPU = 0.9  # of its memory, for all who share it
_THREADS = "PJRT_NPROC"  # see emulation.py


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a worker runs.

    Attributes:
        cores: those of the processor that it may use; empty: all.
        environment: what it finds in its environment beside what this process has.
    """

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """In here this thread has the cores of the place, and so have processes that it starts."""
        if not self.cores or not hasattr(os, "sched_setaffinity"):
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def default_workers(environment: Mapping[str, str] = os.environ) -> int:
    """A worker for each NVIDIA GPU; elsewhere one, which has all devices and cores."""
    return max(1, len(_gpus(environment)))


def places(workers: int, environment: Mapping[str, str] = os.environ) -> list[Place]:
    """A place for each worker: one alone has everything, several have equal shares.

    Several workers on one GPU divide its memory. Where there are more workers than cores, they share those too.

    Args:
        workers: how many.
        environment: what this process has; what it says of visible devices and of their memory is kept to.

    Raises:
        ValueError: more workers than TPU chips.
    """
    if workers == 1:
        return [Place()]
    shares = _shares(_cores(), workers)
    devices = _of_gpus(workers, environment) or _of_tpus(workers, environment) or [{}] * workers
    return [Place(share, _threads(share, environment) | here) for share, here in zip(shares, devices, strict=True)]


def _shares(cores: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Neighbours for each worker; where there are more workers than cores, one core, which another has too."""
    if workers > len(cores):
        return [(cores[i % len(cores)],) for i in range(workers)]
    return [tuple(cores[i * len(cores) // workers : (i + 1) * len(cores) // workers]) for i in range(workers)]


def _cores() -> Sequence[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _threads(cores: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """XLA counts the cores that a process may use; where a process cannot be told which, the number is said."""
    said = hasattr(os, "sched_setaffinity") or environment.get(_THREADS)
    return {} if said else {_THREADS: str(len(cores))}


def _of_gpus(workers: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    gpus = _gpus(environment)
    if not gpus:
        return []
    if workers <= len(gpus):
        each = len(gpus) // workers
        return [{_GPUS: ",".join(gpus[i * each : (i + 1) * each])} for i in range(workers)]
    fraction = _OF_A_GPU / math.ceil(workers / len(gpus))
    memory = {} if any(name in environment for name in (_MEMORY, *_OF_MEMORY)) else {_MEMORY: f"{fraction:.3f}"}
    return [{_GPUS: gpus[i % len(gpus)]} | memory for i in range(workers)]


def _of_tpus(workers: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    chips = _tpu_chips(environment)
    if not chips:
        return []
    if workers > chips:
        raise ValueError(f"--workers={workers}: a TPU chip has one process at a time, and there are {chips} here")
    alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return [alone | {"TPU_VISIBLE_CHIPS": str(i)} for i in range(workers)]


def _gpus(environment: Mapping[str, str]) -> list[str]:
    """NVIDIA GPUs that JAX would use, as CUDA_VISIBLE_DEVICES names them."""
    if not _may_use(environment, ("cuda", "gpu")):
        return []
    if _GPUS in environment:
        return [name.strip() for name in environment[_GPUS].split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(_gpus_listed())]


def _gpus_listed() -> int:
    return len(glob.glob("/proc/driver/nvidia/gpus/*"))


def _tpu_chips(environment: Mapping[str, str]) -> int:
    return _tpu_chips_listed() if _may_use(environment, ("tpu",)) else 0


def _tpu_chips_listed() -> int:
    return len(glob.glob("/dev/accel[0-9]*")) or len(glob.glob("/dev/vfio/[0-9]*"))


def _may_use(environment: Mapping[str, str], kinds: Sequence[str]) -> bool:
    wanted = environment.get(_PLATFORMS, "")
    return not wanted or any(kind in wanted.split(",") for kind in kinds)
