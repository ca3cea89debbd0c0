"""Memory of a compiled train step, from shapes alone: no weight is read, and no array made."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sft_jax.data.batches import empty_batch
from sft_jax.models.config import DecoderConfig
from sft_jax.models.decoder import Decoder
from sft_jax.objectives import distils, has_reference, judges_answers, samples_groups, scores_texts
from sft_jax.objectives.top_k import outcomes_of
from sft_jax.options import Options
from sft_jax.preparation.run_data import Data
from sft_jax.sharding import batch_sharding, dealt_batch
from sft_jax.training.abstract import abstract_state
from sft_jax.training.distillation_sums import IDS, LOG_PROBABILITIES
from sft_jax.training.programs import Signature, signature_of
from sft_jax.training.setup import make_model, step_settings
from sft_jax.training.step import Step, compile_train_step
from sft_jax.training.teacher import Teacher, is_in_step

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
    options: Options,
    decoder: DecoderConfig,
    sizes: BatchSizes,
    mesh: Mesh,
    new_token_ids: range = range(0),
    teacher: Teacher | None = None,
) -> StepProgram:
    """The train step of a run.

    Args:
        options: of the run, with what an adapter to begin with says of itself.
        decoder: of the base, with the embeddings of its new tokens.
        sizes: of its batches.
        mesh: on which it would run; its devices need not be there.
        new_token_ids: ids of the new tokens.
        teacher: that is imitated; without it a step whose teacher's tokens are data is that of one with as many.

    Raises:
        ValueError: adapters have no place in this model, or sequences, micro-batches and mesh do not divide.
    """
    of_teacher = None if teacher is None else teacher.model
    in_step = of_teacher if is_in_step(options) else None
    model = make_model(options, decoder, mesh, new_token_ids, teacher=in_step)
    settings = dataclasses.replace(step_settings(options, mesh, of_teacher), slices=sizes.slices)
    state = abstract_state(options, decoder, mesh, model.layout, in_step)
    known = min(decoder.vocab_size, (of_teacher.config if of_teacher else decoder).vocab_size)
    batch = _abstract_batch(options, sizes, mesh, known)
    step = compile_train_step(model, settings, state, mesh)
    return StepProgram(step, signature_of(batch), state, batch, mesh, model)


def _abstract_batch(
    options: Options, sizes: BatchSizes, mesh: Mesh, vocabulary: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch; with a teacher of so many tokens."""
    sharding, groups = batch_sharding(mesh), samples_groups(options.objective.name)
    branches = judges_answers(options.objective.name) or groups
    # As for the data of a run (`run_data`): with as many slots as tokens each token would have its own.
    slots = sizes.sequence_targets + (branches and sizes.sequence_targets == sizes.sequence_length)
    slices = sizes.slices > 0 and not groups
    one = empty_batch(1, sizes.sequence_length, slots, with_slices=slices, with_branches=branches)
    of = {"reference": has_reference, "margins": scores_texts, "drawn": samples_groups, "advantages": samples_groups}
    one |= {name: np.zeros((1, slots), np.float32) for name, has in of.items() if has(options.objective.name)}
    if distils(options.objective.name) and (k := options.teacher.top_k):
        one[IDS] = np.zeros((1, slots, k), np.int32)
        one[LOG_PROBABILITIES] = np.zeros((1, slots, outcomes_of(k, vocabulary)), np.float32)
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
