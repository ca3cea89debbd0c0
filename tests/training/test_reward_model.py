"""Reward models: the numbers of transformers on separate rows, whatever the machine; trained, resumed, exported."""

import functools
import json

import jax
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict
from rich.console import Console

from sft_jax.data.batches import assemble
from sft_jax.data.records import read_records
from sft_jax.evaluation.preferred import preference_scores, scores_of_pairs
from sft_jax.exports.directory import ExportError
from sft_jax.exports.model import export_model
from sft_jax.exports.source import check_format, open_source
from sft_jax.models.variables import SCORE
from sft_jax.options import options_of
from sft_jax.runs.base import open_base, open_run, with_head
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import first_scores, run
from sft_jax.training.checks import check_config
from sft_jax.training.first_scores import WrongScoreError
from tests import preferences, tiny
from tests.training import test_invariance as invariance
from tests.training.test_invariance import OF_ANSWERS, measure, mesh
from tests.training.test_stop_after import log_of

QUIET = Console(quiet=True)
SILENT = lambda title, total: lambda done, total: None
ROWS = 16


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# ---- Runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, tmp_path_factory):
    """(config, run directory) of a finished run; under adapters the head is a weight of its own in the base."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "lora":
        tiny.write_checkpoint(root / "model", num_hidden_layers=2, tie_word_embeddings=False)
    config = preferences.reward_config(
        root, request.param, **{"objective.centring": 0.01, "optimizer.learning_rate": 0.02, "duration": "6 steps"}
    )
    run(config, root / "run", console=QUIET)
    return config, root / "run"


def test_the_first_loss_is_ln_2_and_it_learns(trained):
    _, workdir = trained
    start, *steps = lines_of(workdir)
    assert start["held_out/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert start["held_out/accuracy"] == 0
    assert steps[0]["train/chosen_reward"] == 0
    losses = [line["train/loss"] for line in steps if "train/loss" in line]
    assert losses[-1] < losses[0] - 0.05
    last = [line for line in steps if "held_out/accuracy" in line][-1]
    assert last["held_out/accuracy"] > 0.5
    assert last["held_out/margin"] == pytest.approx(
        last["held_out/chosen_reward"] - last["held_out/rejected_reward"], abs=1e-5
    )
    assert steps[1]["train/grad_norm/score"] > 0


def test_the_head_is_trained_whole_and_saved(trained):
    config, workdir = trained
    found = open_run(str(workdir))
    tree = flatten_dict(found.trained("unrolled", inference_mesh(jax.devices())), sep="/")
    kept = {path for path in tree if path.startswith("params/")}
    assert np.abs(np.asarray(tree["params/score"])).max() > 0
    assert tree["params/score"].shape == (32, 1)
    assert "params/head" not in tree
    assert (kept == {"params/score"}) == (config.adapter.method == "lora")


def test_a_run_goes_on_to_the_bit(trained, tmp_path):
    config, workdir = trained
    run(config, tmp_path / "parts", console=QUIET, stop_after=2)
    run(config, tmp_path / "parts", console=QUIET)
    assert log_of(tmp_path / "parts") == log_of(workdir)


def test_another_run_begins_with_the_head_of_an_earlier_one(trained, tmp_path):
    config, workdir = trained
    config = config.copy_and_resolve_references().unlock()
    config.model.source, config.duration = str(workdir), "1 steps"
    run(config.lock(), tmp_path / "again", console=QUIET)
    before = [line for line in lines_of(workdir) if "held_out/loss" in line][-1]
    assert lines_of(tmp_path / "again")[0]["held_out/loss"] == pytest.approx(before["held_out/loss"], abs=1e-5)
    with config.unlocked():
        config.model.head, config.objective.name = "vocabulary", "dpo"
        config.objective.centring = 0.0
    with pytest.raises(ValueError, match=r"head=vocabulary: .*is a reward model, .*model\.head=score"):
        run(config, tmp_path / "refused", console=QUIET)


def test_a_head_that_does_not_begin_at_zero_stops_a_run(tmp_path, monkeypatch):
    config = preferences.reward_config(tmp_path, duration="1 steps")
    monkeypatch.setattr("sft_jax.runs.base.fresh_score", lambda size: np.full((size, 1), 0.1, np.float32))
    with pytest.raises(WrongScoreError, match=r"name=reward: before the first step .* and there is a score of \d"):
        run(config, tmp_path / "run", console=QUIET)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert first_scores._LARGEST < 1e-3


# ---- Beside transformers --------------------------------------------------------------------------------------------


def scores_by_transformers(directory, texts, **how):
    """Of whole conversations, padded to one length and in batches of two."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(str(directory), dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), **how)
    found = []
    for start in range(0, len(texts), 2):
        batch = tokenizer(texts[start : start + 2], padding=True, add_special_tokens=False, return_tensors="pt")
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            found += model(**batch).logits[:, 0].tolist()
    return np.array(found)


