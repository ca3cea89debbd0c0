"""Values of Arrow as values of JSON: what the rows of Parquet, Arrow and data sets hold, whatever their types.

Dates and times become text (ISO 8601), a decimal column its digits, a map an object. What JSON has no word for (bytes,
durations, a decimal inside an object) stays what it is, and is refused where it would become text.
"""

import decimal
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from sft_jax.data.formats.values import MergedObject
from sft_jax.data.reading import RecordError

Converter = Callable[[Any], Any]


def column_values(column: Any, name: str, where: str) -> list:
    """The values of a column, one a row; NaN, which stands for a missing number, is null.

    Args:
        column: an array, or a chunked one.
        name: of the column, for errors.
        where: of the file, for errors.

    Raises:
        RecordError: it is of a type that rows cannot hold, or has values that Python cannot.
    """
    import pyarrow

    if pyarrow.types.is_time64(column.type) and column.type.unit == "ns":
        return [None if text is None else _without_zeros(text) for text in column.cast(pyarrow.string()).to_pylist()]
    convert = _of_key(column.type, f'{where}: "{name}"', _decimal_digits)
    try:
        values = column.to_pylist()
    except (OverflowError, pyarrow.ArrowInvalid) as error:  # a year after 9999, a time zone that nobody knows
        raise RecordError(
            f'{where}: "{name}": values of type {column.type} cannot be read ({error}). Store them as text.'
        ) from error
    return values if convert is None else list(map(convert, values))


def _of_key(kind: Any, where: str, of_decimal: Converter | None = None) -> Converter | None:
    """Converts what stands under a name, where NaN is a missing value; None if nothing is to be converted."""
    import pyarrow

    if pyarrow.types.is_floating(kind):
        shorten = _converter(kind, where)
        return lambda value: None if value is None or value != value else shorten(value) if shorten else value
    if pyarrow.types.is_decimal(kind):
        return of_decimal and _unless_null(of_decimal)
    return _converter(kind, where)


def _converter(kind: Any, where: str) -> Converter | None:
    """Converts values of a type; None if they are values of JSON already, or stay what they are."""
    import pyarrow

    types = pyarrow.types
    if types.is_union(kind):
        raise RecordError(f"{where}: values of type {kind} cannot be read. Store the column as JSON strings.")
    if types.is_float32(kind) or types.is_float16(kind):
        return _unless_null(_shortest_of_float32 if types.is_float32(kind) else _shortest_of_float16)
    if types.is_struct(kind):
        return _object_converter(kind, where)
    if types.is_map(kind):
        return _map_converter(kind, where)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _of_key(kind.value_type, where, _decimal_digits)
    if _is_list(kind):
        element = _converter(kind.value_type, where)
        return None if element is None else _unless_null(lambda values: list(map(element, values)))
    if types.is_date(kind) or types.is_timestamp(kind) or (types.is_time(kind) and kind != pyarrow.time64("ns")):
        return _unless_null(lambda value: value.isoformat())
    if isinstance(kind, pyarrow.UuidType):
        return _unless_null(str)
    return _converter(kind.storage_type, where) if isinstance(kind, pyarrow.BaseExtensionType) else None


def _is_list(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def _object_converter(kind: Any, where: str) -> Converter:
    converters = {field.name: found for field in kind if (found := _of_key(field.type, where)) is not None}

    def convert(value: dict) -> MergedObject:
        made = MergedObject(value)
        for key, converter in converters.items():
            made[key] = converter(made[key])
        return made

    return _unless_null(convert)


def _map_converter(kind: Any, where: str) -> Converter:
    """Pairs become an object if their keys can be its keys; else they stay pairs, which are refused as text."""
    of_item = _of_key(kind.item_type, where) or (lambda value: value)

    def convert(pairs: list[tuple]) -> dict | list[tuple]:
        made = {key: of_item(item) for key, item in pairs}
        return made if len(made) == len(pairs) and all(isinstance(key, str) for key in made) else pairs

    return _unless_null(convert)


def _unless_null(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)


def _decimal_digits(value: decimal.Decimal) -> str:
    return format(value, "f")


def _without_zeros(text: str) -> str:
    """12:30:00.500000000 -> 12:30:00.5, 12:30:00.000000000 -> 12:30:00."""
    return text.rstrip("0").removesuffix(".") if "." in text else text


@functools.lru_cache(maxsize=4096)
def _shortest_of_float32(value: float) -> float:
    """The number with the fewest digits that is stored so: 0.1, and not 0.10000000149011612."""
    return float(str(np.float32(value)))


@functools.lru_cache(maxsize=4096)
def _shortest_of_float16(value: float) -> float:
    return float(str(np.float16(value)))
