"""Rows that are dropped: the start of a run says what would keep them, and doing so does."""

import json
import re

import pytest

from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from tests import tiny


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def finding(config, thorough=False):
    """The finding about dropped rows of one reason."""
    (found,) = [
        f for f in load_data(options_of(config), thorough=thorough).report.findings if f.check == "dropped_rows"
    ]
    return found


@pytest.fixture
def conversations(tmp_path):
    """A config whose 10 rows begin with the assistant in 4 cases."""
    config = tiny.config(tmp_path)
    human, gpt = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}
    write(tmp_path / "train.jsonl", [{"conversations": [gpt] * (n < 4) + [human, gpt]} for n in range(10)])
    return config


@pytest.mark.parametrize("thorough", [False, True])
def test_conversations_cut_out_of_longer_ones(conversations, thorough):
    found = finding(conversations, thorough)
    assert (found.severity, found.title) == (
        "warning",
        "4 rows are dropped: the conversation starts with the assistant",
    )
    step = re.search(r"drop\w+", found.advice).group()
    conversations.data.cleaning = (step,)
    followed = load_data(options_of(conversations))
    assert followed.report.numbers["records"] == {"records": 10, "kept": 10, "dropped": 0, "examples": 10}
    assert all(found.check != "dropped_rows" for found in followed.report.findings)


@pytest.fixture
def lengths(tmp_path):
    """A config whose 20 rows have 50 tokens and more; 8 are longer than 64."""
    config = tiny.config(tmp_path, **{"data.sequence_length": 64})
    rows = [{"prompt": "p", "completion": "a" * (20 if n < 12 else 60 + 40 * n)} for n in range(20)]
    write(tmp_path / "train.jsonl", rows)
    return config


@pytest.mark.parametrize("from_cache", [False, True])
def test_what_a_longer_sequence_would_keep(lengths, tmp_path, from_cache):
    if from_cache:
        lengths.data.cache = str(tmp_path / "cache")
        load_data(options_of(lengths))
    found = finding(lengths)
    assert found.title == "8 rows are dropped: longer than 64 tokens"
    says = dict(re.findall(r"(\d+)(?: would keep)? ([\d.]+%|all)", found.advice))
    assert list(says)[:3] == ["128", "256", "512"]
    for size, share in says.items():
        lengths.data.sequence_length = int(size)
        kept = load_data(options_of(lengths)).report.numbers["records"]["kept"] - 12
        assert share == ("all" if kept == 8 else f"{kept / 8:.1%}")


def test_text_that_is_split_is_whole(lengths, tmp_path):
    lengths.data.masking.too_long = "drop"
    write(tmp_path / "train.jsonl", [{"text": "a" * 20}] + [{"text": "b" * 200}] * 4)
    assert "=split makes several examples of what is no conversation" in finding(lengths).advice
    lengths.data.sequence_length = 2048
    targets = load_data(options_of(lengths)).report.numbers["supervised_tokens"]
    lengths.data.sequence_length, lengths.data.masking.too_long = 64, "split"
    report = load_data(options_of(lengths)).report.numbers
    assert report["supervised_tokens"] == targets
    assert report["records"] == {"records": 5, "kept": 5, "dropped": 0, "examples": 1 + 4 * 4}


def test_rows_that_a_step_drops_are_no_finding(lengths):
    lengths.data.cleaning = ("drop_answers_longer_than=0",)
    lengths.data.cleaning = ("drop_exact_duplicates",)  # 11 of the short ones
    assert finding(lengths).count == 8
