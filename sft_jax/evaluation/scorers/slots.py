"""Slots of an utterance (dialogue, forms): each has a name and a value, and a name may come several times."""

from collections.abc import Mapping
from typing import Any

from sft_jax.evaluation.json_answers import comparable_name, parse_list_or_object
from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer
from sft_jax.evaluation.scorers.numeric import checked_tolerance
from sft_jax.evaluation.scorers.typed_values import FieldType, comparison, is_missing


def slots(
    *,
    types: Mapping[str, FieldType] | None = None,
    relative_tolerance: float = 0.0,
    day_first: bool = False,
    name_key: str = "slot",
    value_key: str = "value",
) -> Scorer:
    """`slot`: {slot: [hits, predicted, expected]}, of which F1, precision, recall and a table are made; `exact_match`.

    Slots are a JSON dict {name: value, or list of values} or a list of {name_key: …, value_key: …} or [name, value].
    Each value of the answer is a hit for at most one of the reference's under the same name. `types` and comparison are
    those of `json_fields`. An answer that holds no slots that can be read has none (`valid_slots` is False), and so has
    `{}` or `[]`.

    When scoring, raises ValueError where the reference holds none of these.
    """
    options = {"tolerance": checked_tolerance("slots", relative_tolerance), "day_first": day_first}
    inferred = comparison("inferred", **options)
    equal = {comparable_name(name): comparison(kind, **options) for name, kind in (types or {}).items()}

    def score(prediction: str, case: Case) -> Outcome:
        expected = _slots(case.reference, name_key, value_key)
        if expected is None:
            raise ValueError(
                f"slots: the reference is neither a JSON dict nor a list of {{{name_key!r}: …, {value_key!r}: …}} or "
                f"of [name, value]: {case.reference[:80]!r}"
            )
        found = _slots(prediction, name_key, value_key)
        predicted = found or {}
        counts = {}
        for name in sorted(expected | predicted):
            pairs = predicted.get(name, []), expected.get(name, [])
            counts[name] = [_hits(*pairs, equal.get(name, inferred)), *map(len, pairs)]
        is_exact = found is not None and all(len(set(row)) == 1 for row in counts.values())
        return {"slot": counts, "valid_slots": found is not None, "exact_match": is_exact}

    return score


def _slots(text: str, name_key: str, value_key: str) -> dict[str, list[Any]] | None:
    """Name -> values, of those that have a value; None where the text holds no slots."""
    found = parse_list_or_object(text)
    if found is None:
        return None
    pairs: list[tuple[Any, Any]] = []
    if isinstance(found, dict):
        for name, value in found.items():
            pairs += [(name, item) for item in (value if isinstance(value, list) else [value])]
    else:
        for item in found:
            if isinstance(item, Mapping) and name_key in item and value_key in item:
                pairs.append((item[name_key], item[value_key]))
            elif isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str):
                pairs.append((item[0], item[1]))
            else:
                return None
    slots: dict[str, list[Any]] = {}
    for name, value in pairs:
        if not is_missing(value):
            slots.setdefault(comparable_name(name), []).append(value)
    return slots


def _hits(predicted: list[Any], expected: list[Any], equal: Any) -> int:
    left = list(expected)
    for value in predicted:
        place = next((index for index, other in enumerate(left) if equal(value, other)), None)
        if place is not None:
            del left[place]
    return len(expected) - len(left)
