"""Numbers in answers: which one is meant, and whether it equals the reference's.

`read_number` is also how `json_fields` compares numbers.
"""

import re
from fractions import Fraction
from typing import Literal

from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer

Percent = Literal["ignore", "hundredth"]

MOST_CHARACTERS = 1_000  # Python itself reads no more than 4,300 digits
_CURRENCY = r"(?:US\$|[$€£¥₹]|(?:USD|EUR|GBP|JPY|CHF|INR)\b)"
_DIGITS = {
    ".": r"(?:\d{1,3}(?:[,'’\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+",
    ",": r"(?:\d{1,3}(?:[.'’\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:,\d+)?|,\d+",
}


def numeric(
    *,
    marker: str = "",
    marker_required: bool = True,
    relative_tolerance: float = 0.0,
    percent: Percent = "ignore",
    decimal_comma: bool = False,
) -> Scorer:
    """The last number of the answer, or the one after a marker, against the reference's.

    `has_number`: there is one. `exact_match`: it differs from the reference's by at most `relative_tolerance` of that;
    numbers are compared as fractions, without rounding.

    Read are thousands separators, decimals, signs, exponents, fractions (3/4, 1 1/2), and currencies, which are
    ignored. A percent sign is ignored too (45 % is 45), or divides by a hundred (`percent="hundredth"`: 45 % is 0.45).
    With `decimal_comma`, 1.234,5 is read as 1,234.5 is without.

    With `marker="####"` this is the convention of GSM8K (Cobbe et al. 2021): the line behind the last marker counts, in
    the answer and in the reference. It must say one number: "#### 12 or 13" says none. An answer without a marker has
    no number; with `marker_required=False` its last one counts. A reference without it means its last number.

    Raises:
        ValueError: a tolerance outside [0, 1]; when scoring, a reference without a number, or with several behind the
            marker.
    """
    tolerance = checked_tolerance("numeric", relative_tolerance)
    options = {"percent": percent, "decimal_comma": decimal_comma}

    def found_in(text: str, required: bool) -> Fraction | None:
        if marker and marker in text:
            line = text.rpartition(marker)[2].strip().partition("\n")[0]
            said = set(read_numbers(line, **options))
            return said.pop() if len(said) == 1 else None
        numbers = [] if marker and required else read_numbers(text, **options)
        return numbers[-1] if numbers else None

    def score(prediction: str, case: Case) -> Outcome:
        expected = found_in(case.reference, required=False)
        if expected is None:
            raise ValueError(f"numeric: the reference has no number, or not one alone: {case.reference[:80]!r}")
        found = found_in(prediction, required=marker_required)
        is_equal = found is not None and abs(found - expected) <= tolerance * abs(expected)
        return {"exact_match": is_equal, "has_number": found is not None}

    return score


def checked_tolerance(scorer: str, relative_tolerance: float) -> Fraction:
    """The tolerance as a fraction; raises ValueError where it is not in [0, 1]."""
    if not 0 <= relative_tolerance <= 1:
        raise ValueError(f"{scorer}: relative_tolerance must lie in [0, 1], got {relative_tolerance}")
    return Fraction(relative_tolerance)


def read_numbers(text: str, *, percent: Percent = "ignore", decimal_comma: bool = False) -> list[Fraction]:
    """All numbers in a text, in their order.

    A minus sign belongs to a number unless a digit, a letter or a bracket stands before it (`5-3` is 5 and 3).
    """
    matches = _pattern("," if decimal_comma else ".").finditer(text)
    values = (_value(match, percent, "," if decimal_comma else ".") for match in matches)
    return [value for value in values if value is not None]


def read_number(text: str, *, percent: Percent = "ignore", decimal_comma: bool = False) -> Fraction | None:
    """The number that a text is as a whole, or None."""
    mark = "," if decimal_comma else "."
    match = _pattern(mark).fullmatch(text.strip())
    return None if match is None else _value(match, percent, mark)


def _pattern(mark: str) -> re.Pattern[str]:
    digits = _DIGITS[mark]
    return re.compile(
        rf"(?P<sign>(?<![\w)\]])[-−+]\s?)?(?:{_CURRENCY}\s?(?P<inner>[-−])?)?"
        rf"(?P<number>{digits})(?P<exponent>[eE][-+]?\d{{1,3}}(?!\w))?"
        rf"(?:(?P<whole> \d+)?\s?/\s?(?P<divisor>\d+)(?![\d/]))?"
        rf"(?:\s?(?P<percent>%|percent\b))?(?:\s?{_CURRENCY})?",
        re.IGNORECASE,
    )


def _value(match: re.Match[str], percent: Percent, mark: str) -> Fraction | None:
    """The number of a match; None for a division by zero, and for a run of digits that is no number any more."""
    if len(match[0]) > MOST_CHARACTERS:
        return None
    plain = re.sub(rf"[^\d{re.escape(mark)}]", "", match["number"]).replace(mark, ".")
    value = Fraction(plain + (match["exponent"] or ""))
    if match["divisor"]:
        divisor = int(match["divisor"])
        if divisor == 0:
            return None
        # "1 1/2": the first number is the whole part.
        value = value + Fraction(int(match["whole"]), divisor) if match["whole"] else value / divisor
    if match["percent"] and percent == "hundredth":
        value /= 100
    is_negative = (match["sign"] or match["inner"] or "").strip() in ("-", "−")
    return -value if is_negative else value
