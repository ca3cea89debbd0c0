"""A launcher that trains nothing: what a run measures is a function of what it sets, and of the step."""

import json
from collections.abc import Callable, Sequence

from sft_jax.runs import workdir as workdirs
from sft_jax.runs.result import DIVERGED, FINISHED, INTERRUPTED, PAUSED, RunEnd, read_result, write_result
from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.runs import SweepRun

METRIC = "held_out/nll"


class KilledError(Exception):
    """The launcher, or the machine, has gone."""


class Launcher:
    """Runs that measure `measure(run, step)` every `every` steps of `total`; None of it: the run diverges there.

    Attributes:
        launched: (name, from step, to step) of each run that was executed.
        dies_after: so many runs it is killed; None: never.
        leaves_after: so many runs it is interrupted, and says so; None: never.
    """

    def __init__(self, measure: Callable[[SweepRun, int], float | None], every: int, total: int):
        self._measure, self._every, self._total = measure, every, total
        self.launched: list[tuple[str, int, int]] = []
        self.dies_after: int | None = None
        self.leaves_after: int | None = None

    def __call__(self, sweep: SweepDirectory, todo: Sequence[SweepRun], stop_after: int | None) -> int:
        failed = False
        for run in todo:
            if len(self.launched) == self.dies_after:
                raise KilledError
            if len(self.launched) == self.leaves_after:
                return 130
            failed |= not self._execute(sweep, run, self._total if stop_after is None else stop_after)
        return int(failed)

    def _execute(self, sweep: SweepDirectory, run: SweepRun, last: int) -> bool:
        directory = sweep.run_dir(run.name)
        there = read_result(directory)
        begin = there.step if there else 0
        workdirs.claim(directory, run.config)
        self.launched.append((run.name, begin, last))
        value = None
        with (directory / "metrics.jsonl").open("a") as log:
            for step in range(begin + self._every, last + 1, self._every):
                value = self._measure(run, step)
                if value is None:
                    self._end(directory, DIVERGED, step, {})
                    return False
                log.write(json.dumps({"step": step, METRIC: value}) + "\n")
        self._end(directory, FINISHED if last == self._total else PAUSED, last, {METRIC: value})
        return True

    def _end(self, directory, state: str, step: int, metrics: dict) -> None:
        assert state != INTERRUPTED
        write_result(directory, RunEnd(state, step, self._total, metrics, None, {}, 1.0, None, None))
