"""JSON objects field by field: outcomes by hand."""

import json

import pytest

from sft_jax.evaluation.scorers import make_scorer
from sft_jax.evaluation.scoring import aggregate, detail_tables
from tests.evaluation.scored import score, scored

REFERENCE = json.dumps({"vin": "1HG", "year": 2012, "make": "Honda", "owner": None})


@pytest.mark.parametrize(
    # valid, exact, true positives, predicted; three fields are expected
    ("prediction", "valid", "exact", "hits", "predicted"),
    [
        (REFERENCE, True, True, 3, 3),
        ('{"vin":"1hg","year":"2012","make":" HONDA "}', True, True, 3, 3),
        ('{"vin": "1HG", "year": 2013, "make": "Honda"}', True, False, 2, 3),
        ('{"vin": "1HG", "year": 2012}', True, False, 2, 2),
        ('{"vin": "1HG", "year": 2012, "make": "Honda", "owner": "A"}', True, False, 3, 4),
        ('{"vin": "1HG", "year": 2012, "make": "Honda", "color": "red"}', True, False, 3, 4),
        ('{"vin": "1HG", "year": 2012, "make": "Honda", "color": null}', True, True, 3, 3),
        ("{}", True, False, 0, 0),
        ("It is a 2012 Honda.", False, False, 0, 0),
        ("", False, False, 0, 0),
    ],
)
def test_json_extraction(prediction, valid, exact, hits, predicted):
    assert score("json_extraction", prediction, REFERENCE) == {
        "valid_json": valid,
        "exact_match": exact,
        "true_positives": hits,
        "predicted": predicted,
        "expected": 3,
    }


def test_nothing_to_find_is_matched_by_an_object_without_values_only():
    assert score("json_extraction", '{"vin": null}', '{"vin": null}')["exact_match"] is True
    assert score("json_extraction", "nothing", '{"vin": null}')["exact_match"] is False


PAPER = json.dumps(
    {
        "signed": "2024-03-04",
        "price": "$1,200.00",
        "owner": {"name": "José  Peña", "since": None},
        "code": "00123",
        "tags": ["a", "B"],
    }
)


@pytest.mark.parametrize(
    ("changes", "options", "wrong"),
    [
        ({}, {}, []),
        ({"signed": "March 4, 2024"}, {}, []),
        ({"signed": "4 Mar. 2024"}, {}, []),
        ({"signed": "4th of March 2024"}, {}, []),
        ({"signed": "Monday, March 4th, 2024"}, {}, []),
        ({"signed": "2024/03/04"}, {}, []),
        ({"signed": "2024-03-04T00:00:00Z"}, {}, []),
        ({"signed": "2024-03-04 10:00 CEST"}, {}, []),
        ({"signed": "03/04/2024"}, {}, []),
        ({"signed": "03/04/24"}, {}, []),
        ({"signed": "04.03.2024"}, {}, ["signed"]),
        ({"signed": "04.03.2024"}, {"day_first": True}, []),
        ({"signed": "2024-03-04"}, {"day_first": True}, []),
        ({"signed": "March 2024"}, {}, ["signed"]),
        ({"signed": "2024-13-44"}, {}, ["signed"]),
        ({"signed": "March 4, 2024"}, {"types": {"signed": "string"}}, ["signed"]),
        ({"price": 1200}, {}, []),
        ({"price": "1200 USD"}, {}, []),
        ({"price": 1201}, {}, ["price"]),
        ({"price": 1201}, {"relative_tolerance": 0.001}, []),
        ({"code": "123"}, {}, ["code"]),
        ({"code": "123"}, {"types": {"CODE": "number"}}, []),
        ({"owner": {"Name": "JOSÉ PEÑA"}}, {}, []),
        ({"owner": {"name": "José Peña", "since": "2020"}}, {}, ["owner.since"]),
        ({"owner": "José Peña"}, {}, ["owner", "owner.name"]),
        ({"tags": ["A", "b"]}, {}, []),
        ({"tags": ["b", "a"]}, {}, ["tags"]),
        ({"tags": None}, {}, ["tags"]),
    ],
)
def test_fields_are_compared_by_their_types(changes, options, wrong):
    outcome = score("json_fields", json.dumps(json.loads(PAPER) | changes), PAPER, **options)
    assert [name for name, counts in outcome["field"].items() if not counts[0]] == wrong
    assert outcome["exact_match"] is (not wrong)
    assert outcome["valid_json"] is True


def test_counts_metrics_and_table_of_fields():
    answers = ['{"a": 1, "b": "x"}', '{"a": 2, "c": "y"}', "prose"]
    outcomes = scored("json_fields", answers, ['{"a": 1, "b": "x"}', '{"a": 1, "b": "x"}', '{"a": 1, "b": null}'])
    assert outcomes[1]["field"] == {"a": [0, 1, 1], "b": [0, 0, 1], "c": [0, 1, 0]}
    assert outcomes[2] == {"field": {"a": [0, 0, 1]}, "valid_json": False, "exact_match": False}
    # 2 hits, 4 predicted, 5 expected.
    scores = aggregate(outcomes, seed=0)
    assert list(scores) == ["field_f1", "field_precision", "field_recall", "valid_json", "exact_match"]
    found = {name: scores[name].value for name in ("field_f1", "field_precision", "field_recall")}
    assert found == pytest.approx({"field_f1": 4 / 9, "field_precision": 2 / 4, "field_recall": 2 / 5})
    assert detail_tables(outcomes) == {
        "field": {
            "a": {"precision": 1 / 2, "recall": 1 / 3, "f1": pytest.approx(2 / 5), "support": 3},
            "b": {"precision": 1.0, "recall": 1 / 2, "f1": pytest.approx(2 / 3), "support": 2},
            "c": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        }
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relative_tolerance": -0.1}, "relative_tolerance must lie in"),
        ({"types": {"a": "money"}}, "a dict, each value one of 'date', 'number', 'string', 'inferred'"),
        ({"dayfirst": True}, "has no option 'dayfirst'; its options: types, relative_tolerance, day_first"),
    ],
)
def test_options_of_fields_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        make_scorer("json_fields", options)


def test_a_reference_without_an_object_is_refused():
    with pytest.raises(ValueError, match="row 0: json_fields: the reference is not a JSON object: 'prose'"):
        score("json_fields", "{}", "prose")
