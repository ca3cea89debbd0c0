"""Runs that sample what they train on: what is kept, what is logged, and that it is the policy's own."""

import json

import jax
import numpy as np
import pytest

from configs.sft import reward, task
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.training import loop, run, trial
from sft_jax.training.effect import NoEffectError
from sft_jax.training.recorder import Recorder
from tests import rollouts, tiny
from tests.training.test_programs import compilations

HERE = "tests.training.rollouts.test_run"
ONE = {f"mesh.{axis}": 1 for axis in ("replica", "fsdp", "expert", "context", "tensor")}
LONG = {"duration": "12 steps", "rollouts.group": 8, "optimizer.learning_rate": 6e-2, "optimizer.warmup": "0 steps"}


def stumbles(answer, case):
    """Over some of what a random model writes, and over no reference."""
    if any(ord(letter) > 127 for letter in answer[:2]):
        raise KeyError(answer)
    return {"plain": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("rollouts")


@pytest.fixture(scope="module")
def finished(root):
    """A run on one device, of adapters, at another temperature than 1: its lines, its answers, what it compiled."""
    settings = {"rollouts.temperature": 0.7, "objective.kl_weight": 0.1, "adapter.rank": 3, **ONE, **LONG}
    with compilations() as seen:
        run(rollouts.config(root, "lora", **settings), root / "run", devices=jax.devices()[:1])
    return rollouts.lines_of(root / "run"), rollouts.samples_of(root / "run"), seen


def test_the_reward_rises(finished):
    lines, _, _ = finished
    rewards = [line["train/reward"] for line in lines if "train/reward" in line]
    assert len(rewards) == 12
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1


def test_the_trainer_and_the_sampler_have_one_policy(finished):
    """At a temperature of 0.7: without it in one of the two, log-probabilities would be some tenths apart."""
    lines, _, _ = finished
    gaps = [line["train/sampler_gap_max"] for line in lines if "train/sampler_gap_max" in line]
    assert len(gaps) == 12
    assert 0 < max(gaps) <= 1e-4
    assert all(line["train/sampler_gap"] <= line["train/sampler_gap_max"] for line in lines if "train/reward" in line)


def test_the_policy_begins_as_its_reference(finished):
    lines, _, _ = finished
    kl = [line["train/kl"] for line in lines if "train/kl" in line]
    assert abs(kl[0]) < 1e-6
    assert kl[-1] > 1e-3


def test_what_is_kept_of_answers(finished, root):
    lines, samples, _ = finished
    assert list(samples) == [f"{step:06d}.jsonl" for step in range(1, 13)]
    plan = load_data(options_of(rollouts.config(root, "lora", **LONG))).plan
    for step, of_step in enumerate(samples.values(), 1):
        assert [(line["id"], line["sample"]) for line in of_step] == [
            (name, sample) for name in plan.example_ids(step - 1) for sample in range(8)
        ]
        (line,) = (line for line in lines if line["step"] == step)
        np.testing.assert_allclose(np.mean([one["reward"] for one in of_step]), line["train/reward"], rtol=1e-12)
        assert line["train/sampled_tokens"] == sum(len(one["tokens"]) for one in of_step)
        for one in of_step:
            assert len(one["tokens"]) == len(one["logprobs"]) <= 8
            assert (one["tokens"][-1] == 2) == (one["finish_reason"] == "stop")  # the stop token is among them
        for group in range(4):
            of_group = np.array([one["reward"] for one in of_step[8 * group : 8 * group + 8]])
            advantages = [one["advantage"] for one in of_step[8 * group : 8 * group + 8]]
            np.testing.assert_allclose(advantages, of_group - of_group.mean(), atol=1e-12)


def test_what_is_compiled(finished):
    """One step; of the sampler, empty slots, reading and going on; and weights are prepared by one program."""
    _, _, seen = finished
    of_sampler = [name for name in seen if name in {f"jit({part})" for part in ("begin", "fill", "decode")}]
    assert sorted(of_sampler) == ["jit(begin)", "jit(decode)", "jit(fill)"]
    assert not {"jit(read_prefix)", "jit(empty_slots)", "jit(with_shorter_prompts)"} & set(seen)
    assert seen.count("jit(_for_products)") == 1
    assert seen.count("jit(train_step)") == 1


def test_answers_are_trained_as_they_were_drawn(root, monkeypatch):
    """Ids of a batch are those of the sampler, with stop tokens, and cut answers are left out."""
    batches, compile_step = [], loop.compile_train_step

    def compiled(*arguments):
        step = compile_step(*arguments)

        def kept(state, batch):
            batches.append(jax.device_get(batch))
            return step(state, batch)

        return kept

    monkeypatch.setattr(loop, "compile_train_step", compiled)
    # Under such a temperature each token is nearly as likely as any other, so that some answers end.
    settings = {"duration": "2 steps", "rollouts.truncated": "leave_out", "rollouts.temperature": 9.0}
    settings |= {"rollouts.max_new_tokens": 24, "rollouts.group": 16, "batch.sequences": 24}
    run(rollouts.config(root, **settings), root / "cut")
    lines = [line for line in rollouts.lines_of(root / "cut") if "train/reward" in line]
    for batch, of_step, line in zip(batches, rollouts.samples_of(root / "cut").values(), lines, strict=True):
        trained = [one for one in of_step if one["trained"]]
        assert {one["finish_reason"] for one in trained} == {"stop"}
        assert 0 < len(trained) < len(of_step)
        assert line["train/truncated"] == 1 - len(trained) / len(of_step)
        used, drawn = batch["weights"] > 0, lambda one: list(zip(one["tokens"], one["logprobs"], strict=True))
        found = zip(batch["targets"][used].tolist(), batch["drawn"][used].tolist(), strict=True)
        assert sorted(found) == sorted(pair for one in trained for pair in drawn(one))
        assert line["train/loss_weight"] == used.sum()


def test_failures_are_counted_apart(root):
    config = rollouts.config(root, rewards={"plain": reward(f"{HERE}:stumbles")}, duration="1 steps", **ONE)
    run(config, root / "failing", devices=jax.devices()[:1])
    (line,) = (line for line in rollouts.lines_of(root / "failing") if "train/reward" in line)
    (answers,) = rollouts.samples_of(root / "failing").values()
    failed = [one for one in answers if one["failed"]]
    assert 0 < len(failed) < len(answers)
    assert line["train/scorer_failed/plain"] == len(failed) / len(answers) == 1 - line["train/reward"]
    assert all(one["reward"] == 0 for one in failed)


def test_a_run_without_any_signal_says_so(root):
    config = rollouts.config(root, rewards={"match": reward("exact_match")}, duration="6 steps", **ONE)
    with pytest.raises(NoEffectError, match=r"in 6 steps all answers to each prompt were worth the same"):
        run(config, root / "no signal", devices=jax.devices()[:1])
    assert all(line["train/no_signal"] == 1 for line in rollouts.lines_of(root / "no signal"))


def test_held_out_rows_are_measured_and_answered(root):
    """By the likelihood of their references, and by tasks, whose metrics choose the best checkpoint."""
    settings = {"data.held_out": str(root / "held_out.jsonl"), "duration": "2 steps", "evaluation.every": "1 steps"}
    config = rollouts.config(root, **settings, **ONE, **{"checkpoint.best_is": "max"}).unlock()
    config.evaluation.tasks.asked = task(max_new_tokens=4, rows=3)
    config.checkpoint.best_metric = "tasks/asked/exact_match"
    result = run(config.lock(), root / "measured", devices=jax.devices()[:1])
    assert {"held_out/nll", "tasks/asked/exact_match"} <= result.metrics.keys()
    assert "held_out/gap" not in result.metrics
    assert json.loads((root / "measured" / "config.json").read_text())["rollouts"]["group"] == 4


def test_the_sum_of_rows_asked(root):
    """A step asks about as many rows as there are prompts, each once an epoch."""
    data = load_data(options_of(rollouts.config(root, **{"rollouts.prompts": 6})))
    asked = [name for step in range(8) for name in data.plan.example_ids(step)]
    assert len(set(asked)) == len(asked) == 48
    assert len(data.train_records) == 48
    assert not load_data(options_of(tiny.config(root))).train_records


def test_a_step_is_read_before_the_next_one_samples(root, monkeypatch):
    """So that its time is that of its own answers and update."""
    seen, sample, record = [], trial.Rollouts.__call__, Recorder.record

    def sampling(self, state, step, progress):
        seen.append(("sample", step + 1))
        return sample(self, state, step, progress)

    def recording(self, step, *rest):
        seen.append(("record", step))
        return record(self, step, *rest)

    monkeypatch.setattr(trial.Rollouts, "__call__", sampling)
    monkeypatch.setattr(Recorder, "record", recording)
    run(rollouts.config(root, duration="3 steps", **ONE), root / "order", devices=jax.devices()[:1])
    assert seen == [(what, step) for step in (1, 2, 3) for what in ("sample", "record")]
