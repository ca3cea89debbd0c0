"""Argilla's exports: "fields" and the "responses" of several people, nested (JSON) or flat (`to_datasets`).

Nested, responses are {question: [{"value", "user_id", "status"}]} or, as its server gives them, a list of {"user_id",
"status", "values": {question: {"value"}}}. Flat, a question has columns "q.responses", "q.responses.users" and
"q.responses.status". Only submitted responses count; suggestions of models do not.
"""

from collections.abc import Iterator, Set
from typing import Any

from sft_jax.data.conversations import Chat
from sft_jax.data.formats.annotations import Annotation, listed, parse_annotated
from sft_jax.data.formats.values import kind
from sft_jax.data.reading import Reading, RecordError

FORM = '{"fields": {...}, "responses": {question: [{"value": ..., "user_id": ...}]}} of Argilla'

_FLAT, _USERS, _STATUS = ".responses", ".responses.users", ".responses.status"


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return {"fields", "responses"} <= columns or any(column.endswith(_USERS) for column in columns)


def parse(fields: dict, where: str, reading: Reading) -> Chat:
    """The question and answer that the templates make of a record.

    Raises:
        RecordError: annotators differ, or the templates do not fit.
    """
    return parse_annotated(annotations(fields, where), _columns(fields, where), where, reading)


def annotations(fields: dict, where: str) -> list[Annotation]:
    """What each annotator says of a record.

    Raises:
        RecordError: not as Argilla writes it.
    """
    answers: dict[str, dict[str, Any]] = {}
    for question, annotator, status, value in _responses(fields, where):
        if status not in (None, "submitted") or value is None:
            continue
        mine = answers.setdefault(annotator, {})
        if question in mine:
            raise RecordError(f"{where}: annotator {annotator!r} answered {question!r} twice. Keep one of the answers.")
        mine[question] = value
    return [Annotation(annotator, mine) for annotator, mine in answers.items()]


def _columns(fields: dict, where: str) -> dict:
    if "fields" not in fields:
        return {name: value for name, value in fields.items() if ".responses" not in name}
    if not isinstance(fields["fields"], dict):
        raise RecordError(f'{where}: "fields": expected an object, got {kind(fields["fields"])}.')
    return (fields.get("metadata") or {}) | fields["fields"]


def _responses(fields: dict, where: str) -> Iterator[tuple[str, str, str | None, Any]]:
    """(question, annotator, status, value) of each response."""
    if "responses" not in fields:
        yield from _flat_responses(fields, where)
        return
    where = f'{where}: "responses"'
    responses = fields["responses"]
    if isinstance(responses, dict):
        for question, given in responses.items():
            for response in listed(given or [], f"{where}: {question!r}", "a list of responses"):
                yield question, str(_get(response, "user_id", where)), response.get("status"), response.get("value")
        return
    for number, response in enumerate(listed(responses, where, "an object or a list")):
        here = f"{where}[{number}]"
        values = _get(response, "values", here) or {}  # null where the annotator discarded the record
        for question, answer in values.items():
            yield question, str(_get(response, "user_id", here)), response.get("status"), _get(answer, "value", here)


def _flat_responses(fields: dict, where: str) -> Iterator[tuple[str, str, str | None, Any]]:
    for column, users in fields.items():
        if not column.endswith(_USERS) or users is None:
            continue
        users = listed(users, f'{where}: "{column}"', "a list of annotators")
        question = column.removesuffix(_USERS)
        values = fields.get(question + _FLAT)
        statuses = fields.get(question + _STATUS) or [None] * len(users)
        if (
            not isinstance(values, list)
            or not isinstance(statuses, list)
            or len({*map(len, (users, values, statuses))}) > 1
        ):
            raise RecordError(f"{where}: the columns {question}{_FLAT} and {column} are not of one length.")
        for annotator, status, value in zip(users, statuses, values, strict=True):
            yield question, str(annotator), status, value


def _get(item: object, key: str, where: str) -> Any:
    if not isinstance(item, dict) or key not in item:
        raise RecordError(f'{where}: expected a response with "{key}", got {kind(item)}.')
    return item[key]
