"""What one answer is worth."""

import pytest

from sft_jax.evaluation.worth import worth_of


@pytest.mark.parametrize(
    ("outcome", "worth"),
    [
        ({"exact_match": True, "has_number": True}, 1.0),
        ({"valid_json": True, "exact_match": False}, 0.0),
        ({"valid_json": True, "matches_schema": False}, 0.0),
        ({"matches": True, "exceeded": False}, 1.0),
        ({"within_length": False}, 0.0),
        ({"rouge_l": 0.4}, 0.4),
        ({"repetition": 0.25, "distinct": 0.75}, 0.75),  # the first is better the lower it is
    ],
)
def test_a_judgement_counts_before_a_share(outcome, worth):
    assert worth_of(outcome) == worth


@pytest.mark.parametrize("outcome", [{"bleu": [1, 2, 3]}, {"repetition": None, "distinct": None}, {"answer_length": 3}])
def test_what_is_worth_nothing_that_is_known(outcome):
    with pytest.raises(ValueError, match="what one answer is worth is not known"):
        worth_of(outcome)
