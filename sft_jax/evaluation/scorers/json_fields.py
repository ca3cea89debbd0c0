"""JSON objects against the reference's, field by field."""

from collections.abc import Mapping
from typing import Any

from sft_jax.evaluation.json_answers import comparable_fields, comparable_name, parse_object
from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer
from sft_jax.evaluation.scorers.numeric import checked_tolerance
from sft_jax.evaluation.scorers.typed_values import FieldType, comparison, is_missing


def json_extraction() -> Scorer:
    """Fields of a JSON object against the reference's, compared as texts.

    `valid_json`: an object could be read out of the answer (`json_answers.parse_object`). `exact_match`: all
    fields equal and no other one is there. `predicted`, `expected`: number of fields with a value;
    `true_positives`: expected fields with an equal value. A field the reference does not know, or knows as
    missing, counts as predicted and thus as wrong. Equality is that of `json_answers.comparable_fields`.
    When scoring, raises ValueError where the reference is no JSON object.

    >>> case = Case("1", '{"make": "Ford", "year": 2012, "vin": null}')
    >>> json_extraction()('Sure: {"Make": "ford", "year": "2012"}', case)
    {'valid_json': True, 'exact_match': True, 'true_positives': 2, 'predicted': 2, 'expected': 2}
    """

    def score(prediction: str, case: Case) -> Outcome:
        answer, target = parse_object(prediction), _reference_object("json_extraction", case)
        expected = comparable_fields(target)
        predicted = comparable_fields(answer or {})
        return {
            "valid_json": answer is not None,
            "exact_match": answer is not None and predicted == expected,
            "true_positives": sum(predicted.get(name) == value for name, value in expected.items()),
            "predicted": len(predicted),
            "expected": len(expected),
        }

    return score


def json_fields(
    *, types: Mapping[str, FieldType] | None = None, relative_tolerance: float = 0.0, day_first: bool = False
) -> Scorer:
    """Fields compared by their types, with counts of each field.

    `field`: {field: [hits, predicted, expected]}, of which micro precision, recall and F1 are made, and a table of the
    fields. `valid_json` and `exact_match` as in `json_extraction`. Fields of objects within the object are named by
    their path, `owner.name`; a list is one value. `types` says of fields what they are, by name or path, where that is
    not to be inferred from the reference's value; see `typed_values.comparison`.

    When scoring, raises ValueError where the reference is no JSON object.
    """
    options = {"tolerance": checked_tolerance("json_fields", relative_tolerance), "day_first": day_first}
    inferred = comparison("inferred", **options)
    equal = {_plain_path(name): comparison(kind, **options) for name, kind in (types or {}).items()}

    def score(prediction: str, case: Case) -> Outcome:
        answer, target = parse_object(prediction), _reference_object("json_fields", case)
        expected, predicted = _fields(target), _fields(answer or {})
        counts = {}
        for name in sorted(expected | predicted):
            in_both = name in expected and name in predicted
            is_hit = in_both and equal.get(name, inferred)(predicted[name], expected[name])
            counts[name] = [int(is_hit), int(name in predicted), int(name in expected)]
        is_exact = answer is not None and all(hits for hits, _, _ in counts.values())
        return {"field": counts, "valid_json": answer is not None, "exact_match": is_exact}

    return score


def _reference_object(scorer: str, case: Case) -> dict[Any, Any]:
    target = parse_object(case.reference)
    if target is None:
        raise ValueError(f"{scorer}: the reference is not a JSON object: {case.reference[:80]!r}")
    return target


def _fields(found: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Path -> value, of those that have a value."""
    fields: dict[str, Any] = {}
    for name, value in found.items():
        path = prefix + comparable_name(name)
        if isinstance(value, Mapping):
            fields |= _fields(value, f"{path}.")
        elif not is_missing(value):
            fields[path] = value
    return fields


def _plain_path(path: str) -> str:
    return ".".join(comparable_name(name) for name in path.split("."))
