"""Durations: one string, any unit."""

import dataclasses

import pytest

from configs import sft
from sft_jax.data.plan import PackPlan
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.options import options_of
from sft_jax.training.durations import Phases, in_steps, parse, phases_of, run_steps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60 steps", (60, "steps")),
        ("1 step", (1, "steps")),
        ("2000 examples", (2000, "examples")),
        ("1e6 tokens", (1e6, "tokens")),
        ("1_000 tokens", (1000, "tokens")),
        ("1.5 epochs", (1.5, "epochs")),
        (" 3epochs ", (3, "epochs")),
        ("3 percent", (3, "percent")),
    ],
)
def test_parse(text, expected):
    assert parse(text, "duration") == expected


@pytest.mark.parametrize(
    "text", ["", "60", "steps", "-1 steps", "3 hours", "1 epochs 2 steps", "1,5 epochs", "1..2 steps", "1.2.3 steps"]
)
def test_bad_durations_name_the_flag(text):
    with pytest.raises(ValueError, match=r"--config\.evaluation\.every='.*' is not a duration; give a number"):
        parse(text, "evaluation.every")


@pytest.fixture(scope="module")
def plan():
    """10 conversations of 8 tokens, one a row, 4 rows a batch: 2.5 batches an epoch, 32 tokens a step."""
    rows = TokenizedExamples.from_examples(
        [(list(range(8)), [0.0] * 4 + [1.0] * 4)] * 10, [f"train.jsonl:{i}" for i in range(1, 11)]
    )
    return PackPlan(rows, sequence_length=8, sequence_targets=8, sequences_per_batch=4, seed=0)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7 steps", 7),
        ("0 steps", 0),
        ("1 epochs", 3),  # 2.5: the smallest number of steps that reaches it
        ("2 epochs", 5),
        ("0.4 epochs", 1),
        ("8 examples", 2),
        ("9 examples", 3),
        ("64 tokens", 2),
        ("65 tokens", 3),
        ("3 percent", 3),  # of 100
        ("2.5 percent", 3),
    ],
)
def test_in_steps(plan, text, steps):
    assert in_steps(text, "duration", plan, total_steps=100) == steps


def test_percent_of_an_unknown_whole(plan):
    with pytest.raises(ValueError, match=r"--config\.duration='5 percent': percent of the run makes no sense here"):
        in_steps("5 percent", "duration", plan)


@pytest.mark.parametrize("text", ["0 steps", "0 epochs", "0 examples", "0.0 tokens"])
def test_a_run_of_no_step_is_refused(plan, text):
    with pytest.raises(
        ValueError, match=rf"--config\.duration='{text}' comes to 0 steps.* at least '1 steps'"
    ) as error:
        run_steps(text, plan)
    _, unit = parse(text, "duration")
    assert (f"any amount of {unit} above 0" in str(error.value)) == (unit != "steps")
    assert run_steps("1 steps", plan) == 1
    assert run_steps(f"0.001 {unit}", plan) == 1


def test_phases(plan):
    """Of a run by its schedule: the decay is of `wsd` alone."""
    optimizer = options_of(sft.get_config()).optimizer
    wsd = dataclasses.replace(optimizer, schedule="wsd", warmup="10 steps", decay="20 percent")
    assert phases_of("100 steps", wsd, plan) == Phases(100, 10, 20)
    assert phases_of("100 steps", wsd, plan).stable_until == 80
    assert phases_of("7 steps", dataclasses.replace(wsd, decay="65 tokens"), plan) == Phases(7, 10, 3)
    assert phases_of("7 steps", dataclasses.replace(wsd, decay="0 steps"), plan).stable_until == 7
    assert phases_of("100 steps", dataclasses.replace(wsd, schedule="cosine"), plan) == Phases(100, 10, 0)


def test_a_decay_longer_than_the_run_is_refused_and_mended_as_advised(plan):
    optimizer = dataclasses.replace(options_of(sft.get_config()).optimizer, schedule="wsd", decay="8 steps")
    with pytest.raises(ValueError, match=r"--config.optimizer.decay='8 steps' is 8 steps, and the run has 7; give"):
        phases_of("7 steps", optimizer, plan)
    assert phases_of("8 steps", optimizer, plan).stable_until == 0
    assert phases_of("7 steps", dataclasses.replace(optimizer, decay="20 percent"), plan).decay_steps == 2
