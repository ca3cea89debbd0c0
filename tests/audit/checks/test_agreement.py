"""Annotators of a tool's export who agree, differ, and are not always the same."""

import pytest

from sft_jax.audit.checks import CheckedData
from sft_jax.audit.checks.agreement import agreement
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.records import Record
from sft_jax.data.tokenized import TokenizedExamples


def task(number, **labels):
    """A task of a Label Studio export: who said what."""
    annotations = [
        {"completed_by": who, "result": [{"from_name": "mood", "type": "choices", "value": {"choices": [label]}}]}
        for who, label in labels.items()
    ]
    fields = {"data": {"text": "t"}, "annotations": annotations}
    return Record(f"a:{number}", Chat((Message("user", "t"), Message("assistant", "good"))), fields)


def checked_data_of(tasks):
    examples = TokenizedExamples.from_examples([([1, 2], [0, 1])] * len(tasks), [record.id for record in tasks])
    return CheckedData(tasks, examples)


def two_people():
    """The textbook table 20 / 5 / 10 / 15: kappa 0.4."""
    pairs = [("yes", "yes")] * 20 + [("yes", "no")] * 5 + [("no", "yes")] * 10 + [("no", "no")] * 15
    return [task(number, ann=first, bob=second) for number, (first, second) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("tasks", "kind", "kappa", "differ", "confused"),
    [
        (two_people(), "Cohen", 0.4, 15, {"no / yes": 15}),
        ([task(1, ann="a", bob="a"), task(2, ann="b", bob="b")], "Cohen", 1.0, 0, {}),
        # Two labels on one row, three on the other: (1 + 1/3) / 2 of pairs agree, 3/5 a and 2/5 b by chance.
        ([task(1, ann="a", bob="a"), task(2, ann="a", bob="b", cy="b")], "Fleiss", 11 / 36, 1, {"a / b": 2}),
    ],
)  # fmt: skip
def test_kappa_and_confusions(tasks, kind, kappa, differ, confused):
    (seen,) = agreement(checked_data_of(tasks))
    assert seen.numbers["kappa"] == pytest.approx(kappa)
    assert seen.numbers["kind"] == kind
    assert seen.numbers["confusions"] == confused
    assert (seen.count, seen.share) == (differ, differ / len(tasks))
    assert seen.title.endswith(f"{kind}'s kappa {kappa:.2f}")


def test_who_said_what_is_shown(checked):
    (seen,) = agreement(checked_data_of([task(1, ann="a", bob="b"), task(2, ann="a", bob="a"), task(3, ann="a")]))
    assert seen.examples == (("a:1", "ann: a; bob: b"),)
    assert seen.numbers["rows"] == 2  # one label alone agrees with nobody
    assert agreement(checked(("q", "a"))) == []
