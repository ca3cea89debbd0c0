"""The tasks of `config.evaluation.tasks` inside a run: measured at its evaluations, and reported at its end.

What each evaluation gave is kept in `evaluations/<step>/<task>.json` of the run directory, so that the report at the
end has the start of the run beside it, however often the run was interrupted.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.measuring import Entry, Measured, measure, read_entry, task_of
from sft_jax.evaluation.methods import BASE, TUNED, Method
from sft_jax.evaluation.report.write import PAGE, write_report
from sft_jax.evaluation.responding import Respondent
from sft_jax.evaluation.results import results_of
from sft_jax.evaluation.scoring import score_values
from sft_jax.evaluation.side_by_side import ByMethod
from sft_jax.generation import Prepared
from sft_jax.options import Options
from sft_jax.runs.workdir import EVALUATIONS, TASKS, write_whole

REPORT = "report"


class TaskEvaluation:
    """Measures tasks with the weights of a run as they are; call it inside `jax.set_mesh`.

    Attributes:
        names: of its metrics, up to the metric: `tasks/<task>`.
    """

    def __init__(self, options: Options, renderer: ConversationRenderer, workdir: epath.Path, *, writes: bool):
        """Reads the rows, and what the tasks need to know of them.

        Args:
            options: of the run.
            renderer: of the run.
            workdir: run directory.
            writes: False for all processes but one.

        Raises:
            RecordError: a row that cannot be read.
            ValueError: a task without rows, or one that cannot ask about a row or score it.
        """
        self._options, self._renderer, self._workdir, self._writes = options, renderer, workdir, writes
        self._entries = [read_entry(name, task) for name, task in options.evaluation.tasks.items()]
        self._tasks = [task_of(entry, renderer) for entry in self._entries]  # what is wrong with rows is said now
        self.names = [f"{TASKS}{entry.name}" for entry in self._entries]

    def __call__(self, prepared: Prepared, step: int) -> dict[str, float]:
        """`tasks/<task>/<metric>` of the model."""
        options = self._options
        respondent = Respondent(prepared, self._renderer, slots=options.evaluation.slots, seed=options.seed)
        scalars: dict[str, float] = {}
        for entry, task in zip(self._entries, self._tasks, strict=True):
            measured = measure(entry, respondent, task=task)
            self._keep(entry, measured, step)
            values = score_values(measured.outcomes)
            scalars |= {f"{TASKS}{entry.name}/{metric}": value for metric, value in values.items()}
        return scalars

    def _path(self, entry: Entry, step: int) -> epath.Path:
        return self._workdir / EVALUATIONS / str(step) / f"{entry.name}.json"

    def _keep(self, entry: Entry, measured: Measured, step: int) -> None:
        if self._writes:
            path = self._path(entry, step)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(dataclasses.asdict(measured)) + "\n")

    @property
    def has_report(self) -> bool:
        """Whether there is a report; a run that goes on after its end writes it anew."""
        return (self._workdir / REPORT / PAGE).exists()

    def write_report(
        self, model_name: str, steps: tuple[int, int], cost: Callable[[int], Mapping[str, Any]]
    ) -> epath.Path | None:
        """Writes `report/`: the run at its end beside what it started from.

        Args:
            model_name: the base, for people.
            steps: those that were done at its start, and at its end.
            cost: of the training, up to a step.

        Returns:
            Its page; None where there are no tasks or another process writes.
        """
        if not self._entries or not self._writes:
            return None
        # With patience, a run may end at an evaluation that measured no tasks.
        first, end = steps
        last = max(int(path.name) for path in (self._workdir / EVALUATIONS).iterdir() if int(path.name) <= end)
        steps_of = {Method(BASE, (BASE,)): first, Method(TUNED, (TUNED,)): last}
        found = {
            entry.name: {method.name: _read(self._path(entry, at)) for method, at in steps_of.items()}
            for entry in self._entries
        }
        words = {
            BASE: {"description": "the run before its first step", "model": model_name},
            TUNED: {"description": f"after {last} steps", "model": str(self._workdir)},
        }
        measured = ByMethod(found, words)
        results = results_of(self._entries, list(steps_of), measured, cost(last), self._options.seed)
        return write_report(results, measured.rows, self._workdir / REPORT)[2]


def _read(path: epath.Path) -> Measured:
    kept = json.loads(path.read_text())
    return Measured(**{name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()})
