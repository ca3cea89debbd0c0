"""Times variants of a step in processes of their own; their steps alternate, so that all see the same machine load."""

import ctypes
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

StepFunction = Callable[[], float]  # one step; returns the loss


def peak_memory_gib() -> float:
    """Largest resident size of this process so far (Linux)."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def reset_peak_memory() -> None:
    """Starts a new peak; what loading and compiling left to the allocator is given back, so that it does not count."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _worker(make: Callable[..., StepFunction], arguments: dict, warm_up: int, pipe) -> None:
    step = make(**arguments)
    for _ in range(warm_up):  # the first one compiles
        step()
    reset_peak_memory()
    pipe.send("ready")
    while pipe.recv():
        start = time.perf_counter()
        loss = step()
        pipe.send((time.perf_counter() - start, loss, peak_memory_gib()))


def run_interleaved(
    variants: dict[str, tuple[Callable[..., StepFunction], dict]], rounds: int, warm_up: int = 2
) -> dict[str, dict]:
    """Seconds a step (median and best) and peak memory of each variant; `rounds` times one step of each.

    `rate` is what all steps of a variant returned, for their seconds.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, (make, arguments) in variants.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(make, arguments, warm_up, theirs), daemon=True)
        process.start()
        theirs.close()  # so that a worker that ends is an error here, and nobody waits for it
        ours.recv()
        workers[name] = (process, ours)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    returned = dict.fromkeys(variants, 0.0)
    last: dict[str, tuple] = {}
    for _ in range(rounds):
        for name, (_, pipe) in workers.items():
            pipe.send(True)
            last[name] = pipe.recv()
            seconds[name].append(last[name][0])
            returned[name] += last[name][1]
    for process, pipe in workers.values():
        pipe.send(False)
        process.join()
    return {
        name: {
            "median": statistics.median(times),
            "best": min(times),
            "loss": last[name][1],
            "peak_gib": last[name][2],
            "rate": returned[name] / sum(times),
        }
        for name, times in seconds.items()
    }
