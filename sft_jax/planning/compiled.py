"""Compiles a train step for a topology, and says what memory it takes of a device."""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError

from sft_jax.planning.hlo import Program, read
from sft_jax.planning.topologies import Topology
from sft_jax.sharding import platform_of
from sft_jax.training.memory import StepProgram, step_bytes

Tree = Any
_QUICK = "O0"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_TOO_LARGE = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of each device.

    Attributes:
        arguments: of the state and the batch.
        temporaries: of what the step makes and lets go of; None where the compiler gave up before it knew.
        peak: the most at one time.
        limit: what a device has; None of a CPU.
    """

    arguments: int
    temporaries: int | None
    peak: int
    limit: int | None

    @property
    def fits(self) -> bool:
        """Whether a device has so much."""
        return self.limit is None or self.peak <= self.limit

    @property
    def over(self) -> int:
        """Bytes that are missing; 0 where it fits."""
        return 0 if self.fits else self.peak - self.limit


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled train step.

    Attributes:
        memory: of a device.
        program: its text, read; None where it is too large and the compiler gave up.
        tracing_seconds: until it is lowered.
        compiling_seconds: the compiler's.
        optimized: False at JAX_OPTIMIZATION_LEVEL=O0.
    """

    memory: Memory
    program: Program | None
    tracing_seconds: float
    compiling_seconds: float
    optimized: bool


def compile_step(program: StepProgram, topology: Topology, *, quick: bool) -> CompiledStep:
    """Compiles a step for its mesh.

    Args:
        program: whose mesh has the devices of the topology.
        topology: of which.
        quick: compile with fewer optimizations, in a fraction of the time: memory and time come out larger.

    Raises:
        JaxRuntimeError: the compiler fails for another reason than memory.
    """
    limit = None if topology.hardware is None else topology.hardware.usable_bytes
    arguments = bytes_of_a_device((program.state, program.batch))
    begin = time.monotonic()
    lowered = program.lowered()
    traced = time.monotonic()
    with _optimization_level(_QUICK if quick else jax.config.jax_optimization_level):
        optimized = jax.config.jax_optimization_level != _QUICK
        try:
            compiled = lowered.compile()
        except JaxRuntimeError as error:
            needed = bytes_needed(str(error))
            if needed is None:
                raise
            memory = Memory(arguments, None, needed, limit)
            return CompiledStep(memory, None, traced - begin, time.monotonic() - traced, optimized)
    done = time.monotonic()
    analysis = compiled.memory_analysis()
    # What is said of CPUs leaves temporaries out.
    peak = step_bytes(analysis) if platform_of(program.mesh) == "cpu" else analysis.peak_memory_in_bytes
    memory = Memory(analysis.argument_size_in_bytes, analysis.temp_size_in_bytes, peak, limit)
    return CompiledStep(memory, read(compiled.as_text()), traced - begin, done - traced, optimized)


@contextlib.contextmanager
def _optimization_level(level: str) -> Iterator[None]:
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def bytes_of_a_device(tree: Tree) -> int:
    """Bytes of arrays that are described with their shardings, on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def bytes_needed(message: str) -> int | None:
    """What a program needs, of the message with which the TPU compiler refuses it; None where it says nothing of it."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    for form in _TOO_LARGE:
        if found := form.search(message):
            return int(float(found[1]) * _UNITS[found[2]])
    return None