def exported(workdir, out):
    source = open_source(str(workdir))
    devices = inference_mesh(jax.devices())
    with jax.set_mesh(devices):
        export_model(source, epath.Path(out), devices, "float32", SILENT)
    return out


def test_exported_it_scores_the_same_in_transformers(trained, tmp_path):
    config, workdir = trained
    records = read_records(config.data.held_out)[:6]
    devices = inference_mesh(jax.devices())
    with jax.set_mesh(devices):
        loaded = load_for_inference(str(workdir), devices, "float32", scores=True)
        ours = scores_of_pairs(loaded, records, devices)
    assert np.abs(ours).max() > 0.1
    out = exported(workdir, tmp_path / "exported")
    written = json.loads((out / "config.json").read_text())
    assert written["architectures"] == ["LlamaForSequenceClassification"]
    assert written["id2label"] == {"0": "score"}
    assert written["pad_token_id"] == 0, "<|endoftext|>: the tokenizer's own padding ends turns"
    chat = lambda record, answer: tiny.tokenizer().apply_chat_template(
        [{"role": m.role, "content": m.content} for m in record.example.prompt + getattr(record.example, answer)],
        tokenize=False,
    )
    for column, answer in enumerate(("chosen", "rejected")):
        texts = [chat(record, answer) for record in records]
        for side in ("right", "left"):
            theirs = scores_by_transformers(out, texts, padding_side=side)
            np.testing.assert_allclose(theirs, ours[:, column], atol=1e-4)
        ended = [text.removesuffix("\n") for text in texts]  # which then end with what the tokenizer pads with
        apart = np.concatenate([scores_by_transformers(out, [text]) for text in ended])
        np.testing.assert_allclose(scores_by_transformers(out, ended), apart, atol=1e-5)
    golden = json.loads((out / "golden.json").read_text())
    assert scores_by_transformers(out, [golden["text"]])[0] == pytest.approx(golden["score"], abs=1e-4)
    assert "AutoModelForSequenceClassification" in (out / "README.md").read_text()


def test_what_is_exported_is_a_reward_model_again(trained, tmp_path):
    config, workdir = trained
    out = exported(workdir, tmp_path / "exported")
    assert open_base(str(out)).decoder.scores
    records, devices = read_records(config.data.held_out), inference_mesh(jax.devices())
    with jax.set_mesh(devices):
        of = lambda source: scores_of_pairs(
            load_for_inference(str(source), devices, "float32", scores=True), records, devices
        )
        np.testing.assert_allclose(of(out), of(workdir), atol=1e-5)


def test_scores_of_a_file_are_the_held_out_metrics(trained):
    config, workdir = trained
    last = [line for line in lines_of(workdir) if "held_out/accuracy" in line][-1]
    records, devices = read_records(config.data.held_out), inference_mesh(jax.devices())
    with jax.set_mesh(devices):
        loaded = load_for_inference(str(workdir), devices, "float32", scores=True)
        found = preference_scores(scores_of_pairs(loaded, records, devices, batch_sequences=3))
    assert found["accuracy"].value == pytest.approx(last["held_out/accuracy"])
    assert found["margin"].value == pytest.approx(last["held_out/margin"], abs=1e-5)
    for score in found.values():
        assert score.low < score.value < score.high or score.value in (0.0, 1.0)


