"""Runs the cleaning steps of a config: a stream of records in, a stream of clean ones out, and a log of the changes."""

import collections
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sft_jax.data.cleaning.registry import STEPS
from sft_jax.data.cleaning.steps import Act, Context, Drop, Step
from sft_jax.data.records import Record
from sft_jax.data.tokenized import DroppedRow

_FLAG = "--config.data.cleaning"
_KEPT_CHANGES = 5  # changed records kept for each step and reason, for people; all are counted


@dataclasses.dataclass(frozen=True)
class Changed:
    """A record that a step changed."""

    id: str
    step: str
    reason: str


Sink = Callable[[Record, DroppedRow | Changed], None]


class CleaningLog:
    """What became of the records.

    Attributes:
        records: how many that came in.
        kept: how many went out.
        dropped: the others; `reason` begins with the step.
        changes: how many records each (step, reason) changed.
        first_changed: some of them.
    """

    def __init__(self, sink: Sink | None = None):
        """An empty log; `sink` is given every record dropped or changed, as it came to the step."""
        self.records = self.kept = 0
        self.dropped: list[DroppedRow] = []
        self.changes: collections.Counter[tuple[str, str]] = collections.Counter()
        self.first_changed: list[Changed] = []
        self._sink = sink

    def note_drop(self, record: Record, step: str, drop: Drop) -> DroppedRow:
        """Notes that a step dropped a record."""
        noted = DroppedRow(record.id, f"{step}: {drop.reason}", drop.detail)
        self.dropped.append(noted)
        self._tell(record, noted)
        return noted

    def note_change(self, record: Record, step: str, reason: str) -> None:
        """Notes that a step changed a record."""
        noted = Changed(record.id, step, reason)
        self.changes[step, reason] += 1
        if self.changes[step, reason] <= _KEPT_CHANGES:
            self.first_changed.append(noted)
        self._tell(record, noted)

    def _tell(self, record: Record, noted: DroppedRow | Changed) -> None:
        if self._sink is not None:
            self._sink(record, noted)


def names_of_steps(steps: Sequence[str]) -> tuple[str, ...]:
    """Names of steps that are given as "name" or "name=argument"."""
    return tuple(step.partition("=")[0] for step in steps)


def dropped_by_a_step(reason: str) -> bool:
    """Whether the reason of a dropped row, as `CleaningLog.note_drop` writes it, is that of a cleaning step."""
    return reason.partition(": ")[0] in STEPS


def cleaning_values(log: CleaningLog) -> dict:
    """What the cleaning steps did, ready for JSON."""
    changed = [
        {"step": step, "reason": reason, "records": records, "first": _first(log, step, reason)}
        for (step, reason), records in log.changes.items()
    ]
    return {"records": log.records, "kept": log.kept, "dropped_rows": len(log.dropped), "changed": changed}


def _first(log: CleaningLog, step: str, reason: str) -> list[str]:
    return [change.id for change in log.first_changed if (change.step, change.reason) == (step, reason)]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A step as the config names it ("drop_answers_shorter_than=3")."""

    name: str
    make: Callable[[Context], Step]


class Cleaner:
    """The steps of `config.data.cleaning`, in order."""

    def __init__(self, steps: Sequence[str], context: Context | None = None):
        """Reads the names of the steps.

        Args:
            steps: "name" or "name=argument".
            context: what steps compare with.

        Raises:
            ValueError: a name that no step has, or a bad argument; names the flag.
        """
        problems = problems_of(steps)
        if problems:
            raise ValueError("\n".join(problems))
        self._asked = [_asked(step) for step in steps]
        self._context = context or Context()

    def __call__(self, read: Callable[[], Iterable[Record]], log: CleaningLog) -> Iterator[Record | DroppedRow]:
        """The clean records one at a time, and in the place of the others why they were dropped.

        Args:
            read: begins a pass over the records. It is called once, and once more for each step that looks at all
                records before it decides about one.
            log: filled while the records are taken.

        Raises:
            RuntimeError: the records that came in are not those kept and dropped.
        """
        steps: list[tuple[str, Step]] = []
        for asked in self._asked:
            step = asked.make(self._context)
            if step.look is not None:
                for record in _through(read(), steps, CleaningLog()):
                    if isinstance(record, Record):
                        step.look(record)
            steps.append((asked.name, step))
        yield from _through(read(), steps, log)


def _through(
    records: Iterable[Record], steps: Sequence[tuple[str, Step]], log: CleaningLog
) -> Iterator[Record | DroppedRow]:
    """One pass."""
    acts = [(name, step.begin()) for name, step in steps]
    for record in records:
        log.records += 1
        cleaned = _clean(record, acts, log)
        log.kept += isinstance(cleaned, Record)
        yield cleaned
    if log.records != log.kept + len(log.dropped):
        dropped = len(log.dropped)
        raise RuntimeError(f"{log.records} records came to cleaning, {log.kept} were kept and {dropped} dropped.")


def _clean(record: Record, acts: Sequence[tuple[str, Act]], log: CleaningLog) -> Record | DroppedRow:
    for name, act in acts:
        outcome = act(record)
        if isinstance(outcome, Drop):
            return log.note_drop(record, name, outcome)
        if outcome is not None:
            log.note_change(record, name, outcome.reason)
            record = outcome.record
    return record


def problems_of(steps: Sequence[Any]) -> list[str]:
    """What is wrong with `config.data.cleaning`; empty if nothing is."""
    return [problem for step in steps if (problem := _problem(step))]


def _problem(asked: Any) -> str:
    if not isinstance(asked, str):
        return f"{_FLAG}: expected names of steps, got {asked!r}"
    name, _, text = asked.partition("=")
    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        hint = f"did you mean {near[0]!r}? There are" if near else "there are"
        return f"{_FLAG}: {name!r} is not a step; {hint}: {', '.join(STEPS)}"
    argument = STEPS[name].argument
    if "=" not in asked:
        needs = argument is not None and argument.default is None
        return f"{_FLAG}: {name} needs {argument.expected}: '{name}=3'" if needs else ""
    if argument is None:
        return f"{_FLAG}: {name} takes no argument, got {asked!r}"
    try:
        argument.parse(text)
    except ValueError as error:
        return f"{_FLAG}: {name}: {error}"
    return ""


def _asked(step: str) -> _Asked:
    name, equals, text = step.partition("=")
    kind = STEPS[name]
    if kind.argument is None:
        return _Asked(name, kind.make)
    value = kind.argument.parse(text) if equals else kind.argument.default
    return _Asked(name, lambda context: kind.make(context, value))
