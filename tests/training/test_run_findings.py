"""What would be without effect is found before a run: batches that repeat the data, new tokens that stand in no row."""

import functools
import json
import operator

import numpy as np
import pytest
from rich.console import Console

from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from sft_jax.training.checks import check_config
from sft_jax.training.run_findings import run_findings, token_counts
from tests import tiny
from tests.command_line import SFT, config_of, flags_in

FEW = {"data.held_out": "", "checkpoint.best_metric": "", "duration": "1 epochs", "optimizer.warmup": "3 percent"}


def few_rows(root, **changes):
    """36 short rows that pack into a few of 512 tokens: one step, whose warm-up of 3 percent is one step."""
    rows = [{"prompt": f"Say {i % 10}", "completion": "x"} for i in range(36)]
    config = tiny.config(root, "lora", **(FEW | {"data.sequence_length": 512} | changes))
    (root / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with config.unlocked():
        config.data.train = str(root / "few.jsonl")
    return config


def findings(config):
    return {finding.check: finding for finding in load_data(options_of(config), also=run_findings).report.findings}


def test_a_batch_that_holds_the_data_several_times(tmp_path):
    config = few_rows(tmp_path)
    found = findings(config)["large_batch"]
    times = 8 / len(load_data(options_of(config), also=run_findings).plan.first_block)
    assert times >= 2
    assert found.severity == "warning"
    assert found.title.startswith(
        f"Each optimizer step trains on all of the data {times:.1f} times over: all 36 examples pack"
    )
    (shorter,) = flags_in(found.advice)  # eight devices divide no batch of fewer rows
    assert "large_batch" not in findings(few_rows(tmp_path, **_set_by(shorter)))


def test_a_smaller_batch_is_named_where_devices_divide_it(tmp_path):
    mesh = {"mesh.fsdp": 1, "mesh.tensor": 8}
    found = findings(few_rows(tmp_path, **mesh))["large_batch"]
    fewer, shorter = flags_in(found.advice)
    assert fewer != "--config.batch.sequences=8"
    for flag in (fewer, shorter):
        config = few_rows(tmp_path, **mesh, **_set_by(flag))
        assert "large_batch" not in findings(config)
        assert load_data(options_of(config), also=run_findings).report.numbers["records"]["kept"] == 36
    assert (
        "sequence_length"
        not in findings(few_rows(tmp_path, **{"data.packing": "none", "batch.sequences": 80}))["large_batch"].advice
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
        assert found.title == "1 new token stands in no example: <|none|>"


def test_counting_tokens():
    tokens = np.array([5, 7, 7, 9, 300, 2], np.int32)
    assert token_counts(tokens, [7, 8, 9]) == [2, 0, 1]
    assert token_counts(tokens, [300, 2]) == [1, 1]
    assert token_counts(tokens, []) == []


def test_a_learning_rate_of_0_is_said(tmp_path):
    found = findings(tiny.config(tmp_path, **{"optimizer.learning_rate": 0.0}))
    assert found["no_learning_rate"].severity == "warning"
    assert not findings(tiny.config(tmp_path)).keys() & {"no_learning_rate", "large_batch", "unused_new_tokens"}


SHORT = {  # check -> (what is given to a run of 6 steps, its title)
    "long_warmup": (
        {"optimizer.warmup": "48 steps"},
        "The warm-up of 48 steps is longer than the run of 6: the learning rate ends at 12% of --config.optimizer.lea",
    ),
    "no_stable_phase": (
        {"optimizer.warmup": "5 steps", "optimizer.schedule": "wsd"},
        "The warm-up of 5 steps and the decay of 2 are longer than the run of 6: the learning rate never is --config",
    ),
    "late_profile": ({"profile.start": 7}, "No step is profiled: the run has 6, and the first to be is 7"),
    "slow_average": (
        {"ema.decay": 0.999},
        "The moving average is at the end still 99% what the run began with: 6 steps are few for --config.ema.decay=",
    ),
    "clipped_away": (
        {"optimizer.clip_norm": 1e-12},
        "Gradients are clipped to a norm of 1e-12, less than --config.optimizer.epsilon=1e-08",
    ),
}


@pytest.mark.parametrize("check", SHORT)
def test_what_a_run_would_not_do_is_said_and_what_is_advised_does_it(tmp_path, check):
    changes, title = SHORT[check]
    found = findings(tiny.config(tmp_path, **changes))
    assert found.keys() & SHORT.keys() == {check}
    assert found[check].severity == "warning"
    assert found[check].title.startswith(title)
    advised = flags_in(found[check].advice)[:1]
    taken = config_of(f"--config={SFT}", *advised) if advised else None
    name = next(iter(changes))
    value = functools.reduce(operator.getitem, name.split("."), taken) if taken else 6
    assert not findings(tiny.config(tmp_path, **changes | {name: value})).keys() & SHORT.keys()


@pytest.mark.parametrize("steps", [1, 2, 10, 300, 5_000, 100_000, 10_000_000])
def test_the_advised_average_is_taken_and_leaves_its_beginning(tmp_path, steps):
    """For runs of any length: a decay that the config may have, of which a tenth is left."""
    changed = {"duration": f"{steps} steps", "optimizer.warmup": "0 steps", "ema.decay": 1 - 1e-9}
    (flag,) = flags_in(findings(tiny.config(tmp_path, **changed))["slow_average"].advice)
    decay = config_of(f"--config={SFT}", flag).ema.decay
    advised = tiny.config(tmp_path, **changed | {"ema.decay": decay})
    check_config(advised)
    assert decay**steps == pytest.approx(0.1, rel=0.15)
    assert "slow_average" not in findings(advised)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer.warmup": "6 steps"},
        {"optimizer.warmup": "100 percent"},
        {"optimizer.warmup": "1 epochs", "duration": "1 epochs"},
        {"profile.start": 6},
        {"ema.decay": 0.89},  # to the power of 6: 0.497
        {"optimizer.clip_norm": 0.0},
        {"optimizer.clip_norm": 1e-12, "optimizer.name": "lion"},  # which takes the sign
    ],
)
def test_what_is_just_reached_is_no_finding(tmp_path, changes):
    assert not findings(tiny.config(tmp_path, **changes)).keys() & SHORT.keys()


def test_a_run_whose_warm_up_ends_with_it_has_the_peak_rate_once(tmp_path):
    run(tiny.config(tmp_path, duration="3 steps", **{"optimizer.warmup": "3 steps"}), tmp_path / "run")
    rates = [line["train/learning_rate"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["step"]]
    assert rates == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
