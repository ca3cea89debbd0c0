"""KTO: its rows, what a run of it is beside a plain torch loop, and that its numbers hang on no machine."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from sft_jax.data.batches import assemble
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.training import held_out, run
from sft_jax.training.reference import WrongReferenceError, check_begins_as_reference
from sft_jax.training.setup import in_use
from sft_jax.training.step import compile_eval_step
from tests import preferences, tiny
from tests.training import test_invariance as invariance
from tests.training.test_invariance import OF_ANSWERS, measure
from tests.training.torch_answers import ADAMW, assert_agrees, torch_steps

QUIET = Console(quiet=True)
ROWS = 16


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---- Rows -----------------------------------------------------------------------------------------------------------

LABELLED = [{"prompt": f"what is {n}", "completion": f"it is {n}", "label": n % 2} for n in range(40)]
PAIRS = [{"prompt": f"what is {n}", "chosen": f"it is {n}", "rejected": "no idea"} for n in range(40)]
PLAIN = [{"prompt": row["prompt"], "completion": row["completion"]} for row in LABELLED]
KTO = {"objective.name": "kto"}
IGNORED = {"data.reading.ignore": ("label",)}


def load(root, rows, held=None, **options):
    config = preferences.labelled_config(root, **{"checkpoint.best_metric": "", "data.held_out": ""} | options)
    with config.unlocked():
        config.data.train = write(root / "rows.jsonl", rows)
        config.data.held_out = write(root / "held.jsonl", held) if held else ""
    return load_data(options_of(config))


REFUSED = [  # rows, options, what is said, what is advised
    (LABELLED, {"objective.name": "cross_entropy"}, r"rows.jsonl:1: an answer with a label is not .*ignore=", IGNORED),
    (LABELLED, {"objective.name": "cross_entropy"}, r"preference\.py:kto learns from labels", KTO),
    (LABELLED, {"objective.name": "dpo"}, r"rows.jsonl:1: .*name=dpo compares two .*preference\.py:kto learns", KTO),
    (
        PLAIN,
        KTO,
        r"rows.jsonl:1: .*name=kto learns from answers .*sft\.py imitates",
        {"objective.name": "cross_entropy"},
    ),
    (
        PAIRS,
        {**KTO, "data.reading.preference": "chosen"},
        r"rows.jsonl:1: .*nobody says it of .*reading\.preference=pairs",
        {"data.reading.preference": "pairs"},
    ),
    (PLAIN, {"objective.name": "dpo"}, r"sft\.py imitates answers", {"objective.name": "cross_entropy"}),
]


@pytest.mark.parametrize(("rows", "options", "message", "advised"), REFUSED)
def test_rows_of_another_kind_are_refused_and_what_is_advised_passes(tmp_path, rows, options, message, advised):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, rows, **options)
    assert len(load(tmp_path, rows, **options | advised).examples) == 40
    with pytest.raises(ValueError, match=message.replace("rows.jsonl", "held.jsonl")):
        load(tmp_path, load_rows_for(options), rows[:3], **options)


def load_rows_for(options):
    """Rows that the objective of some options learns from."""
    by_name = {"cross_entropy": PLAIN, "dpo": PAIRS, "kto": LABELLED}
    rows = by_name[options["objective.name"]]
    return PLAIN if options.get("data.reading.preference") == "chosen" and rows is PAIRS else rows


@pytest.mark.parametrize(("label", "lacking"), [(True, "false"), (False, "true")])
def test_one_label_is_refused(tmp_path, label, lacking):
    rows = [row | {"label": label} for row in LABELLED]
    with pytest.raises(ValueError, match=rf"rows.jsonl:1 and all .* add rows with the label {lacking}"):
        load(tmp_path, rows)
    assert len(load(tmp_path, [*rows, rows[0] | {"label": not label}]).examples) == 41
    assert len(load(tmp_path, LABELLED, rows[:4]).held_out) == 4  # they are only measured


def test_one_prompt_is_refused(tmp_path):
    rows = [row | {"prompt": "what is it"} for row in LABELLED]
    with pytest.raises(ValueError, match=r"rows.jsonl:1: all answers are .*data\.train rows of several prompts"):
        load(tmp_path, rows)
    with pytest.raises(ValueError, match=r"held.jsonl:1: .*data\.held_out rows of several prompts"):
        load(tmp_path, LABELLED, rows[:4])
    assert len(load(tmp_path, [*rows, LABELLED[0]], LABELLED[:4]).examples) == 41


def test_what_is_too_long_with_another_answer_is_counted(tmp_path):
    long = {"prompt": "what", "completion": "it is " * 10, "label": True}
    size = {"data.sequence_length": 90}
    data = load(tmp_path, [*LABELLED, long], [*LABELLED[:3], long], **size)
    reason = "longer than 90 tokens with an answer to another prompt"
    assert {name: entry["rows"] for name, entry in data.report.numbers["dropped"].items()} == {reason: 1}
    assert f"1 more dropped, {reason}: held.jsonl:4" in data.held_out_note
    assert (len(data.examples), len(data.held_out)) == (40, 3)
    with pytest.raises(ValueError, match=rf"rows.jsonl:41: {reason}"):
        load(tmp_path, [*LABELLED, long], **size, **{"data.masking.too_long": "error"})
    assert len(load(tmp_path, [*LABELLED, long], **{"data.sequence_length": 96}).examples) == 41


def test_what_is_trained_is_the_answer(tmp_path):
    """With its end, and of the prompt nothing, whatever answers it has."""
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [{"prompt": asked, "completion": "yes", "label": True}, {"prompt": "d", "completion": "no", "label": False}]
    data = load(tmp_path, rows)
    decode = tiny.tokenizer().decode
    (tokens, weights), branch = data.examples.example(0), data.examples.branches_of(0)
    assert [decode(tokens[(branch == number) & (weights > 0)]) for number in (0, 1, 3)] == [
        "",
        "yes<|im_end|>",
        "no<|im_end|>",
    ]
    assert decode(tokens[branch == 0]).endswith("c<|im_end|>\n<|im_start|>assistant\n")


# ---- Beside torch ---------------------------------------------------------------------------------------------------

STEPS, BETA, WANTED, UNWANTED = 3, 0.2, 1.0, 1.5


def loss_of(ratio, examples, rows):
    """The loss, and the mean log-ratio of other answers, which is a number for all of the step."""
    torch = pytest.importorskip("torch")
    there = [(number, side) for number in rows for side in (1, 2) if side in examples.branches_of(number)]
    with torch.no_grad():
        others = torch.stack([ratio(number, side + 2) for number, side in there]).mean()
    losses = []
    for number, side in there:
        sign, weight = (1, WANTED) if side == 1 else (-1, UNWANTED)
        above = sign * BETA * (ratio(number, side) - others.clamp(min=0))
        losses.append(weight * (1 - torch.sigmoid(above)))
    return torch.stack(losses).mean(), others


@pytest.mark.parametrize("make", [preferences.labelled_config, preferences.config], ids=["labels", "pairs"])
def test_steps_agree_with_torch(tmp_path, make):
    sizes = {"duration": f"{STEPS} steps", "batch.micro_batches": 2}
    sizes |= {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.context": 2}
    numbers = {"beta": BETA, "desirable_weight": WANTED, "undesirable_weight": UNWANTED}
    objective = {"objective.name": "kto"} | {f"objective.{name}": value for name, value in numbers.items()}
    config = make(tmp_path, **ADAMW | sizes | objective)
    run(config, tmp_path / "run", console=QUIET)
    theirs = torch_steps(config, STEPS, loss_of)
    assert_agrees(lines_of(tmp_path / "run"), theirs, "kl", learnt=0.05, atol=1e-3, rtol=1e-4)


# ---- Any machine ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("kto")
    tiny.write_checkpoint(made / "full" / "model", num_hidden_layers=2)
    preferences.write_labelled(made / "full" / "labelled.jsonl", ROWS)
    preferences.write_labelled(made / "full" / "held_out_labelled.jsonl", 12, seed=1)
    return made


def build(root, **overrides):
    of_answers = {
        "objective.name": "kto",
        "data.train": str(root / "full" / "labelled.jsonl"),
        "data.held_out": str(root / "full" / "held_out_labelled.jsonl"),
        "data.sequence_length": 288,
        "checkpoint.best_metric": "held_out/loss",
    }
    return invariance.build(root, "full", **(of_answers | overrides))


def with_reference(examples):
    """A reference that gives every target less than the model does, so that the divergence is above 0."""
    values = np.random.default_rng(0).uniform(-6.9, -6.5, int(examples.supervised.sum())).astype(np.float32)
    return dataclasses.replace(examples, reference=values)


def batch_of(built):
    apart = built.config.data.packing == "none"
    bins = [np.array([i]) for i in range(ROWS)] if apart else [np.array([2 * i, 2 * i + 1]) for i in range(ROWS // 2)]
    return assemble(with_reference(built.data.examples), bins, sequence_length=288, sequence_targets=160)


@pytest.fixture(scope="module")
def expected(root):
    @functools.cache
    def measured():
        built = build(root)
        return measure(built, batch_of(built))

    return measured


CASES = {
    name: OF_ANSWERS[name]
    for name in ("fsdp 8", "fsdp 2, context 2", "2 micro-batches", "4 micro-batches", "unpacked", "all at once")
} | {"chunked head": {"objective.head_chunk_tokens": 72}}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_same(root, expected, case):
    built = build(root, **CASES[case])
    (metrics, gradient), (wanted, expected_gradient) = measure(built, batch_of(built)), expected()
    assert float(wanted["kl"][0]) > 1, "the divergence must be above 0 for the comparison to mean anything"
    assert metrics.keys() == wanted.keys()
    for name, pair in wanted.items():
        scale = abs(np.asarray(wanted["chosen_reward"][0])) + abs(np.asarray(wanted["rejected_reward"][0]))
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
    for path, leaf in expected_gradient.items():
        norm = np.linalg.norm(leaf)
        assert norm > 1e-5, f"{path}: this gradient shows nothing"
        assert np.linalg.norm(gradient[path] - leaf) <= 1e-5 * norm, path


@pytest.mark.parametrize("overrides", [{}, {"evaluation.batch_sequences": 2}, {"data.packing": "none"}])
def test_held_out_answers_are_measured_against_the_divergence_of_all(root, overrides):
    built = build(root, **{"evaluation.batch_sequences": 16, **overrides})
    data = dataclasses.replace(built.data, held_out=with_reference(built.data.held_out))
    options = options_of(built.config)
    settings = held_out.held_out_settings(options, built.settings, data, built.mesh)
    with jax.set_mesh(built.mesh):
        step = compile_eval_step(in_use(built.model), settings, built.state, built.mesh)
        found = held_out.held_out_metrics(step, built.state, data, options, built.mesh)
    scores = scores_of(built, data)
    point = max(scores[:, 1].mean(), 0)
    losses = 1 / (1 + np.exp(scores[:, 2] * 0.1 * (scores[:, 0] - point)))
    assert point > 1
    assert found["held_out/kl"] == pytest.approx(scores[:, 1].mean(), rel=1e-4)
    assert found["held_out/loss"] == pytest.approx(losses.mean(), rel=1e-4)


def scores_of(built, data):
    """Of each held-out answer its log-ratio, that of the other answer, and 1 or -1; by transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(built.config.model.source, dtype=torch.float32)
    examples, found = data.held_out, []
    for number in range(len(examples)):
        (tokens, weights), branch = examples.example(number), examples.branches_of(number)
        reference = examples.reference[slice(*examples.target_offsets[number : number + 2])]
        side, row = int(branch[branch > 0].min()), []
        for answer in (side, side + 2):
            inside = (branch == 0) | (branch == answer)
            ids, used = torch.tensor(tokens[inside][None]).long(), weights[inside][1:] > 0
            with torch.no_grad():
                logs = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0].numpy()
            row.append(logs[used].sum() - reference[branch[weights > 0] == answer].sum())
        found.append((*row, 1 if side == 1 else -1))
    return np.array(found)


