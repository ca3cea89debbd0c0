"""A run that begins at a kept checkpoint of another one: with its parameters, its moments and its place in the data.

In the warm-up and the stable phase of `wsd`, no step depends on the length of the run or on its decay. So a run of any
length would have this checkpoint there, and the branch is to the last bit what a run of its length would have been that
was planned so from the beginning. Where that is not so, it is refused.
"""

import dataclasses
import re

import ml_collections
from etils import epath

from sft_jax.data.plan import PackPlan
from sft_jax.options import OptimizerOptions, Options
from sft_jax.runs.base import open_run
from sft_jax.runs.checkpoint_errors import steps_in
from sft_jax.runs.checkpoints import DIRECTORY
from sft_jax.runs.restore import digest_of
from sft_jax.runs.workdir import check_inputs, differences, flatten, is_under, recorded_fingerprints
from sft_jax.training.durations import phases_of

_NAMED = re.compile(r"(?P<directory>.+):(?P<step>\d+)")
# What no step before the decay depends on; of the warm-up its steps are compared.
_MAY_DIFFER = (
    "branch",
    "duration",
    *(f"optimizer.{name}" for name in ("warmup", "decay", "decay_shape", "final_share")),
    "evaluation",
    "checkpoint",
)


def parse_branch(name: str) -> tuple[epath.Path, int] | None:
    """`runs/x:8000` -> the directory of the other run and its step; None for what is not of this form."""
    named = _NAMED.fullmatch(name)
    return None if named is None else (epath.Path(named["directory"]), int(named["step"]))


def problems_of_branch(options: Options) -> list[str]:
    """Why a run of this schedule cannot branch off from another."""
    if not options.branch or options.optimizer.schedule == "wsd":
        return []
    return [
        f"--config.branch={options.branch}: at a step of a run with --config.optimizer.schedule="
        f"{options.optimizer.schedule} the rate depends on the length of that run, so that no other goes on from it "
        "exactly; for runs with wsd, give --config.optimizer.schedule=wsd"
    ]


def first_step(options: Options) -> int:
    """The steps that are done when a run begins: 0, or those of the checkpoint that it branches off from."""
    return parse_branch(options.branch)[1] if options.branch else 0


@dataclasses.dataclass(frozen=True)
class Branch:
    """The checkpoint that a run begins with.

    Attributes:
        name: as it was asked for.
        directory: of the other run.
        step: of its checkpoint.
        config: of the other run.
        optimizer: its options.
        fingerprint: changes with the checkpoint.
    """

    name: str
    directory: epath.Path
    step: int
    config: ml_collections.ConfigDict
    optimizer: OptimizerOptions
    fingerprint: str

    def check_config(self, config: ml_collections.ConfigDict) -> None:
        """Checks that its steps were those of a run with this config, but for its length and its decay.

        Args:
            config: of the branch, with dtypes in the place of `auto`, and with a date.

        Raises:
            ValueError: the other run was not of wsd, or other fields differ; lists them.
        """
        if self.optimizer.schedule != "wsd":
            raise ValueError(
                f"--config.branch={self.name}: that run has schedule {self.optimizer.schedule!r}, whose rate depends "
                f"at every step on its length; only runs of wsd branch. {self._train_on()}"
            )
        found, wanted = (
            {name: value for name, value in flatten(one.to_dict()).items() if not is_under(name, _MAY_DIFFER)}
            for one in (self.config, config)
        )
        if differ := differences(found, wanted):
            listed = "\n  ".join(differ)
            raise ValueError(
                f"--config.branch={self.name}: a branch is that run with another length or decay, and here differ:\n  "
                f"{listed}\nGive it the fields of that run. {self._train_on()}"
            )

    def _train_on(self) -> str:
        return (
            f"To train its result on in another way, without its moments: --config.model.source={self.name} in place "
            "of --config.branch"
        )

    def check_steps(self, options: Options, plan: PackPlan, fingerprints: dict[str, str]) -> None:
        """Checks that this run, had it been planned from the beginning, would have been here at the checkpoint.

        Args:
            options: of the branch.
            plan: of both runs.
            fingerprints: of data and base model of the branch.

        Raises:
            ValueError: the checkpoint is of the decay of either run, or their warm-ups differ.
            WorkdirError: the other run was trained on other data or another base model.
        """
        check_inputs(self.directory, fingerprints)
        theirs = phases_of(self.config.duration, self.optimizer, plan)
        own = phases_of(options.duration, options.optimizer, plan)
        if self.step > theirs.stable_until:
            steps = [step for step in steps_in(self.directory / DIRECTORY) if step <= theirs.stable_until]
            raise ValueError(
                f"--config.branch={self.name}: that run is in its decay after step {theirs.stable_until}, and no run "
                f"of another length was there; give a step up to that. It has checkpoints of {steps or 'none of them'}"
            )
        if self.step >= own.total_steps:
            raise ValueError(
                f"--config.duration={options.duration!r} is {own.total_steps} steps, those before the branch included, "
                f"which are {self.step}; give more than '{self.step} steps'"
            )
        if self.step > own.stable_until:
            raise ValueError(
                f"--config.optimizer.decay={options.optimizer.decay!r}: a run of {own.total_steps} steps is in its "
                f"decay after step {own.stable_until}, before the checkpoint it is to begin with; give "
                f"'{own.total_steps - self.step} steps' or less, or a longer --config.duration"
            )
        if theirs.warmup_steps != own.warmup_steps:
            raise ValueError(
                f"--config.optimizer.warmup={options.optimizer.warmup!r} is {own.warmup_steps} steps, and that run had "
                f"{theirs.warmup_steps}; give '{theirs.warmup_steps} steps'"
            )


def open_branch(options: Options, workdir: epath.Path) -> Branch | None:
    """What a run begins with by its `config.branch`; None where it names none, or has a checkpoint of its own already.

    So the other run may remove its checkpoint once the branch has one.

    Args:
        options: of the branch.
        workdir: its directory.

    Raises:
        ValueError: there is no such run, or it has no such checkpoint (names those there are).
    """
    if not options.branch or steps_in(workdir / DIRECTORY):
        return None
    directory, step = parse_branch(options.branch)
    try:
        run = open_run(options.branch)
    except ValueError as error:
        raise ValueError(f"--config.branch={options.branch}: {error}") from error
    if run is None:
        raise ValueError(f"--config.branch={options.branch}: {directory} is not the directory of a run")
    fingerprint = run.fingerprint() + digest_of(run)
    return Branch(options.branch, directory, step, run.config, run.options.optimizer, fingerprint)


def fingerprint_of_branch(options: Options, branch: Branch | None, workdir: epath.Path) -> dict[str, str]:
    """`{"branch": …}` of a run that began at a checkpoint of another one, which may be gone since; else nothing.

    Args:
        options: of the run.
        branch: what it begins with; None where it goes on.
        workdir: its directory.
    """
    if not options.branch:
        return {}
    return {"branch": recorded_fingerprints(workdir)["branch"] if branch is None else branch.fingerprint}
