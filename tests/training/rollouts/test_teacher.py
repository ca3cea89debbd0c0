"""A teacher that rewards the tokens of sampled answers: on-policy distillation."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.training import run
from sft_jax.training.checks import check_config
from tests import distillation, rollouts, tiny
from tests.training.rollouts import test_on_any_machine as machines
from tests.training.test_invariance import ALL_AT_ONCE, measure, mesh

QUIET = Console(quiet=True)
WEIGHT, TEMPERATURE = 0.5, 0.8


def config_for(root, arg="full", *, rewards=True, **overrides):
    teacher = root / "large"
    if not teacher.exists():
        tiny.write_checkpoint(teacher, seed=3, **distillation.TEACHER)
    given = {"objective.teacher_weight": WEIGHT, "teacher.source": str(teacher), "rollouts.temperature": TEMPERATURE}
    made = rollouts.config(root, arg, **(given | overrides)).unlock()
    if not rewards:
        made.rollouts.rewards = ConfigDict()
    return made.lock()


# ---- Its numbers -----------------------------------------------------------------------------------------------------

POLICY = {**machines.POLICY, "objective.teacher_weight": WEIGHT}
CASES = {
    "replica 2, fsdp 2, tensor 2": mesh(2, 2, 2),
    "4 micro-batches": {"batch.micro_batches": 4},
    "chunked head": {"objective.head_chunk_tokens": 112},
    "all at once": {name: value for name, value in ALL_AT_ONCE.items() if name != "objective.positions"},
}
OFTEN = ("4 micro-batches", "all at once")
EVERY = [case if case in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


def measured(root, **overrides):
    one = {f"mesh.{axis}": 1 for axis in ("replica", "fsdp", "expert", "context", "tensor")}
    made = config_for(root, **{**POLICY, **one, "batch.sequences": 16, "data.held_out": "", **overrides})
    built = distillation.build(made)
    return measure(built, machines.batch_of(built))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher")
    return root, measured(root)


@pytest.mark.parametrize("case", EVERY)
def test_on_any_machine(expected, case):
    root, reference = expected
    machines.assert_same(measured(root, **CASES[case]), reference)


def torch_losses(config, samples):
    """(loss, divergence from the teacher, gradient norm) of the first step, on the answers that the run drew."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    data = load_data(options_of(config))
    load = lambda source: transformers.LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    policy, teacher = load(config.model.source), load(config.teacher.source)
    prompts = {
        record.id: data.renderer.render_prompt(record.conversation[:-1]).tolist() for record in data.train_records
    }

    def of_tokens(model, one):
        prompt = prompts[one["id"]]
        logits = model(torch.tensor([prompt + one["tokens"]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(one["tokens"])[:, None])[:, 0]

    losses, divergences = [], []
    for one in samples:
        now, drawn = of_tokens(policy, one), torch.tensor(one["logprobs"])
        with torch.no_grad():
            likelier = of_tokens(teacher, one) - drawn
        losses.append(-torch.exp(now - drawn) * (one["advantage"] + WEIGHT * likelier))
        divergences.append(-likelier)
    loss = torch.cat(losses).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1e9)
    return loss.item(), torch.cat(divergences).mean().item(), float(norm)


@pytest.mark.parametrize("rewards", [True, False])
def test_a_step_agrees_with_torch(tmp_path, rewards):
    """Every token counts with its own advantage: at the first step no bound of the ratio takes one away."""
    config = config_for(tmp_path, rewards=rewards, duration="1 steps")
    run(config, tmp_path / "run", console=QUIET, devices=jax.devices()[:1])
    (line,) = [line for line in rollouts.lines_of(tmp_path / "run") if "train/loss" in line]
    ((_, samples),) = rollouts.samples_of(tmp_path / "run").items()
    loss, divergence, norm = torch_losses(config, samples)
    assert line["train/loss"] == pytest.approx(loss, abs=2e-5)
    assert line["train/teacher_kl"] == pytest.approx(divergence, abs=2e-5)
    assert line["train/grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert norm > 0.1
    assert line["train/clipped_low"] == line["train/clipped_high"] == 0
    assert ("train/reward" in line) is rewards
    assert ("train/no_signal" in line) is rewards


# ---- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_student_comes_nearer_to_its_teacher(tmp_path):
    """On what it says itself, with one answer to each prompt and no reward beside."""
    settings = {"duration": "30 steps", "rollouts.group": 1, "rollouts.prompts": 16, "optimizer.warmup": "0 steps"}
    settings |= {"optimizer.learning_rate": 1e-2, "rollouts.temperature": 1.0, "objective.teacher_weight": 1.0}
    config = config_for(tmp_path, rewards=False, **settings)
    run(config, tmp_path / "run", console=QUIET, devices=jax.devices()[:1])
    found = [line["train/teacher_kl"] for line in rollouts.lines_of(tmp_path / "run") if "train/teacher_kl" in line]
    assert len(found) == 30
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])


@pytest.mark.parametrize(
    ("name", "value", "message", "instead"),
    [
        ("teacher.top_k", 8, r"--config\.teacher\.top_k=8: the answers of a step are drawn in it, .*; give 0", 0),
        ("objective.temperature", 2.0, r"--config\.objective\.temperature=2\.0 is not read by .*=policy_gradient", 1.0),
        (
            "rollouts.group",
            1,
            r"--config\.rollouts\.group=1: the reward of an answer is compared .*; give 2 or more",
            2,
        ),
    ],
)
def test_what_is_refused_and_what_is_advised_passes(tmp_path, name, value, message, instead):
    config = config_for(tmp_path, **{name: value}).unlock()
    with pytest.raises(ValueError, match=message):
        check_config(config)
    config.update_from_flattened_dict({name: instead})
    check_config(config)


def test_a_weight_without_a_teacher_and_a_teacher_without_a_weight(tmp_path):
    with pytest.raises(
        ValueError, match=r"--config\.teacher\.source is empty, .*teacher_weight=0\.5\) imitates a teacher"
    ):
        run(config_for(tmp_path, **{"teacher.source": ""}), tmp_path / "run", console=QUIET)
    with pytest.raises(ValueError, match=r"--config\.teacher\.source=.* is not read by .*=policy_gradient"):
        check_config(config_for(tmp_path, **{"objective.teacher_weight": 0.0}))


def test_a_teacher_that_does_not_know_all_that_may_be_sampled(tmp_path):
    config = config_for(tmp_path)
    tiny.write_checkpoint(tmp_path / "model", num_hidden_layers=2, vocab_size=344)
    with pytest.raises(ValueError, match=r"large has embeddings of 336 tokens, and the student of 344"):
        run(config, tmp_path / "run", console=QUIET)


def test_a_teacher_with_too_few_positions(tmp_path):
    tiny.write_checkpoint(tmp_path / "short", max_position_embeddings=40)
    config = config_for(tmp_path, **{"teacher.source": str(tmp_path / "short")})
    with pytest.raises(ValueError, match=r"--config\.teacher\.source=.*short"):
        run(config, tmp_path / "run", console=QUIET)
