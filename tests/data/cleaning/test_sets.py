"""Steps that look at more than one record: duplicates, contradictions, bounds on labels and groups."""

import collections

import pytest

from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, TokenExample
from sft_jax.data.records import Record


def names(records):
    return [record.id for record in records]


def test_exact_duplicates(record, clean):
    fruits = ["apple", "banana", "apple", "cherry", " banana\n", "apple"]
    records = [record(answer, name=f"t:{n}") for n, answer in enumerate(fruits, 1)]
    kept, log = clean(records, "drop_exact_duplicates")
    assert names(kept) == ["t:1", "t:2", "t:4"]
    assert [(row.id, row.detail) for row in log.dropped] == [("t:3", "t:1"), ("t:5", "t:2"), ("t:6", "t:1")]


def test_duplicates_of_every_form(clean):
    asked, first, second = (Message("user", "a"),), (Message("assistant", "b"),), (Message("assistant", "c"),)
    examples = [
        Chat(asked + first),
        Chat(asked + first, tools=({"name": "f"},)),
        Preference(asked, first, second),
        Preference(asked, second, first),
        Segments((Segment("a", 0.0), Segment("b", 1.0))),
        Segments((Segment("a", 1.0), Segment("b", 1.0))),
        TokenExample([1, 2], [0, 1]),
        TokenExample([1, 2], [1, 1]),
    ]
    records = [Record(f"t:{n}", example, {}) for n, example in enumerate(examples * 2)]
    assert names(clean(records, "drop_exact_duplicates")[0]) == [f"t:{n}" for n in range(len(examples))]


ANSWERS = [("a", "x"), ("a", "y"), ("b", "x"), ("a", "x "), ("c", "x"), ("c", "y")]


@pytest.mark.parametrize(("step", "kept"), [("", "3"), ("=none", "3"), ("=majority", "134")])
def test_contradictions(record, clean, step, kept):
    records = [record(answer, question, f"t:{n}") for n, (question, answer) in enumerate(ANSWERS, 1)]
    found, log = clean(records, f"drop_contradictions{step}")
    assert names(found) == [f"t:{n}" for n in kept]
    assert {row.detail for row in log.dropped} == {"2 answers"}


def test_steps_before_a_look_are_seen_by_it(record, clean):
    """The duplicates are gone when contradictions are counted, so there is no majority."""
    records = [record(answer, "a", f"t:{n}") for n, answer in enumerate("xxy", 1)]
    assert names(clean(records, "drop_contradictions=majority")[0]) == ["t:1", "t:2"]
    kept, log = clean(records, "drop_exact_duplicates", "drop_contradictions=majority")
    assert kept == []
    assert collections.Counter(row.reason.split(":")[0] for row in log.dropped) == {
        "drop_exact_duplicates": 1,
        "drop_contradictions": 2,
    }


LABELS = [*"a" * 60, *"b" * 20, "c", "c"]


@pytest.mark.parametrize(
    ("step", "sizes"),
    [
        ("cap_labels=20", {"a": 20, "b": 20, "c": 2}),
        ("balance_labels", {"a": 2, "b": 2, "c": 2}),
        ("balance_labels=2.5", {"a": 5, "b": 5, "c": 2}),
    ],
)
def test_labels(record, clean, step, sizes):
    records = [record(label, name=f"t:{n}") for n, label in enumerate(LABELS)]
    kept, log = clean(records, step)
    assert collections.Counter(one.conversation[-1].content for one in kept) == sizes
    assert names(kept) == [one.id for one in records if one in kept]  # in their order
    assert names(clean(records[::-1], step)[0]) == names(kept)[::-1]  # whatever that is
    assert log.kept + len(log.dropped) == len(records)


def test_the_records_that_stay_are_not_the_first(record, clean):
    records = [record("a", name=f"t:{n}") for n in range(100)]
    kept = [int(name[2:]) for name in names(clean(records, "cap_labels=50")[0])]
    assert 35 < sum(kept) / len(kept) < 65


def test_groups(record, clean):
    records = [record(str(n), name=f"t:{n}", group=group) for n, group in enumerate(["g", "g", "g", "", "", ""])]
    kept, _ = clean(records, "cap_groups=1")
    assert collections.Counter(one.group for one in kept) == {"g": 1, "": 3}  # no group is no group
