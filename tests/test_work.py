"""Counted work: what takes too many steps is ended, wherever it is, and what does not is let through."""

import sys

import pytest

from tests import work


def lines(count):
    done = 0
    while done < count:
        done += 1
    return done


def calls(count):
    return [len(()) for _ in [None] * count]


def caught(count):
    try:
        return lines(count)
    except ValueError:
        return -1


@pytest.mark.parametrize("function", [lines, calls, caught])
def test_too_many_steps(function):
    with work.at_most(10_000):
        function(1_000)
    with pytest.raises(AssertionError, match="more than 10000 steps"), work.at_most(10_000):
        function(10**12 if function is not calls else 100_000)


def test_without_end():
    with pytest.raises(AssertionError), work.at_most(100):
        lines(float("inf"))
    assert lines(1_000) == 1_000


def test_what_watched_before_goes_on():
    before = sys.gettrace(), sys.getprofile()
    with work.at_most(10_000):
        lines(10)
    assert (sys.gettrace(), sys.getprofile()) == before