def test_what_it_cannot_do_is_refused(trained, tmp_path):
    config, workdir = trained
    devices = inference_mesh(jax.devices())
    with pytest.raises(
        ValueError, match=r"is a reward model: it scores texts and writes none; python -m sft_jax\.score"
    ):
        load_for_inference(str(workdir), devices)
    with pytest.raises(ValueError, match=r"is no reward model; --config=configs/reward_model\.py trains one"):
        load_for_inference(config.model.source, devices, scores=True)
    if config.adapter.method == "lora":
        with pytest.raises(ExportError, match=r"score head that is trained whole, .*give --format=merged"):
            check_format(open_source(str(workdir)), "peft")
        with pytest.raises(ExportError, match=r"give --format=merged for the whole model"):
            check_format(open_source(str(workdir)), "hf")
        check_format(open_source(str(workdir)), "merged")
        with pytest.raises(ValueError, match=r"--mix=0\.5: .* score head .* is not mixed; give --mix=1"):
            open_source(str(workdir), mix=0.5)


# ---- Any machine ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("reward")
    tiny.write_checkpoint(made / "full" / "model", num_hidden_layers=2)
    tiny.write_checkpoint(made / "lora" / "model", num_hidden_layers=2, tie_word_embeddings=False)
    for name in ("full", "lora"):
        preferences.write_margins(made / name / "margins.jsonl", ROWS)
    return made


def build(root, arg="full", **overrides):
    """With a head that is not zero, so that all weights have a gradient."""
    of_scores = {
        "objective.name": "reward",
        "model.head": "score",
        "objective.centring": 0.01,
        "data.train": str(root / arg / "margins.jsonl"),
        "data.held_out": "",
        "checkpoint.best_metric": "",
        "data.sequence_length": 288,
    }
    drawn = (np.random.default_rng(0).standard_normal((32, 1)) * 0.2).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sft_jax.runs.base.fresh_score", lambda size: drawn)
        return invariance.build(root, arg, **(of_scores | overrides))


@pytest.fixture(scope="module", autouse=True)
def scoring_base():
    """`build` of the invariance tests opens a source by its name: here with the head that scores."""
    plain = invariance.open_base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(invariance, "open_base", lambda source: with_head(plain(source), SCORE))
        yield


