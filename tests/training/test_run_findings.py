"""What would be without effect is found before a run: batches that repeat the data, new tokens that stand in no row."""

import json

import numpy as np
import pytest
from rich.console import Console

from sft_jax.training import run
from sft_jax.training.metric_log import read_metrics
from sft_jax.training.run_data import load_data
from sft_jax.training.run_findings import token_counts
from tests import tiny
from tests.command_line import flags_in

FEW = {"data.held_out": "", "checkpoint.best_metric": "", "duration": "1 epochs", "optimizer.warmup": "3 percent"}


def few_rows(root, **changes):
    """36 short rows that pack into a few of 512 tokens: one step, whose warm-up of 3 percent is one step."""
    rows = [{"prompt": f"Say {i % 10}", "completion": "x"} for i in range(36)]
    config = tiny.config(root, "lora", **(FEW | {"data.row_tokens": 512} | changes))
    (root / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with config.unlocked():
        config.data.train = str(root / "few.jsonl")
    return config


def findings(config):
    return {finding.check: finding for finding in load_data(config).report.findings}


def test_a_batch_that_holds_the_data_several_times(tmp_path):
    config = few_rows(tmp_path)
    found = findings(config)["large_batch"]
    times = 8 / len(load_data(config).plan.first_block)
    assert times >= 2
    assert found.severity == "warning"
    assert found.title.startswith(
        f"Each optimizer step trains on all of the data {times:.1f} times over: all 36 rows pack"
    )
    (shorter,) = flags_in(found.advice)  # eight devices divide no batch of fewer rows
    assert "large_batch" not in findings(few_rows(tmp_path, **_set_by(shorter)))


def test_a_smaller_batch_is_named_where_devices_divide_it(tmp_path):
    mesh = {"mesh.fsdp": 1, "mesh.tensor": 8}
    found = findings(few_rows(tmp_path, **mesh))["large_batch"]
    fewer, shorter = flags_in(found.advice)
    assert fewer != "--config.batch.rows=8"
    for flag in (fewer, shorter):
        config = few_rows(tmp_path, **mesh, **_set_by(flag))
        assert "large_batch" not in findings(config)
        assert load_data(config).report.numbers["records"]["kept"] == 36
    assert (
        "row_tokens"
        not in findings(few_rows(tmp_path, **{"data.packing": "none", "batch.rows": 80}))["large_batch"].advice
    )


def _set_by(flag):
    """The override of a config that a flag makes."""
    name, _, value = flag.removeprefix("--config.").partition("=")
    return {name: int(value)}


def test_few_rows_train_in_the_one_step_they_have(tmp_path):
    """With a first learning rate above 0, and said beforehand."""
    with (tmp_path / "shown.txt").open("w") as file:
        result = run(few_rows(tmp_path), tmp_path / "run", console=Console(file=file, width=120))
    assert result.total_steps == 1
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["train/learning_rate"] == pytest.approx(1e-2)
    assert line["train/update_ratio"] > 0
    shown = (tmp_path / "shown.txt").read_text()
    assert "times over" in shown
    assert "nothing that is wrong" not in shown


@pytest.mark.parametrize(
    ("tokens", "unused"),
    [(("<|tool|>",), []), (("<|tool|>", "<|none|>"), ["<|none|>"]), (("<|none|>",), ["<|none|>"])],
)
def test_new_tokens_that_stand_in_no_row(tmp_path, tokens, unused):
    (tmp_path / "template.jinja").write_text("<|tool|>" + tiny.CHATML)
    config = tiny.config(
        tmp_path, **{"model.new_tokens": tokens, "model.chat_template": str(tmp_path / "template.jinja")}
    )
    found = findings(config).get("unused_new_tokens")
    assert (found.numbers["unused"] if found else []) == unused
    if unused:
        assert found.severity == "warning"
        assert found.title == "1 new token stands in no row: <|none|>"


def test_counting_tokens():
    tokens = np.array([5, 7, 7, 9, 300, 2], np.int32)
    assert token_counts(tokens, [7, 8, 9]) == [2, 0, 1]
    assert token_counts(tokens, [300, 2]) == [1, 1]
    assert token_counts(tokens, []) == []


def test_a_learning_rate_of_0_is_said(tmp_path):
    found = findings(tiny.config(tmp_path, **{"optimizer.learning_rate": 0.0}))
    assert found["no_learning_rate"].severity == "warning"
    assert not findings(tiny.config(tmp_path)).keys() & {"no_learning_rate", "large_batch", "unused_new_tokens"}
