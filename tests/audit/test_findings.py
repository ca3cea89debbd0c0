"""Findings that stop a run, and those that do not."""

import json

import pytest

from sft_jax.audit.findings import DataFindingsError, Finding, check_findings, severe_enough
from sft_jax.training import run
from tests import tiny

ERROR, WARNING, INFO = (Finding("c", severity, f"an {severity}", 1) for severity in ("error", "warning", "info"))


@pytest.mark.parametrize(("fail_on", "found"), [("never", []), ("error", [ERROR]), ("warning", [ERROR, WARNING])])
def test_findings_severe_enough(fail_on, found):
    assert severe_enough([ERROR, WARNING, INFO], fail_on) == found


def test_a_finding_that_stops():
    with pytest.raises(DataFindingsError, match=r"error: an error\. [\s\S]*--config\.data\.fail_on=never") as error:
        check_findings([ERROR, WARNING], "error")
    assert "an warning" not in str(error.value)
    check_findings([WARNING, INFO], "error")


def test_training_on_rows_that_are_measured_stops(tmp_path):
    """By default, before anything is written; with fail_on=never the run goes on, and its directory says so."""
    config = tiny.config(tmp_path, duration="1 steps")
    with config.unlocked():
        config.data.held_out = config.data.train
    with pytest.raises(DataFindingsError, match="held-out rows are also in the training data"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.data.fail_on = "never"
    run(config, tmp_path / "run")
    findings = json.loads((tmp_path / "run" / "data_report.json").read_text())["findings"]
    assert findings[0]["severity"] == "error"
    assert findings[0]["check"] == "exact_overlap"
