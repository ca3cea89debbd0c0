"""Measures tasks with methods: each record is asked about as the method asks it, and scored once.

`measure` is what evaluations inside a run and `python -m sft_jax.evaluate` have in common; `side_by_side.py` runs it
for several methods.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from sft_jax.data.records import DroppedRow, Record, RecordReader
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.baselines import right_conversation
from sft_jax.evaluation.methods import Changed
from sft_jax.evaluation.requests import Generate, Judged, Request, Response, text_of
from sft_jax.evaluation.responding import Respondent
from sft_jax.evaluation.scorers import Outcome
from sft_jax.evaluation.tasks import Task, make_task
from sft_jax.options import TaskOptions


@dataclasses.dataclass(frozen=True)
class Entry:
    """A task with its records.

    Attributes:
        name: of the task.
        options: of its entry in `config.evaluation.tasks`.
        records: that are measured.
        dropped: rows that could not be read, where the options say that such rows are left out.
    """

    name: str
    options: TaskOptions
    records: tuple[Record, ...]
    dropped: tuple[DroppedRow, ...] = ()


@dataclasses.dataclass(frozen=True)
class Measured:
    """A task as one method does it.

    Attributes:
        outcomes: of each record.
        lines: of each record, what is kept for people: prompt, answer, reference, outcome.
        prompt_tokens: mean of a record.
        generated_tokens: mean of a record.
        seconds: mean of a record.
        cut: prompts whose solved examples or passages did not all fit.
        notes: what a reader of the scores should know.
    """

    outcomes: tuple[Outcome, ...]
    lines: tuple[dict[str, Any], ...]
    prompt_tokens: float
    generated_tokens: float
    seconds: float
    cut: int
    notes: tuple[str, ...] = ()


def read_entry(name: str, options: TaskOptions) -> Entry:
    """A task with the records of its file.

    Raises:
        RecordError: a row that cannot be read, unless such rows are left out.
        ValueError: there are no rows.
    """
    reader = RecordReader(options.path, options.reading)
    records = tuple(itertools.islice(reader, options.rows or None))
    if not records:
        left_out = f" ({len(reader.dropped):,} could not be read)" if reader.dropped else ""
        raise ValueError(f"task {name}: {options.path} has no rows{left_out}: there is nothing to measure")
    return Entry(name, options, records, tuple(reader.dropped))


def measure(
    entry: Entry,
    respondent: Respondent,
    changed: Changed | None = None,
    title: str = "",
    task: Task | None = None,
) -> Measured:
    """Asks a model about each record of a task, and scores what it gives; call it inside `jax.set_mesh`.

    Args:
        entry: the task.
        respondent: the model.
        changed: makes the requests those of a method; None: as the task makes them.
        title: of the progress.
        task: made of the entry for the model's renderer, where that was done before.

    Raises:
        ValueError: a record that cannot be asked about, or scored; names it.
    """
    task = task_of(entry, respondent.renderer) if task is None else task
    asked = [_asked(task, record) for record in entry.records]
    names = [record.id for record, requests in zip(entry.records, asked, strict=True) for _ in requests]
    requests = list(itertools.chain.from_iterable(asked))
    if changed is not None:
        requests = changed(requests, names)
    responses = iter(respondent(requests, names, title or entry.name))
    grouped = [[next(responses) for _ in of_record] for of_record in asked]
    outcomes = [_scored(task, *pair) for pair in zip(entry.records, grouped, strict=True)]
    shown = iter(requests)
    lines = [
        _line(task, record, [next(shown) for _ in of_record], given, outcome)
        for record, of_record, given, outcome in zip(entry.records, asked, grouped, outcomes, strict=True)
    ]
    of_record = lambda value: sum(value(response) for given in grouped for response in given) / len(grouped)
    return Measured(
        outcomes=tuple(outcomes),
        lines=tuple(lines),
        prompt_tokens=of_record(lambda response: response.prompt_tokens),
        generated_tokens=of_record(_generated_tokens),
        seconds=of_record(lambda response: response.seconds),
        cut=changed.cut if changed is not None else 0,
        notes=tuple(filter(None, (_note(task), *(changed.notes() if changed else ()), _cut_note(grouped)))),
    )


def task_of(entry: Entry, renderer: ConversationRenderer) -> Task:
    """The task of an entry, for models with this renderer; errors as of `make_task`."""
    return make_task(entry.options, entry.records, renderer)


def _asked(task: Task, record: Record) -> Sequence[Request]:
    requests = task.requests(record)
    if not requests:
        raise ValueError(f"{record.id}: the task asks nothing about it; leave such rows out")
    return requests


def _scored(task: Task, record: Record, responses: Sequence[Response]) -> Outcome:
    try:
        return task.score(record, responses)
    except ValueError as error:
        raise ValueError(f"{record.id} cannot be scored: {error}") from error


def _generated_tokens(response: Response) -> int:
    return sum(answer.tokens for answer in response.answers if not isinstance(answer, Judged))


def _note(task: Task) -> str:
    return task.note() if hasattr(task, "note") else ""


def _cut_note(grouped: Sequence[Sequence[Response]]) -> str:
    """How many answers were cut, in words; empty where none was."""
    reasons = [getattr(answer, "finish_reason", "") for given in grouped for one in given for answer in one.answers]
    limit, positions = reasons.count("max_new_tokens"), reasons.count("max_positions")
    said = [f"{limit} at max_new_tokens"] * bool(limit)
    said += [f"{positions} at the last position that the model knows"] * bool(positions)
    return f"Of {len(reasons)} answers were cut: {', '.join(said)}." if said else ""


def reference_text(record: Record) -> str:
    """The right answer of a record, for people; of a pair the chosen one."""
    return text_of(right_conversation(record)[-1])


def _line(
    task: Task, record: Record, asked: Sequence[Request], given: Sequence[Response], outcome: Outcome
) -> dict[str, Any]:
    """What is kept of a record for people."""
    request, answers = asked[0], given[0].answers
    line = {
        "id": record.id,
        "group": record.group,
        "prompt": [{"role": message.role, "content": message.content} for message in request.prompt],
        "reference": reference_text(record),
    }
    if isinstance(request, Generate):
        line |= {"answer": answers[0].text, "finish_reason": answers[0].finish_reason}
        if len(answers) > 1:
            line["answers"] = [answer.text for answer in answers]
        if hasattr(task, "differs"):
            line["differs"] = task.differs(record, answers[0].text)
    else:
        texts = [one if isinstance(one, str) else text_of(one) for one in request.continuations]
        likely = texts[max(range(len(answers)), key=lambda place: answers[place].logprob)]
        chosen = task.chosen(record, given) if hasattr(task, "chosen") else likely
        line |= {"answer": chosen, "finish_reason": ""}
        line["logprobs"] = dict(zip(texts, (answer.logprob for answer in answers), strict=True))
    return line | {"outcome": dict(outcome)}
