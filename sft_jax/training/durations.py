"""Durations in any unit: `"60 steps"`, `"2000 examples"`, `"1e6 tokens"`, `"3 epochs"`, `"3 percent"` (of the run).

One string carries number and unit, so that a flag can replace either and two units can never be given at once.
"""

import dataclasses
import math
import re

from sft_jax.data.plan import PackPlan
from sft_jax.options import OptimizerOptions, Options

_FORM = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([a-z]+)\s*")
_UNITS = {
    "step": "steps",
    "example": "examples",
    "token": "tokens",
    "epoch": "epochs",
    "percent": "percent",
}


def parse(duration: str, flag: str) -> tuple[float, str]:
    """Amount and unit of a duration.

    Raises:
        ValueError: not of the form `<number> <unit>`; names the flag.
    """
    match = _FORM.fullmatch(duration)
    unit = _UNITS.get(match[2]) or _UNITS.get(match[2].removesuffix("s")) if match else None
    if unit is None:
        raise ValueError(
            f"--config.{flag}={duration!r} is not a duration; give a number and one unit, for example '60 steps', "
            "'2000 examples', '1e6 tokens' or '3 epochs'"
        )
    return float(match[1].replace("_", "")), unit


def in_steps(duration: str, flag: str, plan: PackPlan, total_steps: int | None = None) -> int:
    """The smallest number of optimizer steps that reaches a duration.

    Args:
        duration: number and unit.
        flag: its name in the config, for errors.
        plan: the pack plan, which knows what each step holds.
        total_steps: length of the run, of which `percent` is taken; None where that unit makes no sense.

    Raises:
        ValueError: malformed, or `percent` of an unknown whole.
    """
    amount, unit = parse(duration, flag)
    if unit == "percent":
        if total_steps is None:
            raise ValueError(
                f"--config.{flag}={duration!r}: percent of the run makes no sense here; give steps, examples, tokens "
                "or epochs"
            )
        return math.ceil(amount / 100 * total_steps)
    return plan.steps_for(unit, amount)


@dataclasses.dataclass(frozen=True)
class Timetable:
    """How many steps a run has, and after which of them it evaluates and saves.

    Attributes:
        total_steps: optimizer steps in all.
        warmup_steps: of them, those of the learning rate's warm-up.
        decay_steps: of them, those at the end in which the rate of schedule `wsd` falls; 0 for other schedules.
        evaluate_every: steps between evaluations; 0: at the end only.
        save_every: steps between checkpoints; 0: at the end only.
        saves_evaluated: each step that is evaluated is saved too.
        tasks_every: steps between evaluations that measure tasks too, at the start and the end anyway.
        keeps_stable: the checkpoint before the decay is saved, and kept.
    """

    total_steps: int
    warmup_steps: int
    decay_steps: int
    evaluate_every: int
    save_every: int
    saves_evaluated: bool
    tasks_every: int
    keeps_stable: bool

    @property
    def kept_step(self) -> int | None:
        """The step whose checkpoint is kept whatever comes after it."""
        return self.total_steps - self.decay_steps if self.keeps_stable else None

    def tasks_due(self, step: int) -> bool:
        """Whether the evaluation after `step` measures tasks."""
        return step in (0, self.total_steps) or (self.tasks_every > 0 and step % self.tasks_every == 0)

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether to evaluate and whether to save after `step`."""
        last = step == self.total_steps
        evaluating = last or (self.evaluate_every > 0 and step % self.evaluate_every == 0)
        saving = last or step == self.kept_step or (self.save_every > 0 and step % self.save_every == 0)
        return evaluating, saving or (evaluating and self.saves_evaluated)


def timetable(options: Options, plan: PackPlan, *, measures: bool) -> Timetable:
    """The durations of a run in steps.

    Args:
        options: of the run.
        plan: the pack plan.
        measures: whether evaluations measure anything. The best checkpoint by a metric is the best of all evaluations,
            so each of them is saved then.

    Raises:
        ValueError: see `in_steps`; or the run is to end early, and nothing is measured before its end.
    """
    phases = phases_of(options.duration, options.optimizer, plan)
    evaluate_every = in_steps(options.evaluation.every, "evaluation.every", plan)
    if options.evaluation.patience and not evaluate_every:
        raise ValueError(
            f"--config.evaluation.patience={options.evaluation.patience}: with --config.evaluation.every="
            f"{options.evaluation.every!r} nothing is measured before the end; give '100 steps', for example"
        )
    tasks_every = evaluate_every
    if options.evaluation.tasks_every:
        tasks_every = in_steps(options.evaluation.tasks_every, "evaluation.tasks_every", plan)
        if not evaluate_every or tasks_every % evaluate_every:
            raise ValueError(
                f"--config.evaluation.tasks_every={options.evaluation.tasks_every!r} is {tasks_every} steps, no "
                f"multiple of the {evaluate_every} of --config.evaluation.every={options.evaluation.every!r}: tasks "
                "are measured at evaluations. Give a multiple, or leave it empty for all of them"
            )
    return Timetable(
        **dataclasses.asdict(phases),
        evaluate_every=evaluate_every,
        save_every=in_steps(options.checkpoint.every, "checkpoint.every", plan),
        saves_evaluated=measures and bool(options.checkpoint.best_metric),
        tasks_every=tasks_every,
        keeps_stable=options.optimizer.schedule == "wsd" and options.checkpoint.keep_stable,
    )


@dataclasses.dataclass(frozen=True)
class Phases:
    """The steps of a run by its schedule; the first are the warm-up, and the last are the decay of `wsd`."""

    total_steps: int
    warmup_steps: int
    decay_steps: int

    @property
    def stable_until(self) -> int:
        """The last step whose rate does not depend on the length of the run, where its schedule is `wsd`."""
        return self.total_steps - self.decay_steps


def phases_of(duration: str, optimizer: OptimizerOptions, plan: PackPlan) -> Phases:
    """The phases of a run.

    Raises:
        ValueError: see `in_steps`; or the decay is longer than the run.
    """
    total = run_steps(duration, plan)
    warmup = in_steps(optimizer.warmup, "optimizer.warmup", plan, total)
    decay = in_steps(optimizer.decay, "optimizer.decay", plan, total) if optimizer.schedule == "wsd" else 0
    if decay > total:
        raise ValueError(
            f"--config.optimizer.decay={optimizer.decay!r} is {decay} steps, and the run has {total}; give "
            '"20 percent", for example, or a longer --config.duration'
        )
    return Phases(total, warmup, decay)


def run_steps(duration: str, plan: PackPlan) -> int:
    """The optimizer steps of a run, at least one.

    Raises:
        ValueError: see `in_steps`, or there would be none.
    """
    steps = in_steps(duration, "duration", plan)
    if steps:
        return steps
    unit = parse(duration, "duration")[1]
    share = "" if unit == "steps" else f", or any amount of {unit} above 0"
    raise ValueError(
        f"--config.duration={duration!r} comes to 0 steps: nothing would be trained. Give at least '1 steps'{share}. "
        "To measure a model: python -m sft_jax.evaluate"
    )
