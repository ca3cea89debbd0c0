"""Finds what would have no effect in a run, from its data, plan and options.

Unlike the findings of the data's checks, these depend on batches and on what is trained, so they are not cached with
the tokenized examples.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sft_jax.audit.checks import Finding
from sft_jax.audit.findings import counted
from sft_jax.data.plan import PackPlan
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.options import OptimizerOptions, Options
from sft_jax.sharding import shards_asked
from sft_jax.training.durations import in_steps, parse, phases_of, run_steps
from sft_jax.training.update_rules import unread_options

_SEVERAL = 2.0  # times that the first global batch holds each example
_STALE = 0.5  # of a moving average, what may be left of its beginning
_BLOCK = 1 << 24  # tokens that are looked at together


def run_findings(
    options: Options,
    examples: TokenizedExamples,
    plan: PackPlan,
    new_token_ids: Sequence[int],
    device_count: Callable[[], int] = jax.device_count,
) -> list[Finding]:
    """What to know before training.

    Args:
        options: of the run.
        examples: those trained on.
        plan: their order.
        new_token_ids: ids of `config.model.new_tokens`, in order.
        device_count: how many devices the run has, by default all that there are; called only where an advice depends
            on it, since JAX may have to start them to know.
    """
    return [
        *_large_batch(options, examples, plan, device_count),
        *_unused_new_tokens(options.model.new_tokens, examples, new_token_ids),
        *_no_learning_rate(options.optimizer.learning_rate),
        *_clipped_away(options.optimizer),
        *_never_reached(options, plan),
    ]


def _large_batch(
    options: Options, examples: TokenizedExamples, plan: PackPlan, device_count: Callable[[], int]
) -> list[Finding]:
    times = plan.counts(0)["examples"] / len(examples)
    if times < _SEVERAL:
        return []
    sequences = len(plan.first_block)
    packed = (
        f"all {len(examples):,} examples pack into {sequences} sequences of {options.data.sequence_length:,} tokens"
    )
    smaller = [f"--config.batch.sequences={count}" for count in _fewer_sequences(options, sequences, device_count())]
    smaller += [f"--config.data.sequence_length={size}" for size in _shorter_sequences(options, examples)]
    give = f" Give {' or '.join(smaller)}." if smaller else ""
    return [
        Finding(
            check="large_batch",
            severity="warning",
            title=f"Each optimizer step trains on all of the data {times:.1f} times over: {packed}",
            count=len(examples),
            advice=f"An epoch is less than a step, and repeating examples within one adds nothing.{give} Where such a "
            "batch is meant, a longer --config.duration makes more steps.",
            numbers={"times_in_a_batch": times},
        )
    ]


def _fewer_sequences(options: Options, sequences: int, devices: int) -> list[int]:
    """The largest batch that an epoch fills and that micro-batches and devices divide; empty where there is none."""
    least = options.batch.micro_batches * shards_asked(options.mesh, devices)
    return [sequences // least * least] if sequences >= least else []


def _shorter_sequences(options: Options, examples: TokenizedExamples) -> list[int]:
    """The length of sequences that fill a batch, or half of one, and hold the longest example; empty if none does."""
    tokens, longest = int(examples.lengths.sum()), int(examples.lengths.max())
    size = max(longest, tokens // options.batch.sequences)
    fills = options.data.packing != "none" and _SEVERAL * tokens > options.batch.sequences * size
    return [size] if fills and size < options.data.sequence_length else []


def _unused_new_tokens(texts: Sequence[str], examples: TokenizedExamples, ids: Sequence[int]) -> list[Finding]:
    uses = token_counts(examples.tokens, ids)
    unused = [text for text, count in zip(texts, uses, strict=True) if not count]
    if not unused:
        return []
    return [
        Finding(
            check="unused_new_tokens",
            severity="warning",
            title=f"{counted(len(unused), 'new token stands', 'new tokens stand')} in no example: {', '.join(unused)}",
            count=len(examples),
            advice="Nothing is learnt of their meaning. Look at how examples that should hold them are tokenized "
            "(python -m sft_jax.preview), or leave them out of --config.model.new_tokens.",
            numbers={"unused": unused},
        )
    ]


def token_counts(tokens: np.ndarray, ids: Sequence[int]) -> list[int]:
    """How often each of these ids occurs; reads the tokens once, in blocks."""
    if not len(ids):
        return []
    low, counts = min(ids), np.zeros(max(ids) - min(ids) + 1, np.int64)
    for start in range(0, len(tokens), _BLOCK):
        found = tokens[start : start + _BLOCK] - np.int64(low)
        counts += np.bincount(found[(found >= 0) & (found < len(counts))], minlength=len(counts))
    return [int(counts[number - low]) for number in ids]


def _no_learning_rate(peak: float) -> list[Finding]:
    if peak:
        return []
    return [
        Finding(
            check="no_learning_rate",
            severity="warning",
            title="The learning rate is 0: this run measures, and trains nothing",
            count=0,
            advice="To train, give --config.optimizer.learning_rate=2e-5, or 2e-4 under an adapter.",
        )
    ]


def _clipped_away(optimizer: OptimizerOptions) -> list[Finding]:
    """Adam divides by the root of a mean square plus epsilon; no number of a gradient is above the gradient's norm."""
    norm, epsilon = optimizer.clip_norm, optimizer.epsilon
    if not 0 < norm < epsilon or "epsilon" in unread_options(optimizer.name):
        return []
    return [
        Finding(
            check="clipped_away",
            severity="warning",
            title=f"Gradients are clipped to a norm of {norm}, less than --config.optimizer.epsilon={epsilon}: "
            "hardly anything but weight decay moves what is trained",
            count=0,
            advice="Give --config.optimizer.clip_norm=1.0, or 0 for no clipping.",
            numbers={"clip_norm": norm, "epsilon": epsilon},
        )
    ]


