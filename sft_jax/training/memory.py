"""Memory of a compiled train step, from shapes alone: no weight is read, and no array made."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sft_jax.data.batches import empty_batch
from sft_jax.models.config import DecoderConfig
from sft_jax.models.decoder import Decoder
from sft_jax.objectives import has_reference, judges_answers, samples_groups, scores_texts
from sft_jax.options import Options
from sft_jax.preparation.run_data import Data
from sft_jax.sharding import batch_sharding, dealt_batch
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
        model: the decoder that it trains.
    """

    step: Step
    signature: Signature
    state: Tree = dataclasses.field(compare=False)
    batch: Tree = dataclasses.field(compare=False)
    mesh: Mesh = dataclasses.field(compare=False)
    model: Decoder = dataclasses.field(compare=False)

    def memory(self) -> int:
        """Bytes that the compiled step needs of each device, state and batch included; compiles it."""
        return step_bytes(self.lowered().compile().memory_analysis())

    def lowered(self) -> jax.stages.Lowered:
        """The program, for the compiler of the mesh's devices."""
        with jax.set_mesh(self.mesh):
            return self.step.lower(self.state, self.batch)


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """What of the data the program of a step depends on.

    Attributes:
        sequence_length: tokens S of a sequence.
        sequence_targets: its slots P for targets.
        slices: of the data, whose loss is measured apart; 0 for none.
    """

    sequence_length: int
    sequence_targets: int
    slices: int = 0


def batch_sizes(data: Data) -> BatchSizes:
    """Those of a run's batches."""
    return BatchSizes(data.plan.sequence_length, data.plan.sequence_targets, len(data.plan.sources))


def step_program(
    options: Options, decoder: DecoderConfig, sizes: BatchSizes, mesh: Mesh, new_token_ids: range = range(0)
) -> StepProgram:
    """The train step of a run.

    Args:
        options: of the run, with what an adapter to begin with says of itself.
        decoder: of the base, with the embeddings of its new tokens.
        sizes: of its batches.
        mesh: on which it would run; its devices need not be there.
        new_token_ids: ids of the new tokens.

    Raises:
        ValueError: adapters have no place in this model, or sequences, micro-batches and mesh do not divide.
    """
    model = make_model(options, decoder, mesh, new_token_ids)
    settings = dataclasses.replace(step_settings(options, mesh), slices=sizes.slices)
    state = abstract_state(options, decoder, mesh, model.layout)
    batch = _abstract_batch(options, sizes, mesh)
    step = compile_train_step(model, settings, state, mesh)
    return StepProgram(step, signature_of(batch), state, batch, mesh, model)


def _abstract_batch(options: Options, sizes: BatchSizes, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch."""
    sharding, groups = batch_sharding(mesh), samples_groups(options.objective.name)
    branches = judges_answers(options.objective.name) or groups
    # As for the data of a run (`run_data`): with as many slots as tokens each token would have its own.
    slots = sizes.sequence_targets + (branches and sizes.sequence_targets == sizes.sequence_length)
    slices = sizes.slices > 0 and not groups
    one = empty_batch(1, sizes.sequence_length, slots, with_slices=slices, with_branches=branches)
    of = {"reference": has_reference, "margins": scores_texts, "drawn": samples_groups, "advantages": samples_groups}
    one |= {name: np.zeros((1, slots), np.float32) for name, has in of.items() if has(options.objective.name)}
    return {
        name: jax.ShapeDtypeStruct((options.batch.sequences, *array.shape[1:]), array.dtype, sharding=sharding)
        for name, array in dealt_batch(one, mesh.shape["context"]).items()
    }


def step_bytes(analysis: Any) -> int:
    """What a compiled step needs: arguments, results that do not take their place, and temporary buffers.

    The compiler's `peak_memory_in_bytes` leaves the temporary buffers out on CPUs.

    Args:
        analysis: `memory_analysis()` of the compiled step; of a program for several devices, of each of them.
    """
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return max(analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes, analysis.peak_memory_in_bytes)
