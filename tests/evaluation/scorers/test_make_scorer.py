"""Scorers by name, functions of the user's, and their options."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from sft_jax.evaluation.scorers import SCORERS, Case, make_scorer, needs_reference
from sft_jax.evaluation.scorers.options import check_options
from sft_jax.evaluation.scoring import aggregate, check_cases, score_examples

MODULE = """
def same(answer, case, *, ignore_case: bool = False):
    texts = answer, case.row["answer"]
    return {"same": len({text.lower() if ignore_case else text for text in texts}) == 1}

def fails(answer, case):
    return {"share": 1 / len(answer)}

def gives(answer, case, *, what="text"):
    return RETURNED[what]

def wants_three(answer, case, more):
    return {}

RETURNED = {}
CONSTANT = 3
"""


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A module of the user's; returns the module."""
    (tmp_path / "users_scorers.py").write_text(MODULE)
    (tmp_path / "needs_other.py").write_text("import there_is_no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    module = importlib.import_module("users_scorers")
    yield module
    import sys

    del sys.modules["users_scorers"]


ROW = Case("x:1", "reference", {"answer": "Yes"})


def test_a_users_function_gets_answer_case_and_options(users):
    assert make_scorer("users_scorers:same")("Yes", ROW) == {"same": True}
    assert make_scorer("users_scorers:same")("yes", ROW) == {"same": False}
    scorer = make_scorer("users_scorers:same", {"ignore_case": True})
    assert aggregate(score_examples(scorer, ["yes", "no"], [ROW, ROW]), seed=0)["same"].value == 0.5


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("blue", {}, "no scorer named 'blue'; there are bleu, chrf, .*, and functions of your own: package.module:f"),
        ("users_scorers:", {}, "expected package.module:function"),
        ("no_such_module:f", {}, "there is no module 'no_such_module'"),
        ("users_scorers.deeper:f", {}, "there is no module 'users_scorers.deeper'"),
        ("needs_other:f", {}, "its module imports 'there_is_no_such_package', which is not installed"),
        ("users_scorers:sam", {}, "has no function 'sam'; it has same, fails, gives, wants_three"),
        ("users_scorers:CONSTANT", {}, "'CONSTANT' of users_scorers is no function, but int"),
        ("users_scorers:wants_three", {}, r"must take \(answer, case\): missing a required argument: 'more'"),
        ("users_scorers:same", {"case": True}, "has no option 'case'; its options: ignore_case"),
        ("users_scorers:same", {"ignore_case": "no"}, "must be true or false, got 'no'"),
        ("users_scorers:fails", {"a": 1}, "has no option 'a'; its options: none"),
        ("valid_json", {"strict": True}, "scorer 'valid_json' has no option 'strict'; its options: allow_fence"),
    ],
)
def test_what_is_refused_when_a_scorer_is_made(users, spec, options, message):
    with pytest.raises(ValueError, match=message):
        make_scorer(spec, options)


