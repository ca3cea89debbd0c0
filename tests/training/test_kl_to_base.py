"""A loss that keeps the model near its base: its definition, its gradient, and that neither depends on the machine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict

from sft_jax.models.layouts import to_layout
from sft_jax.models.loading import load_pretrained
from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.runs.metric_log import read_metrics
from sft_jax.sharding import shardings_of
from sft_jax.training import run
from tests import tiny
from tests.training.test_invariance import ALL_AT_ONCE, assert_same, batch_of, build, measure, mesh
from tests.training.three_models import write_three_models

FACTOR = 0.5
KL = {"objective.kl_to_base": FACTOR}
CASES = {
    "replica 2, fsdp 2, tensor 2": mesh(2, 2, 2),
    "4 micro-batches": {"batch.micro_batches": 4},
    "unpacked": {"data.packing": "none"},
    "chunked head": {"objective.head_chunk_tokens": 40},  # 5 slots of a row at a time: the last chunk is padded
    "all at once": ALL_AT_ONCE,
    "context 4, all at once": ALL_AT_ONCE | mesh(fsdp=2, context=4),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("kl")
    write_three_models(made)
    return made


def moved(root, arg, model="", **overrides):
    """A state some way from its base: all weights 1.05 times what they were; adapters are filled by `build`."""
    built = build(root, arg, model, **KL, **overrides)
    if arg == "lora":
        return built
    with jax.set_mesh(built.mesh):
        farther = jax.tree.map(lambda leaf: 1.05 * leaf, jax.device_get(built.state.trained))
        trained = jax.device_put(farther, shardings_of(farther, built.mesh))
    return dataclasses.replace(built, state=built.state.replace(trained=trained))


def test_it_is_its_definition(root):
    """One conversation at a time, in float64: sum_v p_base (ln p_base - ln p), beside the negative log-likelihood."""
    model, params = load_pretrained(root / "full" / "model")
    built = moved(root, "full")
    log_p = []
    rows = built.data.examples
    for factor in (1.0, 1.05):
        weights = {"params": jax.tree.map(lambda leaf, factor=factor: factor * leaf, params)}
        logits = jax.jit(lambda tokens, weights=weights: model.apply(weights, tokens))
        log_p.append([])
        for number in range(16):
            tokens, _ = rows.example(number)
            padded = np.zeros((1, 96), np.int32)
            padded[0, : len(tokens)] = tokens
            scores = np.asarray(logits(padded), np.float64)[0]
            log_p[-1].append(scores - np.log(np.exp(scores).sum(-1, keepdims=True)))
    divergences, nlls = [], []
    for number, (base, policy) in enumerate(zip(*log_p, strict=True)):
        tokens, weights = rows.example(number)
        for place in (place for place in range(1, len(tokens)) if weights[place] > 0):
            divergences.append((np.exp(base[place - 1]) * (base[place - 1] - policy[place - 1])).sum())
            nlls.append(-policy[place - 1, tokens[place]])
    metrics, _ = measure(built, batch_of(built))
    mean = {name: total / count for name, (total, count) in metrics.items()}
    assert mean["kl_to_base"] == pytest.approx(np.mean(divergences), rel=1e-5)
    assert mean["kl_to_base"] > 0.001
    assert mean["nll"] == pytest.approx(np.mean(nlls), rel=2e-6)
    assert mean["loss"] == pytest.approx(np.mean(nlls) + FACTOR * np.mean(divergences), rel=2e-6)


@pytest.mark.parametrize("chunk", [0, 40])
def test_its_gradient_is_that_of_the_dense_formula(root, chunk):
    built = moved(root, "full", **{"objective.head_chunk_tokens": chunk})
    batch = {name: jnp.asarray(array) for name, array in batch_of(built).items()}
    base = {"params": load_pretrained(root / "full" / "model")[1]}

    def log_p(variables):
        logits = built.model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"])
        return jax.nn.log_softmax(jnp.take_along_axis(logits, batch["target_slots"][:, :, None], 1))

    stacked = {"params": to_layout(base["params"], "scan")}

    def loss(trained):
        policy, reference = log_p(trained), log_p(stacked)
        nll = -jnp.take_along_axis(policy, batch["targets"][:, :, None], 2)[..., 0]
        divergence = (jnp.exp(reference) * (reference - policy)).sum(-1)
        return jnp.sum(batch["weights"] * (nll + FACTOR * divergence)) / jnp.sum(batch["weights"])

    trained = jax.device_get(built.state.trained)
    expected = flatten_dict(jax.device_get(jax.jit(jax.grad(loss))(trained)), sep="/")
    for path, leaf in measure(built, batch_of(built))[1].items():
        assert np.linalg.norm(leaf - expected[path]) <= 1e-5 * np.linalg.norm(expected[path]), path


@pytest.fixture(scope="module")
def reference(root):
    found = {}

    def measured(arg, model=""):
        if (arg, model) not in found:
            built = moved(root, arg, model)
            found[arg, model] = measure(built, batch_of(built))
        return found[arg, model]

    return measured


OFTEN = ("unpacked", "all at once")
EVERY = [case if case in OFTEN else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", EVERY)
def test_full_fine_tuning_on_any_machine(root, reference, case):
    built = moved(root, "full", **CASES[case])
    assert jax.tree.structure(built.state.base) == jax.tree.structure(built.state.trained)
    assert_same(measure(built, batch_of(built)), reference("full"))


@pytest.mark.parametrize("case", ["4 micro-batches", "all at once"])
def test_adapters_on_any_machine(root, reference, case):
    """There is no second copy of the weights: the base is the frozen ones."""
    built = moved(root, "lora", **CASES[case])
    assert built.state.base == {}
    assert reference("lora")[0]["kl_to_base"][0] > 0.1
    assert_same(measure(built, batch_of(built)), reference("lora"))


def test_adapters_against_the_weights_without_them(root):
    """The base's distribution is that of the pretrained checkpoint, and not that of the adapted model."""
    built = moved(root, "lora")
    batch = batch_of(built)
    zero = built.state.replace(trained=jax.tree.map(jnp.zeros_like, built.state.trained))
    assert measure(dataclasses.replace(built, state=zero), batch)[0]["kl_to_base"][0] == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_a_mixture_of_experts_on_any_machine(root, reference):
    built = moved(root, "full", "mixture", **mesh(1, 2, 2, expert=2), **{"batch.micro_batches": 2})
    assert reference("full", "mixture")[0]["kl_to_base"][0] > 0.1
    assert_same(measure(built, batch_of(built)), reference("full", "mixture"))


