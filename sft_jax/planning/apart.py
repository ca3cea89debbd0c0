"""Compiles cases in a process of its own: where a compiler fails one of its own checks, its process ends with it.

Of meshes that are tried one after the other a few may do that, and the others are still to be compiled.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Self

from sft_jax.planning import plugin_notes
from sft_jax.planning.compiled import Memory
from sft_jax.planning.planned import Case, plan_of
from sft_jax.planning.roofline import Estimate


@dataclasses.dataclass(frozen=True)
class Figures:
    """What is known of a compiled case.

    Attributes:
        memory: of a device.
        estimate: of its time; None of a CPU, or where it is too large for the compiler.
    """

    memory: Memory
    estimate: Estimate | None


def figures_of(case: Case) -> Figures:
    """Compiles a case, in this process.

    Raises:
        ValueError: see `plan_of`.
    """
    plan = plan_of(case)
    return Figures(plan.memory, plan.estimate)


class Apart:
    """A process that compiles cases one after the other, and is started again when it ends.

    It inherits the environment, of which `topologies.prepare` has made what compilers need, and its standard error is
    this process's: what a compiler says before it ends is seen there.
    """

    def __init__(self, compiles: Callable[[Case], Figures] = figures_of):
        """Starts nothing yet.

        Args:
            compiles: what that process does with a case; a function of a module.
        """
        self._compiles = compiles

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, case: Case) -> Figures | None:
        """Compiles a case there; None where the process ended before it had done so.

        Raises:
            ValueError: see `plan_of`.
        """
        try:
            return self._pool.submit(self._compiles, case).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._start()
            return None

    def _start(self) -> None:
        """The process itself starts with the first case; a forked one would have the threads of JAX without them."""
        spawning = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawning, plugin_notes.import_without, (__name__,))
