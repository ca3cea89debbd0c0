"""Objectives: pure functions to the loss that is minimised and to other metrics, as sums and counts.

An objective of logits sees each target by itself. A new one is one file with a function of the form of `cross_entropy`
plus its line in `OBJECTIVES`:

    def objective(logits, targets, weights, settings) -> dict[str, tuple[sum, count]]

`logits` float32 [B, S, V], `targets` int32 [B, S], `weights` float32 [B, S] (0 where nothing is trained), `settings`
its numbers, which are arrays, or None for a term that the run has not (`Settings`). It is called for parts of a batch,
by some slots and by the sequences of a device: it must not compare one with another.

An objective of pairs (`preference`) sees what the model gives whole answers, and compares the two of a pair:

    def objective(log_probabilities, reference, weights, branches, settings) -> dict[str, tuple[sum, count]]

All but `settings` are [B, P]: of each target its log-probability (float32), that of the reference (None for a method
without), its weight, and the branch of its sequence that it belongs to. It is called for some sequences, and must not
compare one with another; the answers of a pair are in one. A new method is a loss of two scores (`pair_losses`) plus
its line in `METHODS`.

An objective of groups (`policy_gradient`) sees the tokens of answers that the model itself gave to a prompt: their
log-probabilities now and when they were drawn, and by how much each answer is better than others (`advantages`).

The entry `loss` is minimised: sum / count over the whole optimizer step, all devices and micro-batches included. Every
entry is logged the same way. `count` must not depend on the parameters.
"""

import collections
from collections.abc import Callable

from sft_jax.objectives.cross_entropy import Settings, cross_entropy
from sft_jax.objectives.pair_losses import PreferenceSettings
from sft_jax.objectives.policy_gradient import PolicySettings, policy_gradient
from sft_jax.objectives.preference import METHODS, objective_of

SumCount = tuple
Objective = Callable[..., dict[str, SumCount]]

OBJECTIVES: dict[str, Objective] = {"cross_entropy": cross_entropy}
OF_GROUPS: dict[str, Objective] = {"policy_gradient": policy_gradient}
KNOWN = collections.ChainMap(OF_GROUPS, METHODS, OBJECTIVES)  # of pairs, of groups and of logits, by their names


def get_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in KNOWN:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(sorted(KNOWN))}")
    return objective_of(METHODS[name]) if compares_pairs(name) else {**OBJECTIVES, **OF_GROUPS}[name]


def compares_pairs(name: str) -> bool:
    """Whether the objective of that name compares the answers of pairs; others imitate."""
    return name in METHODS


def samples_groups(name: str) -> bool:
    """Whether the objective of that name is of answers that the model gives while it is trained."""
    return name in OF_GROUPS


def of_held_out(name: str) -> str:
    """The objective by which held-out rows are measured: answers that are drawn anew have no loss to compare."""
    return "cross_entropy" if samples_groups(name) else name


def has_reference(name: str) -> bool:
    """Whether its scores are relative to what the run begins with."""
    return name in METHODS and METHODS[name].reference


__all__ = [
    "KNOWN",
    "METHODS",
    "OBJECTIVES",
    "OF_GROUPS",
    "Objective",
    "PolicySettings",
    "PreferenceSettings",
    "Settings",
    "compares_pairs",
    "cross_entropy",
    "get_objective",
    "has_reference",
    "of_held_out",
    "policy_gradient",
    "samples_groups",
]
