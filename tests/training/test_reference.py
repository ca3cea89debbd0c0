"""The reference is what a run begins with: computed once, kept, found again where it is the same and only there."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from rich.console import Console

from sft_jax import objectives
from sft_jax.data.batches import assemble
from sft_jax.data.tokenized.cached_values import cached_values
from sft_jax.objectives import has_reference
from sft_jax.training import reference, run
from sft_jax.training.checked_run import check_run
from sft_jax.training.checks import check_config
from sft_jax.training.reference import WrongReferenceError, check_begins_as_reference, reference_key
from sft_jax.training.trial import load_run_data
from tests import preferences, tiny
from tests.training.test_stop_after import log_of

QUIET = Console(quiet=True)
KEY = {"of": "a test"}


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# ---- The cache ------------------------------------------------------------------------------------------------------


def made(values, calls):
    def make():
        calls.append(1)
        return np.array(values, np.float32)

    return make


def test_values_are_kept_and_found(tmp_path):
    calls = []
    first, note = cached_values(tmp_path / "cache", KEY, 3, made([1, 2, 3], calls))
    assert note.startswith("computed, kept in ")
    again, found = cached_values(tmp_path / "cache", KEY, 3, made([7, 7, 7], calls))
    assert again.tolist() == first.tolist() == [1, 2, 3]
    assert found.startswith("from the cache, ")
    other, _ = cached_values(tmp_path / "cache", KEY | {"more": 1}, 3, made([4, 5, 6], calls))
    assert other.tolist() == [4, 5, 6]
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer"])
def test_damaged_values_are_made_again_and_that_is_said(tmp_path, damage):
    cached_values(tmp_path, KEY, 3, made([1, 2, 3], []))
    (path,) = tmp_path.glob("*.values")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"flipped": content, "cut": content[:-4], "empty": b"", "longer": content + b"0000"}[damage])
    values, note = cached_values(tmp_path, KEY, 3, made([4, 5, 6], []))
    assert values.tolist() == [4, 5, 6]
    assert note.startswith(f"computed again: {path} ")
    assert cached_values(tmp_path, KEY, 3, made([7, 8, 9], []))[0].tolist() == [4, 5, 6]


def test_without_a_directory_nothing_is_kept(tmp_path):
    values, note = cached_values(None, KEY, 1, made([1], []))
    assert (values.tolist(), note) == ([1], "computed, not kept")


def key_of(root, tmp_path, arg="full", **overrides):
    checked = check_run(preferences.config(root, arg, **overrides), epath.Path(tmp_path), jax.devices(), None)
    data = load_run_data(checked.options, len(jax.devices()), QUIET)
    return reference_key(checked, data.examples, data.plan.sequence_targets)


def test_what_the_key_knows(tmp_path):
    plain = key_of(tmp_path / "a", tmp_path)
    same = {"objective.beta": 0.5, "objective.tail_weight": 0.5, "objective.name": "dpo_hinge", "seed": 3}
    same |= {"optimizer.learning_rate": 1.0, "duration": "3 steps"}
    assert key_of(tmp_path / "a", tmp_path, **same) == plain
    preferences.config(tmp_path / "b")
    tensors = (tmp_path / "b" / "model" / "model.safetensors").read_bytes()
    changed = [
        key_of(tmp_path / "a", tmp_path, **{"precision.matmul": "bfloat16"}),
        key_of(tmp_path / "a", tmp_path, "lora"),
        key_of(tmp_path / "a", tmp_path, **{"batch.micro_batches": 2, "mesh.fsdp": 4, "mesh.tensor": 2}),
        key_of(tmp_path / "a", tmp_path, **{"data.train": str(tmp_path / "a" / "held_out_pairs.jsonl")}),
    ]
    (tmp_path / "b" / "model" / "model.safetensors").write_bytes(tensors[:-4] + b"\0\0\0\0")
    changed.append(key_of(tmp_path / "b", tmp_path))
    assert len({json.dumps(key, sort_keys=True) for key in (plain, *changed)}) == 1 + len(changed)


# ---- The values -----------------------------------------------------------------------------------------------------


def taken(monkeypatch):
    """The log-probabilities that a run computes, one array for each set of rows."""
    found, plain = [], reference.reference_of

    def noted(*args):
        found.append((args[2], plain(*args)))
        return found[-1][1]

    monkeypatch.setattr("sft_jax.training.reference.reference_of", noted)
    return found


def test_each_target_has_its_own(tmp_path, monkeypatch):
    """In the order of the rows, however they were packed: those of transformers on each whole conversation."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    found = taken(monkeypatch)
    config = preferences.config(tmp_path, duration="1 steps")
    run(config, tmp_path / "run", console=QUIET)
    assert [len(examples) for examples, _ in found] == [40, 10]
    model = transformers.LlamaForCausalLM.from_pretrained(config.model.source, dtype=torch.float32)
    for examples, values in found:
        assert len(values) == examples.supervised.sum()
        for number in (0, 3, len(examples) - 1):
            (tokens, weights), branch = examples.example(number), examples.branches_of(number)
            expected = []
            for answer in (1, 2):
                inside = (branch == 0) | (branch == answer)
                ids = torch.tensor(tokens[inside][None]).long()
                with torch.no_grad():
                    logs = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
                of_next = logs.gather(1, ids[0, 1:, None])[:, 0].numpy()
                expected += of_next[weights[inside][1:] > 0].tolist()
            start, end = examples.target_offsets[number : number + 2]
            np.testing.assert_allclose(values[start:end], expected, rtol=1e-5)


