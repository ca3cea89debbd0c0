"""Steps that repair text: what they change, and what they must leave alone."""

import pytest

from sft_jax.data.conversations import Segment, Segments
from sft_jax.data.records import Record
from sft_jax.data.texts import repair_mojibake

CASES = [  # (step, before, after)
    ("strip_whitespace", " \n yes \u3000\n", "yes"),
    ("strip_whitespace", "a  b\n c", "a  b\n c"),
    ("normalize_whitespace", "a\r\nb\rc  \n  d\t\n", "a\nb\nc\n  d\n"),
    ("normalize_whitespace", "a\u00a0b\u2009c", "a b c"),
    ("normalize_whitespace", "a\n\n\n\nb", "a\n\nb"),
    ("normalize_whitespace", "def f():\n    return 1", "def f():\n    return 1"),
    ("normalize_unicode", "cafe\u0301", "café"),
    ("normalize_unicode", "ﬁ ① Å", "ﬁ ① Å"),  # no compatibility forms: they would lose meaning
    ("remove_control_characters", "\ufeffa\x00b\x1b[0m\x7f\x85c\ufffe", "ab[0mc"),
    ("remove_control_characters", "a\tb\r\n👩\u200d🔬 שלום\u200f", "a\tb\r\n👩\u200d🔬 שלום\u200f"),
    ("fix_encoding", "cafÃ©", "café"),
    ("fix_encoding", "donâ€™t", "don’t"),
    ("fix_encoding", "plain", "plain"),
]


@pytest.mark.parametrize(("step", "before", "after"), CASES)
def test_text(one, step, before, after):
    assert one(before, step) == after


REPAIRED = ["naïve", "“quoted” – and…", "Привет, мир", "日本語", "👩‍🔬", "Ünïcödé", "été à Paris", "ﷺ"]


@pytest.mark.parametrize("text", REPAIRED)
def test_mojibake_is_repaired(text):
    latin = text.encode("utf-8").decode("latin-1")
    assert repair_mojibake(latin) == text
    assert repair_mojibake(latin.encode("utf-8").decode("latin-1")) == text  # broken twice


@pytest.mark.parametrize("text", ["donâ€™t", "Â£5"])
def test_windows_1252(text):
    assert repair_mojibake(text) == {"donâ€™t": "don’t", "Â£5": "£5"}[text]


RIGHT = [
    "café",
    "é",
    "MANHÃ…",
    "LIBERTÉ…",
    "été Ã©",  # read wrongly in part only: not proven
    "Ã",
    "日本語",
    "\u0080",
    "Â\u0085",  # would become a control character
]


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_right_stays(text):
    assert repair_mojibake(text) == text


def test_segments_follow_on_one_another(clean):
    record = Record("t:1", Segments((Segment(" a ", 0.0), Segment(" b ", 1.0))), {})
    (kept,), log = clean([record], "strip_whitespace")
    assert [part.text for part in kept.example.parts] == ["a ", " b"]
    assert log.changes == {("strip_whitespace", "whitespace at the ends removed"): 1}
