"""Measures packing: how full sequences get, how long packing takes, and how long making a pack plan takes.

    taskset -c 0 python -m benchmarks.packing

Made-up data: lognormal lengths (mean 300 tokens) and answers (mean 75) that do not depend on them, in sequences of
2,048 tokens.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from absl import app, flags

from sft_jax.data.packing import PACKINGS, pack_epoch, packing_report, supervised_capacity
from sft_jax.data.packing.bins import Bins, Sizes
from sft_jax.data.plan import PackPlan
from sft_jax.data.tokenized.columns import Labels

_EXAMPLES = flags.DEFINE_multi_integer("examples", [10_000, 1_000_000], "Numbers of examples.")
_SEQUENCE_LENGTH = flags.DEFINE_integer("sequence_length", 2048, "Tokens in a sequence.")

Result = TypeVar("Result")


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What it gives, and its seconds of processor time (one thread)."""
    start = time.process_time()
    found = function()
    return found, time.process_time() - start


def made_up(count: int, sequence_length: int) -> tuple[Sizes, Sizes]:
    """Lengths and supervised tokens of so many examples."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.2, 1, count), 2, sequence_length).astype(np.int64)
    answers = np.clip(rng.lognormal(4, 0.8, count), 1, 300).astype(np.int64)
    return lengths, np.minimum(answers, lengths - 1)


@dataclasses.dataclass(frozen=True)
class Sized:
    """What a pack plan reads of `TokenizedExamples`; their tokens would take gigabytes."""

    lengths: Sizes
    supervised: Sizes
    ids: list[str]
    sources: Labels

    def __len__(self) -> int:
        return len(self.ids)


def main(argv: list[str]) -> None:
    """Prints a table of packings, and the seconds that a whole plan takes."""
    del argv
    size = _SEQUENCE_LENGTH.value
    print(f"{'examples':>10} {'packing':>12} {'seconds':>8} {'efficiency':>10} {'by tokens alone':>16} {'targets':>8}")
    for count in _EXAMPLES.value:
        for name in PACKINGS:
            _print_packing(name, *made_up(count, size), size)
    print()
    for count in _EXAMPLES.value:
        examples = Sized(*made_up(count, size), [""] * count, Labels(np.zeros(count, np.int32), ("",)))
        seconds = _plan_seconds(examples, size)
        print(f"{count:>10,} examples: targets, plan, steps, first batch and report in {seconds:.2f} s")


def _print_packing(name: str, lengths: Sizes, supervised: Sizes, size: int) -> None:
    targets = supervised_capacity(lengths, supervised, size, 0.95, name)

    def packed(bound: int) -> Bins:
        return pack_epoch(
            lengths, supervised, sequence_length=size, sequence_targets=bound, seed=0, epoch=0, packing=name
        )

    bins, seconds = timed(lambda: packed(targets))
    full, full_alone = (f"{lengths.sum() / len(some) / size:.4f}" for some in (bins, packed(size)))
    print(f"{len(lengths):>10,} {name:>12} {seconds:>8.3f} {full:>10} {full_alone:>16} {targets:>8,}")


def _plan_seconds(examples: Sized, size: int) -> float:
    """Everything between tokenized examples and the first batch."""

    def planned() -> None:
        targets = supervised_capacity(examples.lengths, examples.supervised, size, 0.95)
        plan = PackPlan(examples, sequence_length=size, sequence_targets=targets, sequences_per_batch=64, seed=0)
        plan.steps_for("epochs", 1)
        plan.batch_bins(0)
        packing_report(examples, sequence_length=size, sequence_targets=targets, bins=plan.first_block)

    return timed(planned)[1]


if __name__ == "__main__":
    app.run(main)