def test_an_initial_adapter_moves_it(tmp_path, monkeypatch):
    """The reference is the model with its adapter, and not the base below it."""
    from tests.training.test_initial_adapter import UNASKED, made_by_peft

    made_by_peft(tmp_path)
    found = taken(monkeypatch)
    moved = preferences.config(
        tmp_path, "lora", duration="1 steps", **UNASKED, **{"adapter.initial": str(tmp_path / "adapter")}
    )
    run(moved, tmp_path / "run", console=QUIET)
    run(preferences.config(tmp_path, "lora", duration="1 steps"), tmp_path / "plain", console=QUIET)
    with_adapter, of_base = found[0][1], found[2][1]
    assert np.abs(with_adapter - of_base).mean() > 0.05
    for workdir in ("run", "plain"):
        first = lines_of(tmp_path / workdir)[0]
        assert first["held_out/loss"] == pytest.approx(np.log(2), abs=1e-5)


KNOWN = {"dpo": np.log(2), "dpo_hinge": 1.0, "dpo_ipo": 1 / (4 * 0.1**2), "dpo_robust": np.log(2)}
SMOOTHED = {"dpo_robust": {"objective.label_smoothing": 0.1}}


@pytest.mark.parametrize("name", KNOWN)
def test_the_first_loss_is_known(tmp_path, name):
    options = {"objective.name": name, **SMOOTHED.get(name, {})}
    run(preferences.config(tmp_path, duration="2 steps", **options), tmp_path / "run")
    start, first, second = lines_of(tmp_path / "run")
    assert start["held_out/loss"] == pytest.approx(KNOWN[name], rel=1e-5)
    assert first["train/loss"] == pytest.approx(KNOWN[name], rel=1e-5)
    assert first["train/margin"] == pytest.approx(0, abs=1e-5)
    assert second["train/loss"] < KNOWN[name] - 1e-3


# ---- The check before the first step --------------------------------------------------------------------------------