RUN = KL | {"duration": "4 steps", "checkpoint.every": "2 steps", "evaluation.every": "2 steps"}
RUNS = {
    "full": ("full", {"precision.frozen": "bfloat16"}),
    "lora": ("lora", {"precision.quantized": "int8"}),
    "some weights": ("full", {"trained.last_layers": 1, "precision.params": "bfloat16"}),
    "new tokens": ("lora", {"model.new_tokens": ("<|x|>",), "adapter.train_new_tokens": True}),
    "average": ("full", {"ema.decay": 0.5, "ema.evaluate": True}),
    "pissa": ("lora", {"adapter.method": "pissa"}),
}


def numbers(workdir):
    return [
        {name: value for name, value in line.items() if not name.startswith("speed/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_runs_log_it_keep_no_base_and_resume_exactly(case, tmp_path, monkeypatch):
    arg, overrides = RUNS[case]
    config = tiny.config(tmp_path, arg, **RUN, **overrides)
    result = run(config, tmp_path / "whole")
    lines = numbers(tmp_path / "whole")
    assert abs(lines[0]["held_out/kl_to_base"]) < 2e-3, "the base is where training starts"
    assert result.metrics["held_out/kl_to_base"] > 1e-3
    for line in lines[1:]:
        expected = line["train/nll"] + FACTOR * line["train/kl_to_base"]
        assert line["train/loss"] == pytest.approx(expected, rel=1e-5)
    checkpoints = Checkpoints(epath.Path(tmp_path / "whole"), keep_last=10, read_only=True)
    assert "base" not in checkpoints._described(4)
    checkpoints.close()

    class Killed(Exception):
        pass

    with monkeypatch.context() as patched:
        save = Checkpoints.save

        def save_and_die(self, step, *arguments):
            save(self, step, *arguments)
            self._wait_for_digests()
            raise Killed

        patched.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            run(config, tmp_path / "parts")
    run(config, tmp_path / "parts")
    assert numbers(tmp_path / "parts") == lines


def test_it_keeps_the_model_near_its_base(tmp_path):
    """Ten times the factor, a smaller divergence, and a larger loss on the task alone."""
    found = []
    for factor in (1.0, 10.0):
        config = tiny.config(tmp_path, "full", **RUN | {"objective.kl_to_base": factor})
        found.append(run(config, tmp_path / str(factor)).metrics)
    assert found[1]["held_out/kl_to_base"] < 0.5 * found[0]["held_out/kl_to_base"]
    assert found[1]["held_out/nll"] > found[0]["held_out/nll"]


@pytest.mark.parametrize("chunk", [0, 40])
def test_the_losses_of_slices_add_up_with_it(root, chunk):
    built = moved(root, "full", **{"objective.head_chunk_tokens": chunk})
    batch = batch_of(built)
    batch["slices"] = np.random.default_rng(0).integers(0, 2, batch["targets"].shape).astype(np.int32)
    sliced = dataclasses.replace(built, settings=dataclasses.replace(built.settings, slices=2))
    metrics, _ = measure(sliced, batch)
    sums, counts = metrics["loss_by_slice"]
    assert (counts > 50).all()
    np.testing.assert_allclose([sums.sum(), counts.sum()], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], measure(built, batch_of(built))[0]["loss"], rtol=1e-5)
