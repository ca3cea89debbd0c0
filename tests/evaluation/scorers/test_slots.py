"""Slots: outcomes by hand."""

import json

import pytest

from sft_jax.evaluation.scorers import make_scorer
from sft_jax.evaluation.scoring import aggregate, detail_tables
from tests.evaluation.scored import score, scored

PLAIN = '{"city": ["Rome", "Oslo"], "day": "2024-03-04", "seats": 2}'


@pytest.mark.parametrize(
    ("answer", "counts", "exact"),
    [
        (PLAIN, {"city": [2, 2, 2], "day": [1, 1, 1], "seats": [1, 1, 1]}, True),
        (
            'So: [{"slot": "City", "value": "oslo"}, {"slot": "city", "value": "ROME"}, '
            '{"slot": "day", "value": "4 March 2024"}, {"slot": "seats", "value": "2"}]',
            {"city": [2, 2, 2], "day": [1, 1, 1], "seats": [1, 1, 1]},
            True,
        ),
        (
            "[['city', 'Rome'], ['city', 'Rome'], ['seats', 3]]",
            {"city": [1, 2, 2], "day": [0, 0, 1], "seats": [0, 1, 1]},
            False,
        ),
        (
            '{"time": "noon", "city": null}',
            {"city": [0, 0, 2], "day": [0, 0, 1], "seats": [0, 0, 1], "time": [0, 1, 0]},
            0,
        ),
        ("[]", {"city": [0, 0, 2], "day": [0, 0, 1], "seats": [0, 0, 1]}, False),
    ],
)
def test_slots(answer, counts, exact):
    assert score("slots", answer, PLAIN) == {"slot": counts, "valid_slots": True, "exact_match": bool(exact)}


@pytest.mark.parametrize("answer", ["prose", "[1, 2]", '[{"name": "city", "value": "Rome"}]', '[["city"]]', ""])
def test_answers_without_slots(answer):
    nothing = {"city": [0, 0, 2], "day": [0, 0, 1], "seats": [0, 0, 1]}
    assert score("slots", answer, PLAIN) == {"slot": nothing, "valid_slots": False, "exact_match": False}


def test_names_of_keys_and_types_are_options():
    named = json.dumps([{"name": "day", "text": "03/04/2024"}])
    options = {"name_key": "name", "value_key": "text"}
    assert score("slots", named, '{"day": "4 March 2024"}', **options)["exact_match"] is True
    assert score("slots", named, '{"day": "4 March 2024"}', **options, types={"day": "string"})["exact_match"] is False
    assert score("slots", named, '{"day": "3 April 2024"}', **options, day_first=True)["exact_match"] is True


def test_metrics_and_table_of_slots():
    references = ['{"city": "Rome"}', '{"city": "Oslo", "day": "x"}', "{}"]
    outcomes = scored("slots", ['{"city": "Rome"}', "[]", "{}"], references)
    scores = aggregate(outcomes, seed=0)
    assert list(scores) == ["slot_f1", "slot_precision", "slot_recall", "valid_slots", "exact_match"]
    assert scores["slot_f1"].value == pytest.approx(2 / 4)  # 1 hit, 1 predicted, 3 expected
    assert (scores["slot_precision"].value, scores["slot_recall"].value) == pytest.approx((1, 1 / 3))
    assert scores["exact_match"].value == pytest.approx(2 / 3)
    assert detail_tables(outcomes)["slot"]["city"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }


def test_nothing_to_find_at_all_is_no_metric():
    assert list(aggregate(scored("slots", ["{}"], ["{}"]), seed=0)) == ["valid_slots", "exact_match"]


def test_refused():
    with pytest.raises(ValueError, match="row 0: slots: the reference is neither a JSON dict nor a list of"):
        score("slots", "{}", "prose")
    with pytest.raises(ValueError, match="relative_tolerance must lie in"):
        make_scorer("slots", {"relative_tolerance": -1})