def first_batch(root, tmp_path, **overrides):
    checked = check_run(preferences.config(root, **overrides), epath.Path(tmp_path), jax.devices(), None)
    data = load_run_data(checked.options, len(jax.devices()), QUIET)
    values = np.random.default_rng(0).uniform(-3, 0, int(data.examples.supervised.sum())).astype(np.float32)
    examples = dataclasses.replace(data.examples, reference=values)
    bins = data.plan.batch_bins(0)
    batch = assemble(examples, bins, sequence_length=288, sequence_targets=data.plan.sequence_targets)
    return checked.options, batch


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.02)])
@pytest.mark.parametrize("name", KNOWN)
def test_margins_that_are_off_stop_a_run(tmp_path, name, dtype, bound):
    """Each token by the bound: IPO has means of them, the others sums."""
    asked = {"objective.name": name, "precision.matmul": dtype, **SMOOTHED.get(name, {})}
    options, batch = first_batch(tmp_path, tmp_path, **asked)
    check_begins_as_reference(batch["reference"], batch, options)
    of_chosen = np.where(batch["branches"] % 2 == 1, np.float32(20 * bound), np.float32(0))
    check_begins_as_reference(batch["reference"] + np.float32(0.01) * of_chosen, batch, options)
    said = rf"name={name}: .*loss should be {KNOWN[name]:.4f}, and it is \d+\.\d+: rewards and margins are off"
    with pytest.raises(WrongReferenceError, match=said) as error:
        check_begins_as_reference(batch["reference"] + of_chosen, batch, options)
    assert f"of which rounding explains {bound:.2g}" in str(error.value)
    with pytest.raises(WrongReferenceError):  # both answers alike: no margin is off, and every reward is
        check_begins_as_reference(batch["reference"] - np.float32(100 * bound), batch, options)


def test_the_objectives_with_a_reference_are_known():
    assert KNOWN.keys() | {"kto"} == {name for name in objectives.KNOWN if has_reference(name)}


def test_values_of_other_weights_stop_a_run(tmp_path, monkeypatch):
    """As from a cache whose key forgets something."""
    monkeypatch.setattr("sft_jax.training.reference.reference_key", lambda *_: KEY)
    cache = {"data.cache": str(tmp_path / "cache"), "data.held_out": "", "checkpoint.best_metric": ""}
    run(preferences.config(tmp_path / "a", duration="1 steps", **cache), tmp_path / "run", console=QUIET)
    other = preferences.config(tmp_path / "a", duration="1 steps", **cache)
    tiny.write_checkpoint(tmp_path / "other", seed=5, num_hidden_layers=2)
    with other.unlocked():
        other.model.source = str(tmp_path / "other")
    with pytest.raises(WrongReferenceError, match=r"give another --config\.data\.cache, or an empty one"):
        run(other, tmp_path / "other run", console=QUIET)
    assert not list((tmp_path / "other run").glob("checkpoints/*"))
    with other.unlocked():
        other.data.cache = ""
    assert run(other, tmp_path / "other run with no cache", console=QUIET).step == 1


# ---- Runs -----------------------------------------------------------------------------------------------------------


def test_samples_answer_the_prompts_of_pairs(tmp_path, monkeypatch):
    """With the chosen answer as reference."""
    shown = []
    from sft_jax.training.recorder import Recorder

    monkeypatch.setattr(Recorder, "evaluation_at_start", lambda self, step, scalars, texts: shown.append(texts))
    options = {"evaluation.samples": 2, "evaluation.sample_tokens": 2, "objective.name": "cpo"}
    run(preferences.config(tmp_path, duration="1 steps", **options), tmp_path / "run", console=QUIET)
    first = json.loads((tmp_path / "held_out_pairs.jsonl").read_text().splitlines()[0])
    assert shown[0].keys() == {"samples/1", "samples/2"}
    assert first["prompt"] in shown[0]["samples/1"]
    assert first["chosen"] in shown[0]["samples/1"].partition("**reference**")[2]


