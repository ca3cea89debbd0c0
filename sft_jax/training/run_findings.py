"""What of a run would be without effect, known from its data, plan and config.

Findings beside those of the data's checks. Unlike those they depend on how rows are batched and on what is trained, so
they are not kept with the rows.
"""

from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np

from sft_jax.audit.checks import Finding
from sft_jax.audit.findings import counted
from sft_jax.data.plan import PackPlan
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.sharding import shards_asked
from sft_jax.training.durations import in_steps, parse, run_steps
from sft_jax.training.update_rules import unread_options

_SEVERAL = 2.0  # times that the first global batch holds each row
_STALE = 0.5  # of a moving average, what may be left of its beginning
_BLOCK = 1 << 24  # tokens that are looked at together


def run_findings(
    config: ml_collections.ConfigDict,
    rows: TokenizedExamples,
    plan: PackPlan,
    new_token_ids: Sequence[int],
    device_count: Callable[[], int] = jax.device_count,
) -> list[Finding]:
    """What to know before training.

    Args:
        config: the experiment config.
        rows: the training rows.
        plan: their order.
        new_token_ids: ids of `config.model.new_tokens`, in order.
        device_count: how many devices the run has, by default all that there are; called only where an advice depends
            on it, since JAX may have to start them to know.
    """
    return [
        *_large_batch(config, rows, plan, device_count),
        *_unused_new_tokens(tuple(config.model.new_tokens), rows, new_token_ids),
        *_no_learning_rate(config),
        *_clipped_away(config),
        *_never_reached(config, plan),
    ]


def _large_batch(
    config: ml_collections.ConfigDict, rows: TokenizedExamples, plan: PackPlan, device_count: Callable[[], int]
) -> list[Finding]:
    times = plan.counts(0)["examples"] / len(rows)
    if times < _SEVERAL:
        return []
    lines = len(plan.first_block)
    packed = f"all {len(rows):,} rows pack into {lines} of {config.data.sequence_length:,} tokens"
    smaller = [f"--config.batch.sequences={count}" for count in _fewer_rows(config, lines, device_count())]
    smaller += [f"--config.data.sequence_length={size}" for size in _shorter_rows(config, rows)]
    give = f" Give {' or '.join(smaller)}." if smaller else ""
    return [
        Finding(
            check="large_batch",
            severity="warning",
            title=f"Each optimizer step trains on all of the data {times:.1f} times over: {packed}",
            count=len(rows),
            advice=f"An epoch is less than a step, and repeating rows within one adds nothing.{give} Where such a "
            "batch is meant, a longer --config.duration makes more steps.",
            numbers={"times_in_a_batch": times},
        )
    ]


def _fewer_rows(config: ml_collections.ConfigDict, lines: int, devices: int) -> list[int]:
    """The largest batch that an epoch fills and that micro-batches and devices divide; empty where there is none."""
    least = config.batch.micro_batches * shards_asked(config.mesh, devices)
    return [lines // least * least] if lines >= least else []


def _shorter_rows(config: ml_collections.ConfigDict, rows: TokenizedExamples) -> list[int]:
    """Tokens of rows that fill a batch, or half of one, and are as long as the longest example; else empty."""
    tokens, longest = int(rows.lengths.sum()), int(rows.lengths.max())
    size = max(longest, tokens // config.batch.sequences)
    fills = config.data.packing != "none" and _SEVERAL * tokens > config.batch.sequences * size
    return [size] if fills and size < config.data.sequence_length else []


def _unused_new_tokens(texts: Sequence[str], rows: TokenizedExamples, ids: Sequence[int]) -> list[Finding]:
    uses = token_counts(rows.tokens, ids)
    unused = [text for text, count in zip(texts, uses, strict=True) if not count]
    if not unused:
        return []
    return [
        Finding(
            check="unused_new_tokens",
            severity="warning",
            title=f"{counted(len(unused), 'new token stands', 'new tokens stand')} in no row: {', '.join(unused)}",
            count=len(rows),
            advice="Nothing is learnt of their meaning. Look at how rows that should hold them are tokenized "
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


def _no_learning_rate(config: ml_collections.ConfigDict) -> list[Finding]:
    if config.optimizer.learning_rate:
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


def _clipped_away(config: ml_collections.ConfigDict) -> list[Finding]:
    """Adam divides by the root of a mean square plus epsilon; no number of a gradient is above the gradient's norm."""
    norm, epsilon = config.optimizer.clip_norm, config.optimizer.epsilon
    if not 0 < norm < epsilon or "epsilon" in unread_options(config.optimizer.name):
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


def _never_reached(config: ml_collections.ConfigDict, plan: PackPlan) -> list[Finding]:
    """What the run is too short for; nothing where it has no length yet: epochs of a mixture that has none."""
    asked = {"duration": config.duration, "optimizer.warmup": config.optimizer.warmup}
    units = {name: parse(duration, name) for name, duration in asked.items()}
    if not plan.has_epochs and "epochs" in (unit for _, unit in units.values()):
        return []
    amount, unit = units["optimizer.warmup"]
    may_be_long = unit != "percent" or amount > 100
    if not (may_be_long or config.profile.start or config.ema.decay):
        return []  # the length of a run in epochs takes packing them
    steps = run_steps(config.duration, plan)
    return [*_long_warmup(config, plan, steps), *_late_profile(config, steps), *_slow_average(config, steps)]


def _long_warmup(config: ml_collections.ConfigDict, plan: PackPlan, steps: int) -> list[Finding]:
    warmup = in_steps(config.optimizer.warmup, "optimizer.warmup", plan, steps)
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


def _late_profile(config: ml_collections.ConfigDict, steps: int) -> list[Finding]:
    if config.profile.start <= steps:
        return []
    return [
        Finding(
            check="late_profile",
            severity="warning",
            title=f"No step is profiled: the run has {steps:,}, and the first to be is {config.profile.start:,}",
            count=0,
            advice=f"Give a --config.profile.start of at most {steps}, or a longer --config.duration.",
            numbers={"profile_start": config.profile.start, "total_steps": steps},
        )
    ]


def _slow_average(config: ml_collections.ConfigDict, steps: int) -> list[Finding]:
    """The average begins where the weights do, and keeps decay^steps of that."""
    decay = config.ema.decay
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
