"""How figures are written."""

import pytest

from sft_jax.evaluation.figures import difference_text, metric_name, p_text, score_text


@pytest.mark.parametrize(
    ("score", "as_score", "as_difference"),
    [
        ({"value": 0.71249, "low": 0.64, "high": 0.7806}, "0.712 [0.640, 0.781]", "+0.712 [+0.640, +0.781]"),
        ({"value": -0.5, "low": -1.0, "high": 0.0}, "-0.500 [-1.000, 0.000]", "-0.500 [-1.000, +0.000]"),
        ({"value": 0.25}, "0.250", "+0.250"),
    ],
)
def test_scores_and_differences(score, as_score, as_difference):
    assert score_text(score) == as_score
    assert difference_text(score) == as_difference


def test_a_score_that_is_not_there():
    assert score_text(None) == "-"


@pytest.mark.parametrize(
    ("p_value", "text"), [(0.0009, "p < 0.001"), (0.001, "p = 0.001"), (0.0421, "p = 0.042"), (1.0, "p = 1.000")]
)
def test_p_values(p_value, text):
    assert p_text(p_value) == text


@pytest.mark.parametrize(("metric", "name"), [("field_f1", "field F1"), ("made_up_metric", "made up metric")])
def test_names(metric, name):
    assert metric_name(metric) == name