def test_methods_without_a_reference_compute_none(tmp_path, monkeypatch):
    found = taken(monkeypatch)
    options = {"objective.name": "simpo", "objective.beta": 2.0, "objective.margin": 0.5}
    run(preferences.config(tmp_path, duration="3 steps", **options), tmp_path / "run", console=QUIET)
    assert not found
    losses = [line["train/loss"] for line in lines_of(tmp_path / "run") if "train/loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("arg", ["full", "lora"])
def test_a_run_goes_on_to_the_bit(tmp_path, arg):
    """With its reference in the cache, or computed anew from what it began with."""
    config = preferences.config(tmp_path, arg, **{"data.cache": str(tmp_path / "cache")})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, whole, console=QUIET)
    run(config, parts, console=QUIET, stop_after=2)
    kept = list((tmp_path / "cache").glob("*.values"))
    assert len(kept) == 2
    run(config, parts, console=QUIET, stop_after=4)
    for path in kept:
        path.unlink()
    run(config, parts, console=QUIET)
    assert log_of(parts) == log_of(whole)


# What is given, what is said, and what is advised in its place.
REFUSED = [
    ({"adapter.dropout": 0.1}, r"--config\.objective\.name=dpo compares .*give 0", {"adapter.dropout": 0.0}),
    ({"objective.neftune_alpha": 5.0}, r"neftune_alpha=5\.0: .*give 0", {"objective.neftune_alpha": 0.0}),
    ({"experts.capacity": 1.5}, r"--config\.experts\.capacity=1\.5: .*give 0", {"experts.capacity": 0.0}),
    (
        {"data.masking.train_on": "all"},
        r"train_on='all': of a pair .*give assistant or last",
        {"data.masking.train_on": "last"},
    ),
    (
        {"data.masking.end_of_turn": "all"},
        r"end_of_turn='all': of a pair .*give turn or last or none",
        {"data.masking.end_of_turn": "turn"},
    ),
    (
        {"data.masking.too_long": "truncate_left"},
        r"too_long='truncate_left': .*never cut; give drop or error",
        {"data.masking.too_long": "error"},
    ),
    ({"objective.z_loss": 0.1}, r"is not read by .*name=dpo; leave it at 0\.0", {"objective.z_loss": 0.0}),
    ({"objective.kl_to_base": 0.1}, r"kl_to_base=0\.1 is not read by", {"objective.kl_to_base": 0.0}),
    ({"objective.normalize": "examples"}, r"leave it at 'tokens'", {"objective.normalize": "tokens"}),
    ({"objective.positions": "all"}, r"leave it at 'supervised'", {"objective.positions": "supervised"}),
    ({"objective.margin": 1.0}, r"margin=1\.0 is not read by", {"objective.margin": 0.0}),
    ({"objective.name": "orpo"}, r"sft_weight=0\.0: ORPO adds .*give 1\.0", {"objective.sft_weight": 1.0}),
    (
        {"objective.name": "dpo_robust"},
        r"label_smoothing=0\.0: must lie between 0 and 0\.5",
        {"objective.label_smoothing": 0.1},
    ),
    ({"objective.label_smoothing": 0.5}, r"must be below 0\.5", {"objective.label_smoothing": 0.4}),
    (
        {"objective.per_token": True, "objective.tail_weight": 0.5},
        r"tail_weight=0\.5: means over tokens have none; give 1",
        {"objective.tail_weight": 1.0},
    ),
    (
        {"objective.name": "dpo_ipo", "objective.tail_weight": 0.5},
        r"tail_weight=0\.5 is not read by",
        {"objective.tail_weight": 1.0},
    ),
]


@pytest.mark.parametrize(("overrides", "message", "advised"), REFUSED)
def test_what_pairs_exclude_is_refused_and_what_is_advised_passes(tmp_path, overrides, message, advised):
    with pytest.raises(ValueError, match=message):
        check_config(preferences.config(tmp_path, "lora", **overrides))
    check_config(preferences.config(tmp_path, "lora", **overrides | advised))


def test_without_a_reference_dropout_is_allowed(tmp_path):
    check_config(preferences.config(tmp_path, "lora", **{"objective.name": "simpo", "adapter.dropout": 0.1}))
