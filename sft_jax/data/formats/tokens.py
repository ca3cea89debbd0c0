"""Rows that are tokenized already: {"input_ids" or "tokens", and what is trained of them}.

That is one or more of "labels" (the ids themselves, -100 where not trained, not shifted), "weights", and masks of 0 and
1. Of several masks a token needs a 1 in each (as in TRL); labels, weights and masks must agree.
"""

import math
from collections.abc import Set

from sft_jax.data.conversations import TokenExample
from sft_jax.data.formats.values import kind
from sft_jax.data.reading import Reading, RecordError

FORM = '{"input_ids": [...], "labels": [...]}'

_IDS = ("input_ids", "tokens")
_MASKS = ("loss_mask", "completion_mask", "assistant_masks")
_TRAINED = ("labels", "weights", *_MASKS)
_NOT_TRAINED = -100


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return "input_ids" in columns or ("tokens" in columns and not columns.isdisjoint(_TRAINED))


def parse(fields: dict, where: str, reading: Reading) -> TokenExample:
    """The ids of a row and their weights.

    Raises:
        RecordError: nothing says what is trained, lengths differ, padding, labels that are not the ids, columns that
            disagree.
    """
    name = _only_one(fields, _IDS, where)
    ids = _list(fields, name, where)
    bad = next((i for i, value in enumerate(ids) if type(value) is not int or value < 0), None)
    if bad is not None:
        raise RecordError(f'{where}: "{name}"[{bad}] is {ids[bad]!r}, expected the id of a token.')
    if fields.get("attention_mask") is not None and 0 in _weights("attention_mask", fields, ids, where):
        raise RecordError(f'{where}: "attention_mask" has zeros, so the row is padded. Store it without padding.')
    given = {key: _weights(key, fields, ids, where) for key in _TRAINED if fields.get(key) is not None}
    if not given:
        names = ", ".join(f'"{key}"' for key in _TRAINED)
        raise RecordError(
            f'{where}: nothing says which tokens are trained. Give one of {names}; for all, "labels" '
            f'that are the same as "{name}".'
        )
    (first, weights), *others = _masks_combined(given).items()
    for other, found in others:
        for number, (one, two) in enumerate(zip(weights, found, strict=True)):
            if one != two:
                raise RecordError(f'{where}: "{first}" and "{other}" disagree at token {number}. Keep one of the two.')
    return TokenExample(ids, weights)


def _masks_combined(given: dict[str, list[float]]) -> dict[str, list[float]]:
    """The columns with one mask in place of several: the tokens at which all of them are 1."""
    masks = [name for name in _MASKS if name in given]
    if len(masks) < 2:
        return given
    rest = {name: weights for name, weights in given.items() if name not in masks}
    return rest | {'" and "'.join(masks): [min(column) for column in zip(*(given[m] for m in masks), strict=True)]}


def _only_one(fields: dict, names: tuple[str, ...], where: str) -> str:
    given = [name for name in names if fields.get(name) is not None]
    if len(given) != 1:
        got = "both" if given else "neither"
        raise RecordError(f"{where}: expected one of {', '.join(map(repr, names))}, got {got}.")
    return given[0]


def _list(fields: dict, name: str, where: str) -> list:
    value = fields[name]
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else kind(value)
        raise RecordError(f'{where}: "{name}": expected a list of numbers, got {got}.')
    return value


def _weights(name: str, fields: dict, ids: list[int], where: str) -> list[float]:
    values = _list(fields, name, where)
    if len(values) != len(ids):
        raise RecordError(f'{where}: "{name}" has {len(values)} entries for {len(ids)} tokens.')
    for number, value in enumerate(values):
        if problem := _problem(name, value, ids[number]):
            raise RecordError(f'{where}: "{name}"[{number}] is {value!r}, {problem}.')
    if name == "labels":
        return [float(value != _NOT_TRAINED) for value in values]
    return [float(value) for value in values]


def _problem(name: str, value: object, token: int) -> str:
    """Why a value cannot stand in a column; empty if it can."""
    if name == "labels":
        good = type(value) is int and value in (token, _NOT_TRAINED)
        return "" if good else f"expected the token itself, {token}, or {_NOT_TRAINED}; labels are not shifted"
    if name == "weights":
        good = type(value) in (int, float) and math.isfinite(value) and value >= 0
        return "" if good else "expected a number of at least 0"
    return "" if value in (0, 1) else "expected 0 or 1"
