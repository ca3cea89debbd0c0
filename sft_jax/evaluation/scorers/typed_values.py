"""Values of fields and slots, compared by their type: dates in any common format, numbers, texts."""

import re
from collections.abc import Callable
from datetime import date, datetime
from fractions import Fraction
from typing import Any, Literal

from sft_jax.evaluation.json_answers import MISSING, comparable_value
from sft_jax.evaluation.scorers.numeric import read_number

FieldType = Literal["date", "number", "string", "inferred"]

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = re.compile(
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T ].*)?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})"
    rf"|(?:[a-z]+,?\s+)?\d{{1,2}}(?:st|nd|rd|th)?[\s-](?:of\s+)?{_MONTH},?[\s-]\d{{4}}"
    rf"|(?:[a-z]+,?\s+)?{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}})",
    re.IGNORECASE,
)
_LEADING_ZERO = re.compile(r"0\d")  # 00123 is a code and not a number


def comparison(kind: FieldType, *, tolerance: Fraction, day_first: bool = False) -> Callable[[Any, Any], bool]:
    """A function (answer's value, reference's value) -> whether they are equal.

    `date`: the same day; 03/04/2024 is in March, or with `day_first` in April. `number`: they differ by at most
    `tolerance` times the reference's; thousands separators and currencies are ignored. `string`: as
    `json_answers.comparable_fields`. `inferred`: a date or a number if the reference's value is written as one, else a
    string. A value that is not of the type is compared as a string.
    """

    def equal(answer: Any, reference: Any) -> bool:
        texts = comparable_value(answer), comparable_value(reference)
        if texts[0] == texts[1]:
            return True
        if kind in ("date", "inferred"):
            days = [_day(text, day_first) for text in texts]
            if days[1] is not None:
                return days[0] == days[1]
        if kind in ("number", "inferred"):
            numbers = [_number(text, kind == "number") for text in texts]
            if numbers[1] is not None:
                return numbers[0] is not None and abs(numbers[0] - numbers[1]) <= tolerance * abs(numbers[1])
        return False

    return equal


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: null, an empty text, "null", "none" or "N/A"."""
    return comparable_value(value) in MISSING


def _number(text: str, is_declared: bool) -> Fraction | None:
    return None if _LEADING_ZERO.match(text) and not is_declared else read_number(text)


def _day(text: str, day_first: bool) -> date | None:
    """The day that a text names in full, with its year, or None."""
    if not _DATE.fullmatch(text):
        return None
    from dateutil import parser  # slow to import

    # Year first where four digits begin: dateutil would read 2024-03-04 with day_first as the 3rd of April.
    is_iso = text[:4].isdigit()
    text = re.split("[t ]", text)[0] if is_iso else text  # the time of day, and whatever stands for its zone
    try:
        return parser.parse(
            re.sub(r"\bof\b", "", text), dayfirst=day_first and not is_iso, yearfirst=is_iso, default=datetime(1, 1, 1)
        ).date()
    except (ValueError, OverflowError):
        return None