def batch_of(built):
    apart = built.config.data.packing == "none"
    bins = [np.array([i]) for i in range(ROWS)] if apart else [np.array([2 * i, 2 * i + 1]) for i in range(ROWS // 2)]
    return assemble(built.data.examples, bins, sequence_length=288, sequence_targets=8)


@pytest.fixture(scope="module")
def expected(root):
    @functools.cache
    def measured(arg):
        built = build(root, arg)
        return measure(built, batch_of(built))

    return measured


CASES = {
    "fsdp 8": ("full", mesh(1, 8, 1)),
    "fsdp 2, context 2": ("full", mesh(fsdp=2, context=2)),
    "4 micro-batches": ("full", {"batch.micro_batches": 4}),
    "unpacked": ("full", {"data.packing": "none"}),
    "all at once": ("full", OF_ANSWERS["all at once"]),
    "adapters, replica 2, fsdp 2, tensor 2": ("lora", mesh(2, 2, 2) | {"batch.micro_batches": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_same(root, expected, case):
    arg, overrides = CASES[case]
    built = build(root, arg, **overrides)
    (metrics, gradient), (wanted, expected_gradient) = measure(built, batch_of(built)), expected(arg)
    scale = abs(float(wanted["chosen_reward"][0])) + abs(float(wanted["rejected_reward"][0]))
    for name, pair in wanted.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
    assert "params/score" in expected_gradient
    assert gradient.keys() == expected_gradient.keys()
    for path, leaf in expected_gradient.items():
        norm = np.linalg.norm(leaf)
        assert norm > 1e-6, f"{path}: this gradient shows nothing"
        assert np.linalg.norm(gradient[path] - leaf) <= 1e-5 * norm, path


def test_loss_and_gradients_are_those_of_torch(root):
    """LlamaForSequenceClassification on two rows a pair, by TRL's formula."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    built = build(root)
    metrics, gradient = measure(built, batch_of(built))
    theirs = transformers.LlamaForSequenceClassification.from_pretrained(
        built.config.model.source, num_labels=1, dtype=torch.float32
    )
    theirs.score.weight.data = torch.tensor(np.asarray(built.state.trained["params"]["score"]).T.copy())
    examples, total = built.data.examples, 0.0
    for number in range(ROWS):
        (tokens, _), branch = examples.example(number), examples.branches_of(number)
        chosen, rejected = (
            theirs(torch.tensor(tokens[(branch == 0) | (branch == side)][None]).long()).logits[0, 0] for side in (1, 2)
        )
        margin = float(examples.margins[number])
        total = total - torch.nn.functional.logsigmoid(chosen - rejected - margin) + 0.01 * (chosen + rejected) ** 2
    loss = total / ROWS
    loss.backward()
    assert (examples.margins > 0).sum() == 6
    assert float(metrics["loss"][0] / metrics["loss"][1]) == pytest.approx(loss.item(), rel=1e-5)
    pairs = {
        "params/score": theirs.score.weight.grad.T,
        "params/embedding": theirs.model.embed_tokens.weight.grad,
        "params/layers/ffn/down/kernel": torch.stack(
            [layer.mlp.down_proj.weight.grad.T for layer in theirs.model.layers]
        ),
    }
    for path, leaf in pairs.items():
        np.testing.assert_allclose(gradient[path], leaf.numpy(), rtol=1e-3, atol=2e-6, err_msg=path)


# ---- Options --------------------------------------------------------------------------------------------------------

REFUSED = [  # what is given, what is said, what is advised
    (
        {"model.head": "vocabulary"},
        r"head=vocabulary: .*name=reward .*give --config\.model\.head=score",
        {"model.head": "score"},
    ),
    (
        {"objective.name": "dpo"},
        r"head=score: .*name=dpo .*give --config\.model\.head=vocabulary",
        {"model.head": "vocabulary"},
    ),
    (
        {"evaluation.samples": 3},
        r"samples=3: a reward model scores texts and writes none; give 0",
        {"evaluation.samples": 0},
    ),
    (
        {"objective.beta": 0.5},
        r"beta=0\.5 is not read by --config\.objective\.name=reward; leave it",
        {"objective.beta": 0.1},
    ),
    ({"objective.margin": 0.5}, r"margin=0\.5 is not read by", {"objective.margin": 0.0}),
    ({"data.masking.too_long": "truncate_right"}, r"never cut; give drop or error", {"data.masking.too_long": "drop"}),
]


@pytest.mark.parametrize(("overrides", "message", "advised"), REFUSED)
def test_what_it_excludes_is_refused_and_what_is_advised_passes(tmp_path, overrides, message, advised):
    with pytest.raises(ValueError, match=message):
        check_config(preferences.reward_config(tmp_path, **overrides))
    check_config(preferences.reward_config(tmp_path, **overrides | advised))


def test_only_it_reads_centring(tmp_path):
    with pytest.raises(ValueError, match=r"centring=0\.1 is not read by --config\.objective\.name=dpo"):
        check_config(preferences.config(tmp_path, **{"objective.centring": 0.1}))


def test_rows_of_one_answer_are_refused(tmp_path):
    from sft_jax.preparation.run_data import load_data

    preferences.write_labelled(tmp_path / "labelled.jsonl", 8)
    config = preferences.reward_config(tmp_path, **{"data.train": str(tmp_path / "labelled.jsonl")})
    with pytest.raises(ValueError, match=r"labelled.jsonl:1: --config.objective.name=reward compares two answers"):
        load_data(options_of(config))
