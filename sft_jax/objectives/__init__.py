"""Objectives: pure functions from logits to the loss that is minimised and to other metrics, as sums and counts.

A new objective is one file with a function of the form of `cross_entropy` plus its line in `OBJECTIVES`:

    def objective(logits, targets, weights, settings) -> dict[str, tuple[sum, count]]

`logits` float32 [B, S, V], `targets` int32 [B, S], `weights` float32 [B, S] (0 where nothing is trained), `settings`
its numbers, which are arrays, or None for a term that the run has not (`Settings`). The entry
`loss` is minimised: sum / count over the whole optimizer step, all devices and micro-batches included. Every entry is
logged the same way. `count` must not depend on the parameters.
"""

from collections.abc import Callable

from sft_jax.objectives.cross_entropy import Settings, cross_entropy

SumCount = tuple
Objective = Callable[..., dict[str, SumCount]]

OBJECTIVES: dict[str, Objective] = {"cross_entropy": cross_entropy}


def get_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; known: {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]


__all__ = ["OBJECTIVES", "Objective", "Settings", "cross_entropy", "get_objective"]
