"""The experiment on what follows fine-tuning: its documents, what it compares, and in small the whole of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from experiments.alignment import report
from experiments.alignment.faults import faults_in, rejected_answers
from experiments.alignment.stages import Settings, Stages
from experiments.alignment.ways import WAYS, Model
from experiments.faults import Faults
from experiments.quickstart.documents import SEED, lines_of, make_documents
from experiments.scores import MARKS
from tests.experiments import smoke

QUIET = Console(quiet=True)


def rows_of(right, valid=None):
    """Predictions, right where it is said; each with three fields, of which a wrong answer has one wrong."""
    return [
        {
            "id": f"tested.jsonl:{number}",
            "reference": f"reference {number}",
            "prompt": "Which?",
            "answer": "{}",
            "finish_reason": "stop",
            "outcome": {
                "valid_json": True if valid is None else bool(valid[number]),
                "exact_match": bool(is_right),
                "true_positives": 3 if is_right else 2,
                "predicted": 3,
                "expected": 3,
            },
        }
        for number, is_right in enumerate(right)
    ]


METHOD = dict.fromkeys(("prompt_tokens", "generated_tokens", "seconds"), 1.0) | {
    "description": "the tuned weights",
    "weights": "tuned",
    "model": "runs/x",
    "requests": 40,
    "cut_prompts": 0,
    "training": None,
}


def test_fresh_documents_are_like_none_that_were_trained_on(tmp_path):
    paths = Stages(tmp_path, Settings(tuned_on=40, fresh=30, tested=20), QUIET).documents()
    assert paths["tuned_on"].read_text() == lines_of(make_documents(40, 100, SEED)[0])
    texts = [json.loads(line)["messages"] for path in paths.values() for line in path.read_text().splitlines()]
    assert len({messages[0]["content"] for messages in texts}) == len(texts) == 90
    answers = [json.loads(messages[1]["content"]) for messages in texts]
    for name in ("vin", "title_number"):
        stated = [one[name] for one in answers if one[name] is not None]
        assert len(set(stated)) == len(stated) > 50


def test_texts_of_a_chain_are_in_no_question(tmp_path):
    settings = Settings(is_chain=True, pretrained_on=25, tuned_on=20, fresh=10, tested=10)
    paths = Stages(tmp_path, settings, QUIET).documents()
    texts = [json.loads(line)["text"] for line in paths.pop("texts").read_text().splitlines()]
    assert len(set(texts)) == 25
    rows = "".join(path.read_text() for path in paths.values())
    assert not any(json.dumps(text, ensure_ascii=False)[1:-1] in rows for text in texts)
    asked = make_documents(20, 100, SEED)[0]  # the check finds what is there
    assert all(json.dumps(document.text, ensure_ascii=False)[1:-1] in rows for document in asked)
    plain = Stages(tmp_path / "plain", Settings(tuned_on=20, fresh=10, tested=10), QUIET).documents()
    assert {name: path.read_text() for name, path in plain.items()} == {name: paths[name].read_text() for name in paths}


def test_documents_unlike_others():
    """With the same seed all documents would be the same; each is made anew until it is like none."""
    first, _ = make_documents(12, 0, seed=3)
    assert make_documents(12, 0, seed=3)[0] == first
    second, _ = make_documents(12, 0, seed=3, unlike=first)
    for identify in (lambda d: d.text, lambda d: d.facts.vin, lambda d: d.facts.owner.casefold()):
        assert not {identify(one) for one in first} & {identify(one) for one in second}


def test_other_settings_are_refused_in_a_directory(tmp_path):
    Stages(tmp_path, Settings(), QUIET)
    Stages(tmp_path, Settings(), QUIET)
    with pytest.raises(ValueError, match=r"holds an experiment with other settings \(steps\); give another directory"):
        Stages(tmp_path, Settings(steps=3), QUIET)


def test_the_table_has_the_paired_test_of_the_same_documents():
    rng = np.random.default_rng(0)
    tuned, better = rng.random(40) < 0.5, rng.random(40) < 0.5
    better[:25] = True
    rows = {"tuned": rows_of(tuned), "dpo": rows_of(better, valid=np.arange(40) > 0)}
    results = report.results_of(rows, dict.fromkeys(rows, METHOD))
    costs = {"tuned": {"seconds": 1.0, "processor_seconds": 90.0}, "dpo": {"seconds": 1.0, "processor_seconds": 30.0}}
    table = report.table_of(results | {"costs": costs}, [Model("tuned", "a"), Model("dpo", "b", "tuned")])
    cells = list(map(list, zip(*table.rows, strict=True)))
    won, lost = int((better & ~tuned).sum()), int((tuned & ~better).sum())
    p_value = stats.binomtest(min(won, lost), won + lost).pvalue
    assert cells[0] == ["tuned", "dpo"]
    assert [text.split()[0] for text in cells[1]] == [f"{tuned.mean():.3f}", f"{better.mean():.3f}"]
    assert cells[2][1].startswith(f"{better.mean() - tuned.mean():+.3f} [")
    assert cells[3] == cells[4] == ["-", "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"]
    assert cells[6] == ["1.000 [0.912, 1.000]", "0.975 [0.871, 0.996]"]
    assert cells[7] == ["1.5", "0.5"]


def test_a_chain_says_what_each_stage_is_compared_with():
    right = {"base": [False] * 4, "pretrained": [False] * 4, "tuned": [True] * 3 + [False]}
    rows = {name: rows_of(found) for name, found in right.items()}
    results = report.results_of(rows, dict.fromkeys(rows, METHOD)) | {"costs": {}}
    models = [Model("base", "x"), Model("pretrained", "a", "base"), Model("tuned", "b", "pretrained")]
    table = report.table_of(results, models)
    assert table.columns[:4] == ("model", "exact match", "compared with", "difference")
    assert [(row[0], row[2], row[3].split()[0], row[-1]) for row in table.rows] == [
        ("base", "-", "-", "-"),
        ("pretrained", "base", "+0.000", "-"),
        ("tuned", "pretrained", "+0.750", "-"),
    ]


def test_other_documents_are_refused():
    rows = {"tuned": rows_of([True, False]), "dpo": rows_of([True, False])[::-1]}
    with pytest.raises(ValueError, match="dpo was measured on other documents than tuned"):
        report.results_of(rows, dict.fromkeys(rows, METHOD))


def test_what_is_wrong_is_counted_value_by_value(tmp_path):
    values = {"title_number": "1", "vin": "2", "year": 2004, "make": "VOLVO", "model": "XC90", "owner": None}
    right = json.dumps(values)
    others = [
        right,
        json.dumps(values | {"make": "OPEL", "owner": "XC90"}),
        json.dumps(values | {"year": None}),
        "no object",
    ]
    found = faults_in((right, other) for other in others)
    assert found["make"] == Faults(said=4, wrong=1, missing=1)
    assert found["year"] == Faults(said=4, missing=2)
    assert found["owner"] == Faults(silent=4, invented=1)
    assert found["vin"] == Faults(said=4, missing=1)
    turn = lambda role, text: {"role": role, "content": text}
    document = {"messages": [turn("user", "Read it."), turn("assistant", right)]}
    (tmp_path / "fresh.jsonl").write_text(json.dumps(document) + "\n")
    pair = {"id": "fresh.jsonl:1", "chosen": [turn("assistant", right)], "rejected": [turn("assistant", others[1])]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    assert rejected_answers(tmp_path / "pairs.jsonl", tmp_path / "fresh.jsonl") == [(right, others[1])]


@pytest.mark.slow
def test_from_end_to_end(tmp_path):
    """All commands, with a small random model; a second start runs none of them."""
    out = tmp_path / "out"
    run = lambda *more: smoke.started(tmp_path, "alignment", "--smoke", "--matmul=float32", *more)
    refused = run("--ways=dpo,ppo")
    assert "there is no 'ppo'; there are dpo, sft_on_right_answers, rlvr" in refused.stderr
    first, second = run(), run("--ways=rlvr")
    assert first.returncode == 0, first.stderr + first.stdout
    names = ["tuned", *WAYS]
    assert first.stdout.count("python -m sft_jax.train ") == first.stdout.count("python -m sft_jax.evaluate ") == 4
    assert second.returncode == 0, second.stderr
    assert "python -m" not in second.stdout
    results = json.loads((out / "results.json").read_text())  # of the second
    assert list(results["tasks"][report.TASK]["scores"]) == ["tuned", "rlvr"]
    assert results["costs"].keys() == {*names, "samples", *(f"evaluation of {name}" for name in names)}
    assert all(cost["processor_seconds"] > 0 for cost in results["costs"].values())
    pairs = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert all((pair["chosen_score"], pair["rejected_score"]) == (1.0, 0.0) for pair in pairs)
    assert pairs
    assert len((out / "table.md").read_text().strip().splitlines()) == 2 + 2
    assert len((out / "faults.md").read_text().strip().splitlines()) == 2 + 1 + 2
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_chain_from_end_to_end(tmp_path):
    """Each stage reads what the one before it made."""
    out, text = tmp_path / "out", tmp_path / "README.md"
    text.write_text("\n".join([*MARKS, ""]))
    run = lambda *more: smoke.started(tmp_path, "alignment", "--smoke", "--chain", "--matmul=float32", *more)
    assert "--ways and --chain: a chain has all its stages" in run("--ways=dpo").stderr
    done = run(f"--into={text}")
    assert done.returncode == 0, done.stderr + done.stdout
    names = ["base", "pretrained", "tuned", "dpo", "rlvr", "without_pretraining"]
    results = json.loads((out / "results.json").read_text())
    assert list(results["tasks"][report.TASK]["scores"]) == names
    source = {name: json.loads((out / name / "config.json").read_text())["model"]["source"] for name in names[1:]}
    base = Settings.model
    assert [Path(source[name]).name for name in names[2:5]] == names[1:4]
    assert all(base in source[name] for name in ("pretrained", "without_pretraining"))
    assert f"| {names[-1]} |" in text.read_text()
    assert (tmp_path / "plots" / "chain.png").exists()
