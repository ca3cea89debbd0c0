"""Label Studio's JSON export: tasks with "data" and the "annotations" of several people.

A question is a control tag of the labelling interface, named by its `from_name`. Choices, texts, ratings and numbers
are answers as they stand (several of them a list); labelled pieces of text are a list of {"start", "end", "text",
"labels"}. Cancelled annotations do not count, predictions of models neither.
"""

from collections.abc import Set
from typing import Any

from sft_jax.data.conversations import Chat
from sft_jax.data.formats.annotations import Annotation, listed, only_one, parse_annotated
from sft_jax.data.formats.values import kind
from sft_jax.data.reading import Reading, RecordError

FORM = '{"data": {...}, "annotations": [{"completed_by": ..., "result": [...]}, ...]} of Label Studio'

_VALUE_KEYS = {"choices": "choices", "textarea": "text", "taxonomy": "taxonomy"}  # lists
_VALUE_KEYS |= {"rating": "rating", "number": "number", "datetime": "datetime", "pairwise": "selected"}
_PIECES = {"labels": "labels", "hypertextlabels": "hypertextlabels", "paragraphlabels": "paragraphlabels"}
_UNORDERED = ("choices", "taxonomy")


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return {"data", "annotations"} <= columns


def parse(fields: dict, where: str, reading: Reading) -> Chat:
    """The question and answer that the templates make of a task.

    Raises:
        RecordError: annotators differ, an annotation is not about text, or the templates do not fit.
    """
    data = fields.get("data")
    if not isinstance(data, dict):
        raise RecordError(f'{where}: "data": expected an object with the columns of the task, got {kind(data)}.')
    return parse_annotated(annotations(fields, where), data, where, reading)


def annotations(fields: dict, where: str) -> list[Annotation]:
    """What each annotator says of a task.

    Raises:
        RecordError: not as Label Studio writes it.
    """
    where = f'{where}: "annotations"'
    found = []
    for number, item in enumerate(listed(fields.get("annotations"), where, "a list of annotations")):
        here = f"{where}[{number}]"
        if not isinstance(item, dict):
            raise RecordError(f"{here}: expected an annotation, an object, got {kind(item)}.")
        if not item.get("was_cancelled"):
            found.append(Annotation(_annotator(item), _answers(item, here), bool(item.get("ground_truth"))))
    return found


def _annotator(item: dict) -> str:
    who = item.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return str(who)


def _answers(item: dict, where: str) -> dict[str, Any]:
    where = f'{where}: "result"'
    given: dict[str, list] = {}
    kinds: dict[str, str] = {}
    for number, result in enumerate(listed(item.get("result"), where, "a list of results")):
        here = f"{where}[{number}]"
        if not isinstance(result, dict) or not isinstance(result.get("value"), dict) or "from_name" not in result:
            raise RecordError(f'{here}: expected "from_name", "type" and "value", got {kind(result)}.')
        question = result["from_name"]
        kinds[question] = result.get("type", "")
        given.setdefault(question, []).extend(_values(kinds[question], result["value"], here))
    return {question: _joined(kinds[question], values) for question, values in given.items()}


def _values(of_type: str, value: dict, where: str) -> list:
    """What one result says: answers, or one piece of text with its labels."""
    key = _VALUE_KEYS.get(of_type) or _PIECES.get(of_type)
    if key is None:
        known = ", ".join([*_VALUE_KEYS, *_PIECES])
        raise RecordError(f"{where}: a result of type {of_type!r} cannot become text; those that can are: {known}.")
    if value.get(key) is None:
        raise RecordError(f'{where}: the value of a result of type {of_type!r} has no "{key}".')
    if of_type in _PIECES:
        piece = {name: value[name] for name in ("start", "end", "text") if value.get(name) is not None}
        return [piece | {"labels": value[key]}]
    return list(value[key]) if isinstance(value[key], list) else [value[key]]


def _joined(of_type: str, values: list) -> Any:
    if of_type in _PIECES:
        return sorted(values, key=lambda piece: (str(piece.get("start")).zfill(12), str(piece)))
    return only_one(sorted(values, key=str) if of_type in _UNORDERED else values)
