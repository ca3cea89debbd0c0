"""Objectives: pure functions to the loss that is minimised and to other metrics, as sums and counts.

An objective of logits sees each target by itself. A new one is one file with a function of the form of `cross_entropy`
plus its line in `OBJECTIVES`:

    def objective(logits, targets, weights, settings) -> dict[str, tuple[sum, count]]

`logits` float32 [B, S, V], `targets` int32 [B, S], `weights` float32 [B, S] (0 where nothing is trained), `settings`
its numbers, which are arrays, or None for a term that the run has not (`Settings`). It is called for parts of a batch,
by some slots and by the sequences of a device: it must not compare one with another.

Distillation compares the logits with a teacher's: the objective is a divergence of two distributions (`divergences`),
and `distillation` makes the sums and counts of it.

An objective of pairs (`preference`) sees what the model gives whole answers, and compares the two of a pair:

    def objective(log_probabilities, reference, weights, branches, settings) -> dict[str, tuple[sum, count]]

All but `settings` are [B, P]: of each target its log-probability (float32), that of the reference (None for a method
without), its weight, and the branch of its sequence that it belongs to. It is called for some sequences, and must not
compare one with another; the answers of a pair are in one. A new method is a loss of two scores (`pair_losses`) plus
its line in `METHODS`. An objective of answers that does something else (`kto`) has the same form, and its line in
`OF_ANSWERS`. One of a decoder that scores (`reward`) gets scores, and margins in the place of the reference.

An objective of groups (`policy_gradient`) sees the tokens of answers that the model itself gave to a prompt: their
log-probabilities now and when they were drawn, and by how much each answer is better than others (`advantages`).

The entry `loss` is minimised: sum / count over the whole optimizer step, all devices and micro-batches included. Every
entry is logged the same way. `count` must not depend on the parameters.
"""

import collections
import dataclasses
from collections.abc import Callable

from sft_jax.objectives.cross_entropy import Settings, cross_entropy
from sft_jax.objectives.divergences import DIVERGENCES, READS, DistillationSettings
from sft_jax.objectives.kto import kto
from sft_jax.objectives.pair_losses import PreferenceSettings
from sft_jax.objectives.policy_gradient import PolicySettings, policy_gradient
from sft_jax.objectives.preference import METHODS, objective_of
from sft_jax.objectives.reward import bradley_terry

SumCount = tuple
Objective = Callable[..., dict[str, SumCount]]


@dataclasses.dataclass(frozen=True)
class OfAnswers:
    """An objective of answers beside those that compare two.

    Attributes:
        objective: its function.
        reads: fields of `config.objective`.
        reference: scores are relative to what the run begins with.
        by_itself: answers are judged one by one; a pair is one that is wanted and one that is not.
        divergence: the loss follows from how far the policy is from its reference over the whole step.
        scores: it is of a decoder that scores texts, and predicts no token.
    """

    objective: Objective
    reads: tuple[str, ...]
    reference: bool = True
    by_itself: bool = False
    divergence: bool = False
    scores: bool = False


OBJECTIVES: dict[str, Objective] = {"cross_entropy": cross_entropy}
OF_ANSWERS: dict[str, OfAnswers] = {
    "kto": OfAnswers(kto, ("beta", "desirable_weight", "undesirable_weight"), by_itself=True, divergence=True),
    "reward": OfAnswers(bradley_terry, ("centring",), reference=False, scores=True),
}
OF_GROUPS: dict[str, Objective] = {"policy_gradient": policy_gradient}
KNOWN = collections.ChainMap(OF_GROUPS, OF_ANSWERS, METHODS, DIVERGENCES, OBJECTIVES)  # by their names


def get_objective(name: str) -> Objective:
    """The objective of that name; of distillation its divergence.

    Raises:
        ValueError: there is none.
    """
    if name not in KNOWN:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(sorted(KNOWN))}")
    if name in METHODS:
        return objective_of(METHODS[name])
    return OF_ANSWERS[name].objective if name in OF_ANSWERS else {**OBJECTIVES, **DIVERGENCES, **OF_GROUPS}[name]


def judges_answers(name: str) -> bool:
    """Whether the objective of that name learns from answers that were judged, branches of examples; others imitate."""
    return name in METHODS or name in OF_ANSWERS


def compares_pairs(name: str) -> bool:
    """Whether it compares the two answers of pairs."""
    return judges_answers(name) and not judges_one_by_one(name)


def judges_one_by_one(name: str) -> bool:
    """Whether it takes each answer by itself, as wanted or not."""
    return name in OF_ANSWERS and OF_ANSWERS[name].by_itself


def scores_texts(name: str) -> bool:
    """Whether it is of a decoder that scores whole texts, a reward model."""
    return name in OF_ANSWERS and OF_ANSWERS[name].scores


def samples_groups(name: str) -> bool:
    """Whether the objective of that name is of answers that the model gives while it is trained."""
    return name in OF_GROUPS


def distils(name: str) -> bool:
    """Whether it compares the logits with those of a teacher."""
    return name in DIVERGENCES


def of_held_out(name: str) -> str:
    """The objective by which held-out rows are measured: answers that are drawn anew have no loss to compare."""
    return "cross_entropy" if samples_groups(name) else name


def has_reference(name: str) -> bool:
    """Whether its scores are relative to what the run begins with."""
    known = METHODS.get(name) or OF_ANSWERS.get(name)
    return known is not None and known.reference


def reads_of(name: str) -> tuple[str, ...]:
    """Fields of `config.objective` that an objective of answers or of a teacher reads, of those that not all read."""
    if distils(name):
        return ("temperature", "cross_entropy_share", *READS.get(name, ()))
    return OF_ANSWERS[name].reads if name in OF_ANSWERS else ("beta", "sft_weight", *METHODS[name].reads)


__all__ = [
    "DIVERGENCES",
    "KNOWN",
    "METHODS",
    "OBJECTIVES",
    "OF_ANSWERS",
    "OF_GROUPS",
    "DistillationSettings",
    "Objective",
    "PolicySettings",
    "PreferenceSettings",
    "Settings",
    "compares_pairs",
    "cross_entropy",
    "distils",
    "get_objective",
    "has_reference",
    "judges_answers",
    "judges_one_by_one",
    "of_held_out",
    "policy_gradient",
    "reads_of",
    "samples_groups",
    "scores_texts",
]
