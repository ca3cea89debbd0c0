"""All checks together: severity by share, order, and which run at the start of a run."""

import math

import pytest

from sft_jax.audit.checks import CHECKS, Check, Grave, Observation, gravest, run_checks


@pytest.mark.parametrize(
    ("grave", "count", "share", "severity"),
    [
        (Grave(0.0, 0.1), 0, 0.0, "info"),
        (Grave(0.0, 0.1), 1, 0.01, "warning"),
        (Grave(0.0, 0.1), 1, 0.1, "warning"),
        (Grave(0.0, 0.1), 2, 0.2, "error"),
        (Grave(0.05, math.inf), 1, 0.05, "info"),
        (Grave(0.05, math.inf), 100, 1.0, "warning"),
    ],
)
def test_severity_follows_the_share(grave, count, share, severity):
    assert grave.severity(Observation("", count, share)) == severity


def test_gravest_first_and_progress(subject, records, monkeypatch):
    monkeypatch.setitem(CHECKS, "slow", Check(lambda _: [Observation("all", 1, 1.0)], Grave(0, 0)))
    seen = []
    pairs = [("q", "a word"), ("q", "b word"), ("r", "c word")]
    findings = run_checks(subject(*pairs, stop_ids=(3,)), lambda *numbers: seen.append(numbers))
    assert [(found.check, found.severity) for found in findings] == [
        ("slow", "error"),
        ("contradictions", "warning"),
        ("sizes", "info"),
        ("end_of_turn", "info"),
        ("scripts", "info"),
    ]
    assert seen == [(n, len(CHECKS)) for n in range(1, len(CHECKS) + 1)]
    quick = run_checks(subject(*pairs, stop_ids=(3,)), quick=True)
    assert [found.check for found in quick] == ["contradictions", "end_of_turn"]
    assert gravest(findings) == "error"
    assert gravest([]) == "info"
