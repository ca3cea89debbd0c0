"""A sweep as it is asked for, by its file and a config: shown, checked, and run."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from sft_jax.sweeps import dry_run, files
from sft_jax.sweeps.directory import SweepDirectory, claim_sweep, plan_sweep
from sft_jax.sweeps.halving import check_halving, halve
from sft_jax.sweeps.hparams import not_failing, write_hparams
from sft_jax.sweeps.optimizing import check_trials, optimize, trials_at
from sft_jax.sweeps.preparing import check_inputs, prepare
from sft_jax.sweeps.problems import SweepError
from sft_jax.sweeps.runs import Overrides
from sft_jax.sweeps.search import Optuna, Search, SuccessiveHalving
from sft_jax.sweeps.search_record import Launch
from sft_jax.sweeps.shared import Shared
from sft_jax.sweeps.status import read_status


@dataclasses.dataclass(frozen=True)
class Statement:
    """What is asked for.

    Attributes:
        sweep: the sweep file.
        config: the argument of `--config`.
        base: the config of it, with what the command line sets.
        root: the directory of the sweep.
        overrides: of each run; under Optuna, what each trial is run with.
        search: how runs are chosen; None for all of them.
    """

    sweep: str
    config: str
    base: ConfigDict
    root: epath.Path
    overrides: list[dict[str, Any]]
    search: Search | None

    @classmethod
    def of(cls, sweep: str, config: str, base: ConfigDict, root: epath.PathLike) -> "Statement":
        """What a sweep file states.

        Raises:
            ConfigError: the file cannot be used; names its line.
        """
        stated = files.load(sweep)
        return cls(sweep, config, base, epath.Path(root), stated.overrides, stated.search)

    def check(self) -> SweepDirectory:
        """Checks all that can be known before the first run starts; writes nothing, and reads no weights.

        Returns:
            The sweep as it would be claimed; under Optuna with runs in the middle of its space.

        Raises:
            SweepError: runs that cannot be; names them all.
            WorkdirError: the directory is of something else, or damaged.
        """
        of_space = check_trials(self.search, self.base, self.overrides) if isinstance(self.search, Optuna) else []
        planned = plan_sweep(self.root, **self._with(self._to_prepare()))
        if isinstance(self.search, SuccessiveHalving):
            check_halving(self.search, planned.stated_runs)
        check_inputs([*planned.stated_runs, *of_space], Shared())
        return planned

    def show(self, console: Console) -> None:
        """Prints what a dry run shows.

        Raises:
            SweepError: see `check`.
            WorkdirError: see `check`.
        """
        planned = self.check()
        dry_run.show_runs(planned, console)
        if self.search is not None:
            dry_run.show_search(self.search, planned, console)
        prepared = prepare(planned.stated_runs, Shared(), jax.devices(), console)
        dry_run.show_costs(planned, prepared, console)

    def run(self, launch: Launch, is_wanted: Callable[[str], bool], console: Console) -> int:
        """Checks all runs, and runs what is not done yet.

        Args:
            launch: executes runs; gives an exit status.
            is_wanted: by the name of a run, whether it is to be started now.
            console: of the terminal.

        Returns:
            exit status.

        Raises:
            SweepError: no run is wanted; or see `check`.
            WorkdirError: see `check`.
        """
        planned = self.check()
        names = [name for name in planned.stated if is_wanted(name)]
        if not names:
            raise SweepError(f"--only matches none of the {len(planned.stated)} runs; the first is {planned.stated[0]}")
        if isinstance(self.search, Optuna):
            return optimize(self.search, self.root, self.overrides, self._claim, launch, console)
        sweep = self._claim(self.overrides)
        if isinstance(self.search, SuccessiveHalving):
            return halve(self.search, sweep, launch, console)
        wanted = [run for run in sweep.stated_runs if run.name in names]
        todo = [run for run in wanted if read_status(sweep.run_dir(run.name)).state != "finished"]
        if not todo:
            with not_failing(console.print):  # whoever finished the last one may have been killed before it wrote this
                write_hparams(self.root)
            console.print(f"{self.root}: {dry_run.states_text(sweep, wanted)}. Nothing is left to do.", soft_wrap=True)
            return 0
        return launch(sweep, todo, None)

    def _to_prepare(self) -> Sequence[Overrides]:
        """The runs as far as they are known before any of them has measured something."""
        return trials_at(self.search, 0.5, self.overrides) if isinstance(self.search, Optuna) else self.overrides

    def _claim(self, overrides: Sequence[Overrides]) -> SweepDirectory:
        return claim_sweep(self.root, **self._with(overrides))

    def _with(self, overrides: Sequence[Overrides]) -> dict[str, Any]:
        return {
            "sweep": self.sweep,
            "config": self.config,
            "base": self.base,
            "stated": overrides,
            "search": None if self.search is None else self.search.to_json(),
        }