def _never_reached(options: Options, plan: PackPlan) -> list[Finding]:
    """What the run is too short for; nothing where it has no length yet: epochs of a mixture that has none."""
    optimizer, decays = options.optimizer, options.optimizer.schedule == "wsd"
    asked = {"duration": options.duration, "optimizer.warmup": optimizer.warmup}
    asked |= {"optimizer.decay": optimizer.decay} if decays else {}
    units = {name: parse(duration, name) for name, duration in asked.items()}
    if not plan.has_epochs and "epochs" in (unit for _, unit in units.values()):
        return []
    amount, unit = units["optimizer.warmup"]
    may_be_long = decays or unit != "percent" or amount > 100
    if not (may_be_long or options.profile.start or options.ema.decay):
        return []  # the length of a run in epochs takes packing them
    steps = run_steps(options.duration, plan)
    return [
        *(_no_stable_phase(options, plan) if decays else _long_warmup(optimizer.warmup, plan, steps)),
        *_late_profile(options.profile.start, steps),
        *_slow_average(options.ema.decay, steps),
    ]


def _long_warmup(duration: str, plan: PackPlan, steps: int) -> list[Finding]:
    warmup = in_steps(duration, "optimizer.warmup", plan, steps)
    if warmup <= steps:
        return []
    return [
        Finding(
            check="long_warmup",
            severity="warning",
            title=f"The warm-up of {warmup:,} steps is longer than the run of {steps:,}: the learning rate ends at "
            f"{steps / warmup:.0%} of --config.optimizer.learning_rate, and no schedule follows",
            count=0,
            advice='Give --config.optimizer.warmup="3 percent", or a longer --config.duration.',
            numbers={"warmup_steps": warmup, "total_steps": steps},
        )
    ]


def _no_stable_phase(options: Options, plan: PackPlan) -> list[Finding]:
    phases = phases_of(options.duration, options.optimizer, plan)
    if phases.warmup_steps <= phases.stable_until:
        return []
    return [
        Finding(
            check="no_stable_phase",
            severity="warning",
            title=f"The warm-up of {phases.warmup_steps:,} steps and the decay of {phases.decay_steps:,} are longer "
            f"than the run of {phases.total_steps:,}: the learning rate never is --config.optimizer.learning_rate",
            count=0,
            advice='Give --config.optimizer.warmup="10 percent", a shorter --config.optimizer.decay, or a longer '
            "--config.duration.",
            numbers=dataclasses.asdict(phases),
        )
    ]


def _late_profile(start: int, steps: int) -> list[Finding]:
    if start <= steps:
        return []
    return [
        Finding(
            check="late_profile",
            severity="warning",
            title=f"No step is profiled: the run has {steps:,}, and the first to be is {start:,}",
            count=0,
            advice=f"Give a --config.profile.start of at most {steps}, or a longer --config.duration.",
            numbers={"profile_start": start, "total_steps": steps},
        )
    ]


def _slow_average(decay: float, steps: int) -> list[Finding]:
    """The average begins where the weights do, and keeps decay^steps of that."""
    kept = decay**steps
    if kept <= _STALE:
        return []
    return [
        Finding(
            check="slow_average",
            severity="warning",
            title=f"The moving average is at the end still {kept:.0%} what the run began with: {steps:,} steps are few "
            f"for --config.ema.decay={decay}",
            count=0,
            advice=f"Give --config.ema.decay={_faster(steps)}, of whose beginning a tenth is left, or a longer "
            "--config.duration.",
            numbers={"share_of_the_beginning": kept, "total_steps": steps},
        )
    ]


def _faster(steps: int) -> float:
    """The decay of which a tenth is left after so many steps; what it is short of 1 to two digits."""
    return float(f"{1 - float(f'{1 - 0.1 ** (1 / steps):.2g}'):.12g}")
