"""Regular expressions in bounded time: what `re` finds, and what `re` does not end."""

import re

import numpy as np
import pytest

from sft_jax.evaluation.scorers import bounded_regex
from sft_jax.evaluation.scorers.bounded_regex import BoundedPattern, ExceededError, check_repeats_once

PATTERNS = [
    *("a|ab", "(a|b)*c", "a+?b", "(?:ab|ba)+", "^a$", r"(?m)^b.?$", "(?i)AB+", "(?i:a)b", r"\bab\b", "a{2,3}?b"),
    *("(a{2}|b){2,}", "(?<=a)b", "a(?!b)", "(?<!a)(?=b|c).", "(?P<name>[^a]+)a", "x*", "x*?", "(a+)+b", "(a|aa)+$"),
    *("((a)|b)+", "a??b", "(?s).*b", "a.b", "[ab]{0,2}c?", "(a?b)??c", r"(?a:\w)+", r"é|\w", r"answer: (\S+)|b"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_finds_what_re_finds(pattern):
    """In texts of few letters, which match in many ways; every group."""
    rng, compiled = np.random.default_rng(0), re.compile(pattern)
    texts = ["".join(rng.choice(list("aabbcAx é\n"), rng.integers(0, 9))) for _ in range(60)]
    for group in range(compiled.groups + 1):
        bounded = BoundedPattern(pattern, group)
        for text in texts:
            expected = [match.group(group) or "" for match in compiled.finditer(text)]
            assert list(bounded.found(text)) == expected, text
            assert bounded.search(text) == (compiled.search(text) is not None)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a|aa)+b", "(?:a+a+)+b"])
def test_a_search_that_re_does_not_end(pattern):
    """`re` tries more than 2^200 ways; here each place of the program is tried once at each place of the text."""
    assert not BoundedPattern(pattern).search("a" * 200 + "c")


def test_steps_are_bounded(monkeypatch):
    """(a+)b has 7 instructions at most; 50 letters have 51 places."""
    monkeypatch.setattr(bounded_regex, "MOST_STEPS", 7 * 51)
    assert not BoundedPattern("(a+)b", 1).search("a" * 50)
    with pytest.raises(ExceededError, match=r"'\(a\+\)b' took more than 357 steps"):
        BoundedPattern("(a+)b", 1).search("a" * 5_000)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a*)*", "what it repeats may be nothing; write it so that it is never empty"),
        (r"(a)\1", "back references, atomic groups and possessive repeats are not matched here"),
        ("a*+", "back references, atomic groups"),
        ("(?>a)", "back references, atomic groups"),
        ("(?=a*)b", "a lookaround must not repeat, nor hold the group that is taken"),
        ("(?=(a))b", "a lookaround must not repeat, nor hold the group that is taken"),
        ("((a{99}){99}){99}", "its repeats make more than 10,000 instructions; repeat less often"),
        ("(a", "is no regular expression: missing"),
    ],
)
def test_what_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        BoundedPattern(pattern, 1)


@pytest.mark.parametrize("pattern", ["", "^x-.*$", "a|b", r"^\d{4}-\d{2}$", "[ab]*", "^(x-|y)z"])
def test_patterns_that_re_ends_soon(pattern):
    check_repeats_once(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+", "a*b*", "(a|b)*", "(ab)+", "(?:a|b{2,})c*"])
def test_patterns_that_re_may_not_end_soon(pattern):
    with pytest.raises(ValueError, match="it may repeat once, a single character"):
        check_repeats_once(pattern)


def test_no_expression_is_no_name_either():
    with pytest.raises(ValueError, match="'\\(' is no regular expression"):
        check_repeats_once("(")