# ---- Runs -----------------------------------------------------------------------------------------------------------


def test_the_first_loss_is_known_and_a_run_goes_on_to_the_bit(tmp_path):
    from tests.training.test_stop_after import log_of

    config = preferences.labelled_config(tmp_path, **{"batch.micro_batches": 2, "mesh.fsdp": 4, "mesh.tensor": 2})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, whole, console=QUIET)
    run(config, parts, console=QUIET, stop_after=2)
    run(config, parts, console=QUIET)
    assert log_of(parts) == log_of(whole)
    start, first, second, *_ = lines_of(whole)
    assert start["held_out/loss"] == pytest.approx(0.5, abs=1e-6)
    assert first["train/loss"] == pytest.approx(0.5, abs=1e-6)
    assert second["train/loss"] < 0.5 - 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_rewards_that_are_off_stop_a_run(root, dtype, bound):
    built = build(root, **{"precision.matmul": dtype})
    batch, options = batch_of(built), options_of(built.config)
    check_begins_as_reference(batch["reference"], batch, options)
    for branches in ((1,), (2,), (3, 4)):  # of answers that are wanted, of others, of other prompts
        off = np.where(np.isin((batch["branches"] - 1) % 4 + 1, branches), np.float32(10 * bound), np.float32(0))
        check_begins_as_reference(batch["reference"] + np.float32(0.01) * off, batch, options)
        with pytest.raises(WrongReferenceError, match=r"name=kto: .*loss should be 0\.5000, and it is 0\.\d+") as error:
            check_begins_as_reference(batch["reference"] + off, batch, options)
        assert f"of which rounding explains {bound:.2g}" in str(error.value)
