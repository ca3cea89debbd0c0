"""How long a run is: steps and tokens of its duration, as far as they are known without data."""

import dataclasses
import math

from sft_jax.data.plan import PackPlan
from sft_jax.options import Options
from sft_jax.training.durations import parse, run_steps
from sft_jax.training.memory import BatchSizes


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much a run computes.

    Attributes:
        steps: optimizer steps.
        tokens: slots of their batches, padding included: what they take time for.
    """

    steps: int
    tokens: int


def tokens_of_a_step(options: Options, sizes: BatchSizes) -> int:
    """Slots of a global batch, padding included."""
    return options.batch.sequences * sizes.sequence_length


def amount_of(options: Options, sizes: BatchSizes, plan: PackPlan | None, tokens: float | None) -> Amount | None:
    """The amount of `config.duration`; None where it is in examples or epochs, of an unknown number of tokens.

    Args:
        options: of the run.
        sizes: of its batches.
        plan: of its data; None: they were not read, and sequences are taken to be full.
        tokens: of the whole run, where the user says so.

    Raises:
        ValueError: a duration that is none, or of no step; or one that says how many tokens, beside `tokens`.
    """
    each = tokens_of_a_step(options, sizes)
    if plan is not None:
        steps = run_steps(options.duration, plan)
        return Amount(steps, steps * each)
    number, unit = parse(options.duration, "duration")
    if tokens is not None and unit in ("steps", "tokens"):
        raise ValueError(
            f"--tokens={tokens:g} is for a duration in epochs or examples, and --config.duration is "
            f"{options.duration!r}; leave --tokens out"
        )
    if tokens is not None:
        steps = math.ceil(tokens / each)
    elif unit == "steps":
        steps = math.ceil(number)
    elif unit == "tokens":
        steps = math.ceil(number / each)
    else:
        return None
    return Amount(steps, steps * each)
