"""A plan: a config's train step, compiled for hardware that is not there, with what follows from it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sft_jax.data.plan import PackPlan
from sft_jax.options import Options, options_of
from sft_jax.planning.amounts import Amount, amount_of, tokens_of_a_step
from sft_jax.planning.buffers import Buffer, largest_results
from sft_jax.planning.collectives import Collective, collectives_of
from sft_jax.planning.compiled import CompiledStep, Memory, bytes_of_a_device, compile_step
from sft_jax.planning.estimating import estimate_of, traffic_of_step, work_of_step
from sft_jax.planning.flops import Work
from sft_jax.planning.roofline import Estimate
from sft_jax.planning.shapes import ModelShape
from sft_jax.planning.topologies import Topology, devices_of
from sft_jax.planning.traffic import Traffic
from sft_jax.sharding import make_mesh
from sft_jax.training.checks import check_config
from sft_jax.training.memory import BatchSizes, StepProgram, step_program

Tree = Any
_BUFFERS = 8  # of the largest that are kept


@dataclasses.dataclass(frozen=True)
class Case:
    """What is planned.

    Attributes:
        name: of the config, for people.
        config: itself, with what an adapter to begin with says of itself.
        options: the same, as dataclasses.
        shape: of its model.
        sizes: of its batches.
        topology: to plan for.
        plan: of its data; None where they were not read.
        tokens: of the whole run, where the user says so.
        quick: compile with fewer optimizations.
    """

    name: str
    config: ConfigDict
    options: Options
    shape: ModelShape
    sizes: BatchSizes
    topology: Topology
    plan: PackPlan | None = None
    tokens: float | None = None
    quick: bool = False

    def changed(self, changes: Mapping[str, Any]) -> "Case":
        """The same with other values of some fields of the config.

        Args:
            changes: value by name, `execution.remat`. None of them changes the model or the sizes of its sequences.

        Raises:
            ValueError: they do not go with the rest of the config.
        """
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.update_from_flattened_dict(dict(changes))
        check_config(config)
        return dataclasses.replace(self, config=config, options=options_of(config))

    def mesh(self) -> Mesh:
        """The mesh of the config, of the topology's devices.

        Raises:
            ValueError: its axes do not multiply to their number, or their compiler is not installed.
        """
        return make_mesh(self.options.mesh, devices_of(self.topology))

    def program(self) -> StepProgram:
        """The train step.

        Raises:
            ValueError: the parts of the config do not fit together, or not this model or mesh.
        """
        return step_program(self.options, self.shape.decoder, self.sizes, self.mesh(), self.shape.new_token_ids)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a case.

    Attributes:
        case: itself.
        program: its train step.
        compiled: as it was compiled.
        collectives: of a step; none where it is too large for the compiler.
        buffers: its largest, likewise.
        work: its arithmetic.
        traffic: bytes that it moves between a device and its memory.
        estimate: of its time; None of a CPU, or where it is too large for the compiler.
        amount: of the config's duration; None where it is not known.
    """

    case: Case
    program: StepProgram
    compiled: CompiledStep
    collectives: tuple[Collective, ...]
    buffers: tuple[Buffer, ...]
    work: Work
    traffic: Traffic
    estimate: Estimate | None
    amount: Amount | None

    @property
    def memory(self) -> Memory:
        """Of a device."""
        return self.compiled.memory

    @property
    def mesh(self) -> dict[str, int]:
        """Size by axis, without those of one device."""
        return {axis: size for axis, size in self.program.mesh.shape.items() if size > 1}

    @property
    def tokens(self) -> int:
        """Of a step."""
        return tokens_of_a_step(self.case.options, self.case.sizes)

    @property
    def unknown_loops(self) -> list[str]:
        """Loops of the program of which it is not known how often they run: collectives in them are counted once."""
        return [] if self.compiled.program is None else self.compiled.program.unknown_loops()

    def parameters(self) -> tuple[int, int]:
        """(of the model, trained) numbers."""
        state = self.program.state
        model = _count([tree.get("params", {}) for tree in (state.trained, state.frozen)])
        return model, _count(state.trained)


def plan_of(case: Case) -> Plan:
    """Compiles a case, and reads the program.

    Raises:
        ValueError: see `Case.program` and `amount_of`.
    """
    amount, program = amount_of(case.options, case.sizes, case.plan, case.tokens), case.program()
    compiled = compile_step(program, case.topology, quick=case.quick)
    read = compiled.program
    collectives = () if read is None else tuple(collectives_of(read, dict(program.mesh.shape)))
    buffers = () if read is None else tuple(largest_results(read, _BUFFERS))
    estimate = None
    if read is not None and case.topology.hardware is not None:
        estimate = estimate_of(case.options, program, case.sizes, collectives, case.topology.hardware)
    return Plan(
        case,
        program,
        compiled,
        collectives,
        buffers,
        work_of_step(case.options, program, case.sizes),
        traffic_of_step(case.options, program, case.sizes),
        estimate,
        amount,
    )


def state_bytes(program: StepProgram) -> dict[str, int]:
    """Bytes of a device, by what they are: parameters that are trained and that are frozen, moments, all else.

    Args:
        program: the train step.
    """
    state = program.state
    parts = {"trained": state.trained, "frozen": state.frozen, "optimizer": state.opt_state}
    named = {name: bytes_of_a_device(tree) for name, tree in parts.items()}
    named["average and base"] = bytes_of_a_device((state.ema, state.base))
    named["batch"] = bytes_of_a_device(program.batch)
    named["other"] = bytes_of_a_device((state, program.batch)) - sum(named.values())
    return {name: size for name, size in named.items() if size}


def _count(tree: Tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
