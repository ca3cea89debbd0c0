"""Hashes of records: equal where the texts are that make them the same, and nowhere else."""

import numpy as np
import pytest

from sft_jax.data.tokenized.record_keys import KEYS, NOTHING, RecordKeys, text_key
from sft_jax.data.views import NO_TEMPLATE, PromptTemplate, View

TEMPLATE = PromptTemplate("Classify:", "Intent:")


def view(asked="Where is it?", *answers, system="", question=None):
    return View("a:1", system, asked, asked if question is None else question, answers, "")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (view("q", "a"), view(" q\n", "a "), {*KEYS}),
        (view("q", "a"), view("q", "b"), {"prompts", "mains", "questions"}),
        (view("q", "x", "a"), view("q", "a"), {"prompts", "answers", "mains", "questions"}),
        (view("q", "a", system="s"), view("q", "a"), {"answers", "mains", "questions"}),
        (view("p\nq", "a", question="q"), view("q", "a"), {"answers", "questions"}),
        (view("Classify: red\nIntent:", "a"), view("red", "a"), {*KEYS}),
        (view("ab", "c"), view("a", "bc"), set()),  # texts are told apart
        (view("a", system="b"), view("b", system="a"), {"answers"}),
    ],
)
def test_what_is_equal(one, other, equal):
    first, second = (RecordKeys.of([each], TEMPLATE) for each in (one, other))
    assert {name for name in KEYS if getattr(first, name) == getattr(second, name)} == equal


def test_nothing_has_no_hash():
    keys = RecordKeys.of([view("", "text"), view(" ", ""), view("q")], NO_TEMPLATE)
    assert (keys.prompts == NOTHING).tolist() == [True, True, False]
    assert (keys.questions == NOTHING).tolist() == [True, True, False]
    assert (keys.mains == NOTHING).tolist() == [False, True, False]
    assert keys.mains[0] == text_key("text")


def test_of_no_records():
    keys = RecordKeys.of([], NO_TEMPLATE)
    assert len(keys) == 0
    assert all(getattr(keys, name).dtype == np.uint64 for name in KEYS)
