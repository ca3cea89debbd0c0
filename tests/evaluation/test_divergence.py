"""Divergence of two models on probe data: against torch, whatever the batch, the chunk and the mesh."""

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from sft_jax.data.records import read_records
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.evaluation.divergence import divergence_scores, example_divergences
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh, make_mesh
from sft_jax.training import run
from tests import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two models of one vocabulary, and one whose tokens have other ids."""
    made = tmp_path_factory.mktemp("divergence")
    tiny.write_checkpoint(made / "base", num_hidden_layers=2)
    tiny.write_checkpoint(made / "tuned", seed=1, num_hidden_layers=1)
    tiny.write_rows(made / "probe.jsonl", 11, seed=3)
    return made


def loaded(source, mesh, **options):
    with jax.set_mesh(mesh):
        return load_for_inference(str(source), mesh, "float32", **options)


def probe(root, model):
    examples, dropped = tokenize_records(read_records(str(root / "probe.jsonl")), model.renderer, 512)
    assert not dropped
    return examples


def measured(root, mesh, **options):
    base, tuned = (loaded(root / name, mesh) for name in ("base", "tuned"))
    with jax.set_mesh(mesh):
        return example_divergences(base, tuned, probe(root, base), mesh, **options)


@functools.cache
def torch_model(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def in_torch(directory, tokens):
    model = torch_model(directory)
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.from_numpy(tokens[None]).long()).logits[0].double(), -1)


@pytest.fixture(scope="module")
def found(root):
    return measured(root, inference_mesh(jax.devices()))


def test_against_torch(root, found):
    examples = probe(root, loaded(root / "base", inference_mesh(jax.devices())))
    assert len(found) == len(examples) == 11
    for number, outcome in enumerate(found):
        tokens, weights = examples.example(number)
        log_p, log_q = (in_torch(root / name, tokens)[:-1] for name in ("base", "tuned"))
        used = torch.from_numpy(weights[1:]).double()
        for column, p, q in (("kl_base_tuned_sum", log_p, log_q), ("kl_tuned_base_sum", log_q, log_p)):
            each = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
            assert outcome[column] == pytest.approx(float((each * used).sum()), rel=1e-4)
        assert outcome["kl_weight"] == float(used.sum())
    forward, reverse = (
        np.array([outcome[name] for outcome in found]) for name in ("kl_base_tuned_sum", "kl_tuned_base_sum")
    )
    assert np.abs(forward - reverse).max() > 1e-2 * forward.max(), "the directions can be told apart"


HOW = {
    "one at a time": (1, {"batch_sequences": 1}),
    "all at once": (1, {"batch_sequences": 11}),
    "chunks of 3": (1, {"head_chunk_tokens": 24}),
    "no chunks": (1, {"head_chunk_tokens": 0}),
    "8 devices": (8, {"batch_sequences": 3}),
}


@pytest.mark.parametrize("how", HOW)
def test_it_does_not_depend_on_the_machine(root, found, how):
    devices, options = HOW[how]
    sizes = {"replica": 1, "fsdp": -1, "expert": 1, "tensor": 2 if devices > 1 else 1}
    mesh = make_mesh(sizes, jax.devices()[:devices])
    for outcome, expected in zip(measured(root, mesh, **options), found, strict=True):
        assert outcome == pytest.approx(expected, rel=2e-6)


def test_the_base_and_itself(root):
    mesh = inference_mesh(jax.devices())
    base = loaded(root / "base", mesh)
    with jax.set_mesh(mesh):
        outcomes = example_divergences(base, base, probe(root, base), mesh)
    assert all(abs(outcome[name]) < 1e-6 for outcome in outcomes for name in ("kl_base_tuned_sum", "kl_tuned_base_sum"))


def test_scores_are_nats_a_token(found):
    scores = divergence_scores(found, seed=0)
    total, weight = (sum(outcome[name] for outcome in found) for name in ("kl_base_tuned_sum", "kl_weight"))
    assert scores.keys() == {"kl_base_tuned", "kl_tuned_base"}
    score = scores["kl_base_tuned"]
    assert score.value == pytest.approx(total / weight)
    assert score.low < score.value < score.high


def test_other_vocabularies_are_refused(root, tmp_path):
    mesh = inference_mesh(jax.devices())
    base = loaded(root / "base", mesh)
    tiny.write_checkpoint(tmp_path / "larger", vocab_size=384, num_hidden_layers=1)
    tiny.write_checkpoint(tmp_path / "other", num_hidden_layers=1)
    path = tmp_path / "other" / "tokenizer.json"
    path.write_text(path.read_text().replace('"a":', '"?a":').replace('"b":', '"a":').replace('"?a":', '"b":'))
    for name, message in (
        ("larger", "predicts 320 tokens, .*larger 384"),
        ("other", "have different tokens at 2 ids"),
    ):
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
            example_divergences(base, loaded(tmp_path / name, mesh), probe(root, base), mesh)


def test_of_a_run_with_new_tokens(tmp_path):
    """Its vocabulary is larger than the pretrained one: its base is the run at mix 0."""
    new = {"model.new_tokens": tuple(f"<|{number}|>" for number in range(70)), "duration": "2 steps"}
    run(tiny.config(tmp_path, "full", **new), tmp_path / "run")
    mesh = inference_mesh(jax.devices())
    tuned, pretrained = loaded(tmp_path / "run", mesh), loaded(tmp_path / "model", mesh)
    tiny.write_rows(tmp_path / "probe.jsonl", 3, seed=3)
    examples = probe(tmp_path, tuned)
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match="cannot be compared"):
            example_divergences(pretrained, tuned, examples, mesh)
        base = loaded(tmp_path / "run", mesh, mix=0.0)
        assert all(outcome["kl_base_tuned_sum"] > 0.01 for outcome in example_divergences(base, tuned, examples, mesh))


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "forgetting.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    run(tiny.config(tmp_path, "lora", duration="2 steps"), tmp_path / "runs" / "x")
    tiny.write_rows(tmp_path / "probe.jsonl", 5, seed=3)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "forgetting.md", "exec"), {})
    assert re.match(r"\{'kl_base_tuned': Score\(value=0\.\d+, low=0\.\d+", capsys.readouterr().out)
