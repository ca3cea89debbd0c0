"""Memory of a compiled train step, from shapes alone: no weight is read, and no array made."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sft_jax.data.batches import assemble, slices_if_several
from sft_jax.options import Options
from sft_jax.preparation.run_data import Data
from sft_jax.runs.base import Base
from sft_jax.sharding import batch_sharding, platform_of
from sft_jax.training.abstract import abstract_state
from sft_jax.training.programs import Signature, signature_of
from sft_jax.training.setup import make_model, step_settings
from sft_jax.training.step import Step, compile_train_step

Tree = Any


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """The train step of a run that has not begun; that of another run is equal where it is the same program.

    Attributes:
        step: the jitted step, which runs with equal settings share.
        signature: of the batches that it is given.
        state: shapes of what it is given.
        batch: likewise.
        mesh: on which it runs.
    """

    step: Step
    signature: Signature
    state: Tree = dataclasses.field(compare=False)
    batch: Tree = dataclasses.field(compare=False)
    mesh: Mesh = dataclasses.field(compare=False)

    def memory(self) -> int:
        """Bytes that the compiled step needs of each device, state and batch included; compiles it."""
        with jax.set_mesh(self.mesh):
            return step_bytes(self.step.lower(self.state, self.batch).compile().memory_analysis())


def step_program(options: Options, base: Base, data: Data, mesh: Mesh) -> StepProgram:
    """The train step of a run.

    Args:
        options: of the run, with what an adapter to begin with says of itself.
        base: of its model.
        data: of its data.
        mesh: on which it would run.

    Raises:
        ValueError: adapters have no place in this model, or sequences, micro-batches and mesh do not divide.
    """
    model = make_model(options, base.decoder, platform_of(mesh), base.new_token_ids)
    settings = dataclasses.replace(step_settings(options, mesh), slices=len(data.plan.sources))
    state = abstract_state(options, base.decoder, mesh, model.execution.layer_layout)
    batch = _abstract_batch(options, data, mesh)
    return StepProgram(compile_train_step(model, settings, state, mesh), signature_of(batch), state, batch, mesh)


def _abstract_batch(options: Options, data: Data, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch."""
    plan, sharding = data.plan, batch_sharding(mesh)
    sequence = assemble(
        data.examples,
        [np.zeros(0, np.int64)],  # a sequence of padding
        sequence_length=plan.sequence_length,
        sequence_targets=plan.sequence_targets,
        slices=slices_if_several(data.examples.sources),
    )
    return {
        name: jax.ShapeDtypeStruct((options.batch.sequences, *array.shape[1:]), array.dtype, sharding=sharding)
        for name, array in sequence.items()
    }


def step_bytes(analysis: Any) -> int:
    """What a compiled step needs: arguments, results that do not take their place, and temporary buffers.

    The compiler's `peak_memory_in_bytes` leaves the temporary buffers out on CPUs.

    Args:
        analysis: `memory_analysis()` of the compiled step; of a program for several devices, of each of them.
    """
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return max(analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes, analysis.peak_memory_in_bytes)