def test_what_a_users_function_raises_is_the_cause(users):
    scorer = make_scorer("users_scorers:fails")
    message = "'users_scorers:fails' raised ZeroDivisionError for row x:1: division"
    with pytest.raises(ValueError, match=message) as caught:
        scorer("", ROW)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ValueError, match=r"row x:1: .*ZeroDivisionError"):  # before anything is generated
        check_cases(scorer, [ROW])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (True, r"an outcome is a dict, got True \(bool\)"),
        (None, r"an outcome is a dict, got None \(NoneType\)"),
        ({}, "an outcome needs at least one column"),
        ({3: True}, "names of columns are text, got 3"),
        ({"a": math.nan}, "column 'a' must be a finite plain bool, .*, got nan"),
        ({"a": np.bool_(True)}, r"column 'a' must be .*bool"),
        ({"a": np.float32(1)}, r"column 'a' must be .*float32"),
        ({"a": []}, "column 'a' must be"),
        ({"a": {"b": 3}}, "column 'a' must be"),
        ({"a": {"b": [1, 2.5]}}, "column 'a' must be"),
    ],
)
def test_what_is_no_outcome_is_an_error_with_the_row(users, returned, message):
    users.RETURNED["text"] = returned
    with pytest.raises(ValueError, match=f"'users_scorers:gives' returned no outcome for row x:1: {message}"):
        make_scorer("users_scorers:gives")("a", ROW)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"a": 3}, "'a' is a count of no ratio in RATIOS"),
        ({"a": "text"}, "'a' is text of no metric; labels are columns named predicted_label and expected_label"),
        ({"a": [1, 2]}, "'a' has sums of no metric in CORPUS, which has bleu, chrf, chrf_plus_plus"),
        ({"a": {"b": [1]}}, r"'a': expected lists of 2 or of 3 counts, got lengths \[1\]"),
        ({"a": {"b": [1, 2], "c": [1, 2, 3]}}, r"got lengths \[2, 3\]"),
        ({"a": 1.5}, r"a: values of a mean must lie in \[0, 1\]"),
    ],
)
def test_outcomes_of_no_metric_are_known_before_anything_is_generated(users, returned, message):
    users.RETURNED["text"] = returned
    with pytest.raises(ValueError, match=message):
        check_cases(make_scorer("users_scorers:gives"), [ROW])


def test_options_are_checked_by_their_types():
    def factory(*, names: Sequence[str] | None = None, share: float = 0.5, count: int = 1):
        """A scorer's options."""

    for good in ({"names": None}, {"names": ["a"]}, {"names": ("a",)}, {"share": 1}, {"count": 3}):
        check_options("x", factory, good)
    for wrong in ({"names": "a"}, {"names": [1]}, {"share": True}, {"share": "1"}, {"count": 1.0}, {"count": True}):
        with pytest.raises(ValueError, match=f"option '{next(iter(wrong))}' of scorer 'x' must be"):
            check_options("x", factory, wrong)


OPTIONS = {"repetition": {"order": 1}, "regex": {"pattern": "a"}, "json_schema": {"schema": {}}}
OPTIONS["length"] = {"least": 1, "most": 8}
ROWS = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


WITHOUT_REFERENCE = {
    **{name: OPTIONS.get(name, {}) for name in SCORERS if not needs_reference(name)},
    "regex": {"pattern": "a", "compare": False},
}


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_a_scorer_that_needs_no_reference_says_the_same_with_any(name):
    scorer = make_scorer(name, WITHOUT_REFERENCE[name])
    for answer in ("{}", "a", ""):
        outcomes = [scorer(answer, Case("1", reference, ROWS)) for reference in ("", "{}", "a")]
        assert outcomes[0] == outcomes[1] == outcomes[2]


def test_which_scorers_need_a_reference():
    assert set(WITHOUT_REFERENCE) == {"valid_json", "json_schema", "instructions", "length", "repetition", "regex"}
    assert not needs_reference("regex", WITHOUT_REFERENCE["regex"])
    assert needs_reference("regex", {"pattern": "a"})
    assert needs_reference("package.module:function")


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_makes_up_metrics_and_survives_json(name):
    """Of answers that are right, wrong and empty; and a right one is never worse than a wrong one."""
    reference = '{"a": 1}'
    cases = [Case(str(number), reference, ROWS) for number in range(4)]
    scorer = make_scorer(name, OPTIONS.get(name, {}))
    check_cases(scorer, cases)
    outcomes = score_examples(scorer, [reference, reference, "so, what", ""], cases)
    scores = aggregate(outcomes, seed=0)
    assert scores
    assert aggregate(json.loads(json.dumps(outcomes)), seed=0) == scores
    if name not in ("instructions", "regex", "repetition"):
        right = aggregate(score_examples(scorer, [reference] * 4, cases), seed=0)
        assert all(right[metric].value in (pytest.approx(1), pytest.approx(100)) for metric in scores)
