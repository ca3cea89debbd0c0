"""`python -m sft_jax.score`: accuracy and margin of a file of pairs, and the scores of each."""

import json

import pytest
from rich.console import Console

from sft_jax.training import run
from tests import preferences


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("score")
    config = preferences.reward_config(made, **{"optimizer.learning_rate": 0.02, "duration": "3 steps"})
    run(config, made / "run", console=Console(quiet=True))
    lines = (made / "held_out_pairs.jsonl").read_text().splitlines()
    (made / "one.jsonl").write_text(lines[0] + "\n")
    return made


def call(children, root, *arguments):
    command = ["sft_jax.score", f"--model={root / 'run'}", *arguments]
    (ended,) = children.run([("tests.children:command", command)])
    return ended


def test_a_file_of_pairs(root, children):
    pairs, out = root / "held_out_pairs.jsonl", root / "scores.jsonl"
    ended = call(children, root, f"--pairs={pairs}", f"--out={out}")
    assert ended.status == 0, ended.output
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"held_out_pairs.jsonl:{number}" for number in range(1, 11)]
    accuracy = sum(line["chosen"] > line["rejected"] for line in lines) / 10
    margin = sum(line["chosen"] - line["rejected"] for line in lines) / 10
    assert f"accuracy: {accuracy:.4f} [" in ended.output
    assert f"margin: {margin:.4f} [" in ended.output
    assert "10 pairs by " in ended.output


def test_one_pair_has_no_interval(root, children):
    ended = call(children, root, f"--pairs={root / 'one.jsonl'}")
    assert ended.status == 1
    assert "one.jsonl: one pair has no interval; give several" in ended.output
