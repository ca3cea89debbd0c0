"""Pairs of answers as data for imitation: in a run, beside held-out pairs, in a mixture and in the preview."""

import json

import pytest

from configs.sft import source
from sft_jax.data.reading import Reading
from sft_jax.data.records import check_reading
from sft_jax.options import options_of
from sft_jax.preparation.inspection import inspect_data
from sft_jax.preparation.run_data import load_data
from sft_jax.progress import silent
from sft_jax.training.loop import run
from tests import tiny

DPO = {"objective.name": "dpo", "checkpoint.best_metric": "held_out/loss"}
CHOSEN = {"data.reading.preference": "chosen"}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "is it?"}],
    "chosen": {"from": "gpt", "value": "it is"},
    "rejected": {"from": "gpt", "value": "no"},
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count):
    return [{"prompt": f"what is {n}", "chosen": f"it is {n}", "rejected": "no idea"} for n in range(count)]


def conversations(count):
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(count)]


def config_of(root, train, held_out=None, **options):
    config = tiny.config(root, **options)
    with config.unlocked():
        config.data.train = write(root / "pairs.jsonl", train)
        config.data.held_out = write(root / "held_out_pairs.jsonl", held_out) if held_out else ""
    return config


@pytest.fixture
def told(tmp_path):
    return config_of(tmp_path, pairs(40), pairs(46)[40:], **CHOSEN)


def test_they_are_refused_with_the_flag(tmp_path):
    with pytest.raises(
        ValueError, match=r"pairs.jsonl:1: a pair of answers is not .*--config.data.reading.preference=chosen"
    ):
        load_data(options_of(config_of(tmp_path, pairs(40))))
    with pytest.raises(ValueError, match=r"held_out_pairs.jsonl:1: a pair of answers"):
        load_data(options_of(config_of(tmp_path, conversations(40), pairs(3))))
    assert load_data(options_of(config_of(tmp_path, pairs(40), **CHOSEN))).examples.branches is None
    assert (load_data(options_of(config_of(tmp_path, pairs(40), **DPO))).examples.branch_counts == 2).all()


def test_rows_of_one_answer_are_refused_where_two_are_compared(tmp_path):
    said = r"pairs.jsonl:1: --config.objective.name=dpo compares two answers .*reading.preference=pairs"
    with pytest.raises(ValueError, match=said):
        load_data(options_of(config_of(tmp_path, conversations(40), **DPO)))
    with pytest.raises(ValueError, match=said):
        load_data(options_of(config_of(tmp_path, pairs(40), **DPO, **CHOSEN)))
    with pytest.raises(ValueError, match=r"held_out_pairs.jsonl:1: --config.objective.name=dpo compares"):
        load_data(options_of(config_of(tmp_path, pairs(40), conversations(3), **DPO)))
    load_data(options_of(config_of(tmp_path, conversations(40))))


def test_pairs_that_are_too_long_are_counted(tmp_path):
    long = {"prompt": "what", "chosen": "it is " * 15, "rejected": "no " * 15}
    report = load_data(options_of(config_of(tmp_path, [*pairs(40), long], **DPO))).report
    assert {reason: entry["rows"] for reason, entry in report.numbers["dropped"].items()} == {
        "longer than 128 tokens": 1
    }


def test_tokens_and_weights_are_those_of_the_chosen_conversations(tmp_path, told):
    """Whatever the shape of the pair."""
    found = load_data(options_of(told))
    expected = load_data(options_of(config_of(tmp_path, conversations(40), conversations(46)[40:])))
    for rows, others in ((found.examples, expected.examples), (found.held_out, expected.held_out)):
        assert rows.tokens.tolist() == others.tokens.tolist()
        assert rows.weights.tolist() == others.weights.tolist()
    sharegpt = load_data(options_of(config_of(tmp_path, [SHAREGPT] * 2, **CHOSEN))).examples
    plain = load_data(options_of(config_of(tmp_path, [{"prompt": "is it?", "completion": "it is"}] * 2))).examples
    assert sharegpt.tokens.tolist() == plain.tokens.tolist()


def test_a_run_trains_on_them(told, tmp_path):
    run(told, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["held_out/nll"] for line in lines if "held_out/nll" in line]
    assert losses[-1] < losses[0]


def test_the_preview_shows_them(told):
    inspection = inspect_data(options_of(told), silent)
    assert len(inspection.kept) == 40
    assert not inspection.dropped
    assert "pairs.jsonl: JSONL, preference (chosen answers)" in inspection.data.report.numbers["read"]


def test_a_source_of_a_mixture(tmp_path):
    """Each source reads pairs as its own options say."""
    config = config_of(tmp_path, conversations(4))
    with config.unlocked():
        config.data.train = ""
        config.data.mixture.pairs = source(write(tmp_path / "p.jsonl", pairs(10)), epochs=1, preference="chosen")
        config.data.mixture.plain = source(write(tmp_path / "c.jsonl", conversations(5)), epochs=1)
    assert len(load_data(options_of(config)).examples) == 15


def test_an_unknown_choice():
    with pytest.raises(ValueError, match=r"reading\.preference='best' must be one of pairs, chosen"):
        check_reading(Reading(preference="best"))
