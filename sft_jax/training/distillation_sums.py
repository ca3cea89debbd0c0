"""Distillation in a step: the distribution of the teacher from its weights, or from what is kept of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from sft_jax.models.decoder import Decoder
from sft_jax.models.variables import head_weights
from sft_jax.objectives import DistillationSettings
from sft_jax.objectives.distillation import distillation, of_all_tokens
from sft_jax.objectives.divergences import Divergence
from sft_jax.objectives.top_k import of_most_likely
from sft_jax.training.forward import frozen_target_states
from sft_jax.training.state import TrainState

Tree = Any
IDS, LOG_PROBABILITIES = "teacher_ids", "teacher_log_probabilities"  # of the teacher's most likely tokens, in batches


@dataclasses.dataclass(frozen=True)
class DistillationTerms:
    """What distillation has.

    Attributes:
        numbers: names of its numbers, as `DistillationSettings` has them.
        teacher: the decoder whose weights the state has; None where batches have its most likely tokens.
        vocabulary: tokens that teacher and student share, where batches have them; None: all of the student's.
    """

    numbers: tuple[str, ...]
    teacher: Decoder | None = None
    vocabulary: int | None = None


def beside_the_student(terms: DistillationTerms, state: TrainState, batch: Tree) -> tuple[Tree, Tree]:
    """What the head reads of a teacher: (weights and numbers, arrays of slots)."""
    frozen = {"distillation": {name: state.hyper[name] for name in terms.numbers}}
    if terms.teacher is None:
        return frozen, {name: batch[name] for name in (IDS, LOG_PROBABILITIES)}
    with jax.named_scope("teacher"):
        hidden = frozen_target_states(terms.teacher, state.teacher, batch)
    return frozen | {"teacher_head": head_weights(state.teacher)}, {"teacher_hidden": hidden}


def objective_of(
    terms: DistillationTerms,
    divergence: Divergence,
    logits: Array,
    frozen: Tree,
    of_slots: Tree,
    by_vocabulary: Callable[[Array], Array],
) -> Callable[[Array, Array, Array], dict[str, tuple[Array, Array]]]:
    """The objective of a chunk, of (logits, targets, weights).

    Args:
        terms: what distillation has.
        divergence: of `DIVERGENCES`.
        logits: of the student.
        frozen: as `beside_the_student` gives them.
        of_slots: likewise, of this chunk.
        by_vocabulary: lays out logits over the mesh.
    """
    numbers = DistillationSettings(**frozen["distillation"])
    if terms.teacher is None:
        kept, vocabulary = (of_slots[IDS], of_slots[LOG_PROBABILITIES]), terms.vocabulary or logits.shape[-1]
        outcomes = of_most_likely(*kept, logits, vocabulary, numbers.temperature)
    else:
        of_teacher = terms.teacher.apply(frozen["teacher_head"], of_slots["teacher_hidden"], method="head")
        outcomes = of_all_tokens(by_vocabulary(of_teacher), logits, numbers.temperature)
    return functools.partial(distillation, outcomes=outcomes, divergence=divergence, settings=numbers)
