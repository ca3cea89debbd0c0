"""All checks together: severity by share, order, and which run at the start of a run."""

import math

import pytest

from sft_jax.audit.checks import CHECKS, Check, Observation, Thresholds, run_checks, worst


@pytest.mark.parametrize(
    ("thresholds", "count", "share", "severity"),
    [
        (Thresholds(0.0, 0.1), 0, 0.0, "info"),
        (Thresholds(0.0, 0.1), 1, 0.01, "warning"),
        (Thresholds(0.0, 0.1), 1, 0.1, "warning"),
        (Thresholds(0.0, 0.1), 2, 0.2, "error"),
        (Thresholds(0.05, math.inf), 1, 0.05, "info"),
        (Thresholds(0.05, math.inf), 100, 1.0, "warning"),
    ],
)
def test_severity_follows_the_share(thresholds, count, share, severity):
    assert thresholds.severity(Observation("", count, share)) == severity


def test_worst_first_and_progress(checked, records, monkeypatch):
    monkeypatch.setitem(CHECKS, "slow", Check(lambda _: [Observation("all", 1, 1.0)], Thresholds(0, 0)))
    seen = []
    pairs = [("q", "a word"), ("q", "b word"), ("r", "c word")]
    findings = run_checks(checked(*pairs, stop_ids=(3,)), lambda *numbers: seen.append(numbers))
    assert [(found.check, found.severity) for found in findings] == [
        ("slow", "error"),
        ("contradictions", "warning"),
        ("sizes", "info"),
        ("end_of_turn", "info"),
        ("scripts", "info"),
    ]
    assert seen == [(n, len(CHECKS)) for n in range(1, len(CHECKS) + 1)]
    quick = run_checks(checked(*pairs, stop_ids=(3,)), quick=True)
    assert [found.check for found in quick] == ["contradictions", "end_of_turn"]
    assert worst(findings) == "error"
    assert worst([]) == "info"
