"""Checks of values that all formats share: text that can be encoded, numbers that can be weights, valid JSON."""

import json
import math
from collections.abc import Collection, Iterator, Set
from typing import Any, NoReturn

from sft_jax.data.reading import Reading, RecordError


class MergedObject(dict):
    """An object of a column in which all objects have the same keys, as Arrow stores them.

    A key that is null may be one that this row did not have, and other rows have.
    """


_KINDS = {
    MergedObject: "an object",
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a string",
    bool: "a boolean",
    type(None): "null",
    int: "a number",
    float: "a number",
    bytes: "bytes",
}


def kind(value: object) -> str:
    """What a value is, in the words of JSON."""
    return _KINDS.get(type(value)) or f"a {type(value).__name__}"


def checked_text(text: object, where: str) -> str:
    """The text itself; JSON can spell half a character (a lone surrogate), which no tokenizer takes.

    Raises:
        RecordError: not a string, or one with a lone surrogate.
    """
    if not isinstance(text, str):
        raise RecordError(f"{where}: expected a string, got {kind(text)}.")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{where}: character {error.start + 1} is a lone surrogate, which is not text. Repair the escape."
        ) from error
    return text


def weight_of(value: object, where: str) -> float:
    """A weight.

    Raises:
        RecordError: not a finite number of at least 0.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if not good:
        got = repr(value) if isinstance(value, int | float) else kind(value)
        raise RecordError(f"{where}: expected a weight, a number of at least 0, got {got}.")
    return float(value)


def flag_of(value: object, where: str) -> float:
    """1 for true, 0 for false.

    Raises:
        RecordError: neither.
    """
    if not isinstance(value, bool):
        raise RecordError(f"{where}: expected true or false, got {kind(value)}.")
    return float(value)


def own_weight(item: dict, where: str) -> float | None:
    """The weight that a turn, or a part of one, asks for by "weight" or by "train"; None if by neither.

    Raises:
        RecordError: by both, or it is no weight.
    """
    weight, train = item.get("weight"), item.get("train")
    if weight is not None and train is not None:
        raise RecordError(f'{where}: has both "weight" and "train". Keep one of the two.')
    if train is not None:
        return flag_of(train, f'{where}: "train"')
    return None if weight is None else weight_of(weight, f'{where}: "weight"')


def without_ignored(item: dict, reading: Reading, kept: Set[str] = frozenset()) -> dict:
    """The item without the keys that the config leaves out, but for those of `kept`, which it has to have."""
    lost = set(reading.ignore) - kept
    return {key: value for key, value in item.items() if key not in lost} if lost else item


def refuse_lost(item: dict, known: Set[str], what: str, where: str) -> None:
    """Refuses keys that nobody reads (see `without_ignored`); null and empty values are nothing.

    Raises:
        RecordError: names them.
    """
    lost = [key for key in item if key not in known]
    lost = sorted(key for key in lost if item[key] not in (None, [], {}, ""))
    if lost:
        names = ", ".join(map(repr, lost))
        raise RecordError(
            f"{where}: {names} would be lost: a {what} has {', '.join(sorted(known))}. Put it into the text, remove "
            f'it, or leave it out by --config.data.reading.ignore="({names},)".'
        )


def number_of(value: object, where: str) -> int:
    """A whole number of at least 0.

    Raises:
        RecordError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        got = repr(value) if isinstance(value, int | float) else kind(value)
        raise RecordError(f"{where}: expected a whole number of at least 0, got {got}.")
    return value


def json_text(value: object, where: str) -> str:
    """A value as JSON text.

    Raises:
        RecordError: JSON cannot say it: bytes, infinity, a decimal; or a null of which nobody knows whether the row had
            it; or text with a lone surrogate.
    """
    _check_json(value, where)
    try:
        return checked_text(json.dumps(value, ensure_ascii=False), where)
    except RecursionError as error:
        raise RecordError(f"{where}: is nested too deeply.") from error


def _check_json(value: object, where: str) -> None:
    for found in _parts(value):
        if isinstance(found, MergedObject):
            refuse_merged_null(found, where)
        if got := _unsaid(found):
            raise RecordError(f"{where}: holds {got}, which is no value of JSON. Store it as text, or as a number.")


def no_json(value: object) -> str:
    """The first that a value holds and JSON has no word for, for people: "bytes"; empty where it can say all."""
    return next(filter(None, map(_unsaid, _parts(value))), "")


def _parts(value: object) -> Iterator[object]:
    """A value and all that it holds."""
    left = [value]
    while left:
        found = left.pop()
        yield found
        if isinstance(found, dict):
            left.extend(found.values())
        elif isinstance(found, list):
            left.extend(found)


def _unsaid(value: object) -> str:
    """What a value is, where it is none of JSON; what it holds is not looked at."""
    if value is None or isinstance(value, str | int | dict | list):
        return ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else repr(value)
    return "a pair of a map whose keys are not all texts of their own" if type(value) is tuple else kind(value)


def refuse_merged_null(value: MergedObject, where: str, keys: Collection[str] | None = None) -> None:
    """Refuses nulls that Arrow may have put into an object.

    Args:
        value: the object.
        where: stands in errors.
        keys: those that must not be null; None: none of its keys.

    Raises:
        RecordError: names the key.
    """
    null = next((key for key, inner in value.items() if inner is None and (keys is None or key in keys)), None)
    if null is not None:
        raise RecordError(
            f"{where}: {null!r} is null in an object of a Parquet or Arrow column, where null also stands for every "
            "key that only other rows have; what this row had cannot be told. Store the column as JSON strings."
        )


def list_of(value: object, where: str, what: str) -> list:
    """A list that is not empty, given as such or as JSON text, since the cells of a table cannot hold lists.

    Args:
        value: the list or the text.
        where: the file, row and column, for errors.
        what: what it is a list of, for errors.

    Raises:
        RecordError: it is none.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = decode_json(value, where, f"a list of {what}")
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else kind(value)
        raise RecordError(f"{where}: expected a list of {what}, got {got}.")
    return value


def decode_json(text: str, where: str, expected: str) -> Any:
    """The value that a JSON text spells; NaN and infinity, which JSON does not have, and keys given twice are refused.

    Raises:
        RecordError: not valid JSON.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise RecordError(
            f"{where}: not valid JSON ({line}column {error.colno}: {error.msg}). Expected {expected}."
        ) from error
    except ValueError as error:  # NaN, a key given twice, a number of thousands of digits
        raise RecordError(f"{where}: not valid JSON ({error}). Expected {expected}.") from error
    except RecursionError as error:
        raise RecordError(f"{where}: the JSON is nested too deeply. Expected {expected}.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands in an object twice, and one of its values would be lost")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null or a number")


def required(fields: dict, key: str, where: str, form: str) -> Any:
    """The value of a key that must be there and not null.

    Raises:
        RecordError: it is missing.
    """
    value = fields.get(key)
    if value is None:
        raise RecordError(f'{where}: "{key}" is missing. Expected {form}.')
    return value


# Made once: to make one takes as long as to decode a row.
_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object)
