"""Exact copies and contradictions."""

import dataclasses

import numpy as np
import pytest

from sft_jax.audit.checks.duplicates import EqualKeys, contradictions, exact_duplicates
from sft_jax.data.conversations import Message, Preference
from sft_jax.data.records import Record


@pytest.mark.parametrize(
    ("pairs", "copies", "first"),
    [
        ([("q", "a"), ("q", "b"), ("r", "a")], 0, []),
        ([("q", "a"), ("r", "a"), ("q", "a"), ("q", "a")], 2, ["a:1"]),
        ([("q", "a"), (" q\n", "a ")], 1, ["a:1"]),  # white space around a text says nothing
        ([("q", "a"), ("Q", "a")], 0, []),
        ([("q", "a"), ("r", "b"), ("r", "b"), ("q", "a")], 2, ["a:1", "a:2"]),
    ],
)
def test_exact_duplicates(checked, shown, pairs, copies, first):
    found = exact_duplicates(checked(*pairs))
    assert sum(seen.count for seen in found) == copies
    assert [row for seen in found for row in shown(seen)] == first
    assert all(seen.share == copies / len(pairs) for seen in found)


@pytest.mark.parametrize(
    ("pairs", "rows", "first"),
    [
        ([("q", "a"), ("q", "a"), ("r", "b")], 0, []),
        ([("q", "a"), ("r", "b"), ("q", "b"), ("q", "b")], 3, ["a:1"]),
        ([("q", "a"), ("q ", " a")], 0, []),
    ],
)
def test_contradictions(checked, shown, pairs, rows, first):
    found = contradictions(checked(*pairs))
    assert sum(seen.count for seen in found) == rows
    assert [row for seen in found for row in shown(seen)] == first


def test_a_contradiction_names_both_rows(checked):
    (seen,) = contradictions(checked(("q", "a"), ("q", "b")))
    assert seen.examples[0].text == "a:1: 'a' | a:2: 'b', asked: q"
    assert seen.numbers == {"prompts": 1, "rows": 2}


def test_tools_belong_to_a_prompt(checked, records):
    """Other tools make the same question another one: neither copies nor contradictions."""
    tools = [({"name": name},) for name in ("f", "g")]
    for answers in (("a", "a"), ("a", "b")):
        made = [
            dataclasses.replace(record, example=dataclasses.replace(record.example, tools=own))
            for record, own in zip(records(*(("q", answer) for answer in answers)), tools, strict=True)
        ]
        different = dataclasses.replace(checked(("q", "a")), records=made)
        assert sum(seen.count for seen in [*exact_duplicates(different), *contradictions(different)]) == 0
        same = dataclasses.replace(different, records=[made[0], dataclasses.replace(made[0], id="a:2")])
        assert [seen.count for seen in exact_duplicates(same)] == [1]


@pytest.mark.parametrize(("rejected", "copies"), [("bad", 1), ("worse", 0)])
def test_pairs_are_copies_with_both_answers(checked, rejected, copies):
    pairs = [
        Record(
            f"a:{n}",
            Preference((Message("user", "q"),), (Message("assistant", "a"),), (Message("assistant", bad),)),
            {},
        )
        for n, bad in enumerate(("bad", rejected), 1)
    ]
    found = exact_duplicates(dataclasses.replace(checked(("q", "a")), records=pairs))
    assert sum(seen.count for seen in found) == copies


def grouped(keys):
    return EqualKeys.of(np.array(keys, np.uint64))


@pytest.mark.parametrize(
    ("keys", "groups"),
    [
        ([], []),
        ([3], []),
        ([3, 1, 2], []),
        ([7, 1, 7, 1, 2, 7], [[0, 2, 5], [1, 3]]),
        ([2**64 - 1, 1, 1, 2**64 - 1], [[0, 3], [1, 2]]),
        ([0, 4, 0, 4], [[1, 3]]),  # 0 is no key
    ],
)
def test_records_of_equal_keys(keys, groups):
    found = grouped(keys)
    assert found.first(9) == groups
    assert sorted(found.sizes.tolist()) == sorted(map(len, groups))
    assert found.first(1) == groups[:1]


def test_some_groups():
    found = grouped([7, 1, 7, 1, 2, 7])
    assert found.where(found.sizes > 2).first(9) == [[0, 2, 5]]
    assert found.where(found.sizes > 3).first(9) == []


def test_they_are_what_comparing_one_by_one_gives():
    keys = np.random.default_rng(0).integers(1, 300, 1000)
    expected = {}
    for number, key in enumerate(keys.tolist()):
        expected.setdefault(key, []).append(number)
    assert grouped(keys).first(1000) == [group for group in expected.values() if len(group) > 1]
