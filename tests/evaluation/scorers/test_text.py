"""Exact match and regular expressions: tables."""

import pytest

from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.scorers import bounded_regex, make_scorer
from tests.evaluation.scored import score

NO_PUNCTUATION = {"ignore_punctuation": True}
SQUAD = {"ignore_case": True, "ignore_punctuation": True, "ignore_articles": True}


@pytest.mark.parametrize(
    ("answer", "reference", "options", "equal"),
    [
        ("Paris", " Paris\n", {}, True),
        ("a  b", "a b", {}, True),
        ("paris", "Paris", {}, False),
        ("", "", {}, True),
        ("Paris.", "Paris", {}, False),
        ("paris", "Paris", {"ignore_case": True}, True),
        ("STRASSE", "Straße", {"ignore_case": True}, True),
        ("«Paris», it is!", "Paris it is", NO_PUNCTUATION, True),
        ("paris", "Paris", NO_PUNCTUATION, False),
        ("the Eiffel Tower", "Eiffel Tower", {"ignore_articles": True}, True),
        ("theory", "ory", {"ignore_articles": True}, False),
        ("The  Eiffel-Tower!", "an eiffeltower", SQUAD, True),
        ("ﬁne", "fine", {}, False),
        ("ﬁne", "fine", {"unicode_form": "NFKC"}, True),
        ("e\u0301", "\u00e9", {}, False),
        ("e\u0301", "\u00e9", {"unicode_form": "NFC"}, True),
    ],
)
def test_exact_match(answer, reference, options, equal):
    assert score("exact_match", answer, reference, **options) == {"exact_match": equal}


ANSWER_LINE = r"answer is (\w+)"


@pytest.mark.parametrize(
    ("answer", "reference", "options", "exact", "matches"),
    [
        ("The answer is B", "B", {"pattern": ANSWER_LINE}, True, True),
        ("The answer is b", "B", {"pattern": ANSWER_LINE}, False, True),
        ("The answer is b", "B", {"pattern": ANSWER_LINE, "ignore_case": True}, True, True),
        ("B", "B", {"pattern": ANSWER_LINE}, False, False),
        ("The answer is A. No, the answer is B", "B", {"pattern": ANSWER_LINE}, False, True),
        ("The answer is A. No, the answer is B", "B", {"pattern": ANSWER_LINE, "take": "last"}, True, True),
        ("answer is B", "Thus the answer is B, see above", {"pattern": ANSWER_LINE}, True, True),
        ("code 12-34", "12-34", {"pattern": r"\d+-\d+"}, True, True),
        ("code 12-34", "34", {"pattern": r"(\d+)-(\d+)", "group": 2}, True, True),
        ("code 12-34", "34", {"pattern": r"(\d+)-(?P<low>\d+)", "group": "low"}, True, True),
        ("code 12-34", "12-34", {"pattern": r"(\d+)-(\d+)", "group": 0}, True, True),
        ("no", "", {"pattern": "(a)?no"}, True, True),  # a group that takes no part is empty
    ],
)
def test_regex(answer, reference, options, exact, matches):
    expected = {"exact_match": exact, "matches": matches, "exceeded": False}
    assert score("regex", answer, reference, **options) == expected


def test_a_pattern_alone_is_not_compared():
    date = {"pattern": r"^\d{4}-\d\d-\d\d$", "compare": False}
    assert score("regex", "2024-01-31", "anything", **date) == {"matches": True, "exceeded": False}
    assert score("regex", "soon", "anything", **date) == {"matches": False, "exceeded": False}


def test_an_answer_that_takes_too_many_steps_is_wrong_and_counted_apart(monkeypatch):
    monkeypatch.setattr(bounded_regex, "MOST_STEPS", 100)
    outcome = score("regex", "a" * 200, "b", pattern="(a+)+b")
    assert outcome == {"exact_match": False, "matches": False, "exceeded": True}
    assert higher_is_better("exceeded") is False
    assert score("regex", "b", "b", pattern="(a+)+b")["exceeded"] is False
    with pytest.raises(ValueError, match=r"row 0: regex: in the reference .* took more than 100 steps"):
        score("regex", "b", "a" * 200, pattern="(a+)+b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "(a"}, "'\\(a' is no regular expression"),
        ({"pattern": "(a)", "group": 2}, "has no group 2; it has 1 groups"),
        ({"pattern": "(a)", "group": "b"}, "has no group 'b'"),
        ({}, "needs the option 'pattern'"),
        ({"pattern": r"(a)\1"}, r"regex: '\(a\)\\\\1' is not taken: back references"),
        ({"pattern": "a", "take": "all"}, "'take' of scorer 'regex' must be one of 'first', 'last', got 'all'"),
        ({"pattern": 3}, "'pattern' of scorer 'regex' must be text, got 3"),
    ],
)
def test_options_of_regex_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        make_scorer("regex", options)
