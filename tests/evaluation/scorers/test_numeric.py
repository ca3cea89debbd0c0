"""Numbers in answers: tables."""

from fractions import Fraction

import pytest

from sft_jax.evaluation.scorers import make_scorer
from sft_jax.evaluation.scorers.numeric import read_number, read_numbers
from tests.evaluation.scored import score


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("There are 12 apples and 3.5 pears.", [12, "3.5"]),
        ("1,234,567.5", ["1234567.5"]),
        ("1,23", [1, 23]),  # no thousands separator
        ("12,345,6", [12345, 6]),
        ("1'000 and 2\u202f000 and 3\u00a0000", [1000, 2000, 3000]),
        ("$1,234.50, €20, 20 EUR, US$5, £.5", ["1234.5", 20, 20, 5, "0.5"]),
        ("-5, −5, +5, -$5, $-5", [-5, -5, 5, -5, -5]),
        ("5-3=2", [5, 3, 2]),
        ("(5)-3", [5, 3]),
        ("1e3, 2.5E-2", [1000, "0.025"]),
        ("3/4 and 1 1/2 and -1 1/2", ["3/4", "3/2", "-3/2"]),
        ("1/0", []),
        ("45% or 45 percent", [45, 45]),
        ("12.", [12]),
        ("It is 2024-01-31", [2024, 1, 31]),
        ("none", []),
        ("x" * 10_000, []),
        ("1" * 10_000 + " or 2", [2]),  # a model that repeats itself
        ("1," * 10_000, [1] * 10_000),
    ],
)
def test_numbers_that_are_read(text, numbers):
    assert read_numbers(text) == [Fraction(number) for number in numbers]


@pytest.mark.parametrize(
    ("text", "options", "number"),
    [
        ("45%", {"percent": "hundredth"}, "0.45"),
        ("1.234,5", {"decimal_comma": True}, "1234.5"),
        ("1.234", {"decimal_comma": True}, 1234),
        ("1.234", {}, "1.234"),
        (" $12 ", {}, 12),
        ("12 apples", {}, None),
        ("", {}, None),
    ],
)
def test_a_text_that_is_one_number(text, options, number):
    assert read_number(text, **options) == (None if number is None else Fraction(number))


GSM8K = {"marker": "####"}
REFERENCE = "She has 3 * 4 = <<3*4=12>>12 and 60 more.\n#### 72"


@pytest.mark.parametrize(
    ("answer", "reference", "options", "exact", "has_number"),
    [
        ("So it is 72.", "72", {}, True, True),
        ("72 of 100", "72", {}, False, True),
        ("no idea", "72", {}, False, False),
        ("", "72", {}, False, False),
        ("$1,000.00", "1000", {}, True, True),
        ("0.75", "3/4", {}, True, True),
        ("0.333", "1/3", {}, False, True),
        ("0.333", "1/3", {"relative_tolerance": 0.01}, True, True),
        ("-99", "-100", {"relative_tolerance": 0.01}, True, True),
        ("98.9", "100", {"relative_tolerance": 0.01}, False, True),
        ("0.1", "0.1", {}, True, True),
        ("45%", "45", {}, True, True),
        ("45%", "0.45", {}, False, True),
        ("45%", "0.45", {"percent": "hundredth"}, True, True),
        ("1.000,5", "1000,50", {"decimal_comma": True}, True, True),
        # GSM8K: what follows the last marker.
        ("12 + 60\n#### 72", REFERENCE, GSM8K, True, True),
        ("#### 71 no #### $72.00 as I said", REFERENCE, GSM8K, True, True),
        ("####\n72", REFERENCE, GSM8K, True, True),
        ("#### 72\nThat was step 5.", REFERENCE, GSM8K, True, True),
        ("#### 72 = 72.0", REFERENCE, GSM8K, True, True),
        ("#### 1,234.0", "#### 1234", GSM8K, True, True),
        ("#### 0.5", "#### 1/2", GSM8K, True, True),
        ("#### 12 or 13", "#### 12", GSM8K, False, False),
        ("#### 50%", "#### 0.5", GSM8K, False, True),
        ("12 + 60 = 72", REFERENCE, GSM8K, False, False),
        ("12 + 60 = 72", REFERENCE, GSM8K | {"marker_required": False}, True, True),
        ("#### seventy-two", REFERENCE, GSM8K, False, False),
        ("#### 72", "72", GSM8K, True, True),
    ],
)
def test_numeric(answer, reference, options, exact, has_number):
    assert score("numeric", answer, reference, **options) == {"exact_match": exact, "has_number": has_number}


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="row 0: numeric: the reference has no number, or not one alone: 'many'"):
        score("numeric", "5", "many")
    with pytest.raises(ValueError, match="not one alone: '#### 12 or 13'"):
        score("numeric", "#### 12", "#### 12 or 13", **GSM8K)
    with pytest.raises(ValueError, match=r"relative_tolerance must lie in \[0, 1\], got -1"):
        make_scorer("numeric", {"relative_tolerance": -1})
    with pytest.raises(ValueError, match="'percent' of scorer 'numeric' must be one of 'ignore', 'hundredth'"):
        make_scorer("numeric", {"percent": "divide"})
