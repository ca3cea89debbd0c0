"""Labels and groups."""

import pytest

from sft_jax.audit.checks.balance import group_balance, label_balance
from sft_jax.data.labels import labels_of
from sft_jax.data.views import view_of


def labelled(*labels):
    return [(f"question {number}", label) for number, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "are_labels"),
    [
        (["a", "b"] * 5, True),
        (["a", "b", "c"] * 4, False),  # four rows a label
        (["a"] * 9, False),  # too few rows to say
        (["a\nb", "c"] * 5, False),
        (["a sentence with more words than any label would have", "c"] * 5, False),
        ([" a", "a "] * 5, True),
    ],
)
def test_labels(records, labels, are_labels):
    found = labels_of([view_of(record) for record in records(*labelled(*labels))])
    assert found == ([label.strip() for label in labels] if are_labels else None)


def test_rare_and_heavy_labels(checked):
    spread, rare, heavy = label_balance(checked(*labelled(*["a"] * 30, *["b"] * 12, *["c"] * 3)))
    assert spread.title == "3 labels of 3 to 30 rows, 12 in the middle"
    assert spread.numbers["rows"] == {"a": 30, "b": 12, "c": 3}
    assert spread.numbers["evenness"] == pytest.approx(0.7312, abs=1e-4)  # 0.8033 nats over log 3
    assert (rare.title, rare.count, rare.share) == ("1 label has (of 3) fewer than 10 rows", 3, 1 / 3)
    assert rare.examples == (("a:43", "c: 3"),)
    assert heavy.title == "67% of the rows have the label 'a'"
    assert heavy.advice.endswith(
        " Take the cleaning step 'cap_labels=15', which leaves it as many rows as all others have."
    )


def test_a_cap_that_was_given_is_not_advised(checked):
    *_, heavy = label_balance(checked(*labelled(*["a"] * 30, *["b"] * 12), cleaning=("cap_labels",)))
    assert heavy.title == "71% of the rows have the label 'a'"
    assert heavy.advice == "Accuracy looks good for that label alone: measure F1 by label."


def test_spellings_and_labels_that_are_measured_only(checked, records):
    held_out = records(("q", "red"), ("q", "blue"), file="h")
    made = checked(*labelled(*["Red card"] * 40, *["red_card"] * 20, *["red"] * 20), held_out_records=held_out)
    _, spellings, untrained = label_balance(made)
    assert spellings.advice == "Choose one spelling: 'Red card' / 'red_card'"
    assert (spellings.count, spellings.examples[0].row_id) == (20, "a:41")
    assert untrained.examples == (("h:2", "q -> blue"),)
    assert untrained.share == 0.5


def test_groups(checked, records):
    assert group_balance(checked(("q", "a"))) == []
    made = checked(("q", "a"))
    made.records.extend(records(("q", "a"), ("q", "b"), file="g", group="north"))
    spread, without = group_balance(made)
    assert spread.title == "1 group of 2 to 2 rows, 2 in the middle"
    assert without.examples == (("a:1", "q -> a"),)
