"""What a run compiles: each kind of evaluation once, however often it is made; and what several uses share."""

import contextlib
import gc

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.data.batches import train_batches
from sft_jax.evaluation.held_out_loss import example_losses
from sft_jax.exports.golden import Golden, golden_logits
from sft_jax.generation import Sampler, prepare
from sft_jax.models import DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.initial import init_params
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.runs.base import open_base
from sft_jax.runs.metric_log import read_metrics
from sft_jax.sharding import inference_mesh, make_mesh, placement, put_batch
from sft_jax.training import programs, run, setup, trial
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.state import seed_array
from sft_jax.training.step import compile_train_step
from tests import tiny

COMPILATION = "/jax/core/compile/backend_compile_duration"
SCHEDULE_FREE = {"optimizer.name": "schedule_free", "optimizer.schedule": "constant"}


@contextlib.contextmanager
def compilations():
    """A list that gets the name of each program that JAX asks to have compiled."""
    seen: list[str] = []

    def listen(event, duration, fun_name="", **_):
        if event == COMPILATION:
            seen.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema.decay": 0.9, "ema.evaluate": True}, SCHEDULE_FREE])
def test_one_program_for_each_kind_of_evaluation(changes, tmp_path, monkeypatch):
    """Held-out metrics, samples and the choice of weights: all is compiled at the first of four evaluations."""
    counts, make = [], trial.compile_evaluation

    def counted(*arguments):
        evaluate = make(*arguments)

        def evaluate_and_count(*given):
            with compilations() as seen:
                result = evaluate(*given)
            counts.append(len(seen))
            return result

        return evaluate_and_count

    monkeypatch.setattr(trial, "compile_evaluation", counted)
    settings = {"duration": "3 steps", "evaluation.every": "1 steps", "checkpoint.every": "0 steps"}
    samples = {"evaluation.samples": 2, "evaluation.sample_tokens": 20, "precision.matmul": "bfloat16"}
    run(tiny.config(tmp_path, **settings | samples | changes), tmp_path / "run")
    assert len(counts) == 4
    assert counts[0] > 0
    assert counts[1:] == [0, 0, 0]


def test_uses_of_one_model_share_its_programs(tmp_path):
    """Samplers, losses by example, and logits of the golden conversation."""
    config = tiny.config(tmp_path)
    data, mesh = load_data(options_of(config)), inference_mesh(jax.devices())
    model = Decoder(DecoderConfig(320, 2, 32, 4, 2, 8, 48), Execution(matmul_dtype="bfloat16"))
    params = init_params(model.config, "scan", "float32", placement(mesh), 0, 0.02)
    golden = Golden((), "", np.arange(3, 20, dtype=np.int32), ())

    def use():
        with jax.set_mesh(mesh):
            prompts = [np.arange(3, 9, dtype=np.int32)]
            Sampler((2,)).generate(prepare(model, {"params": params}), prompts, max_new_tokens=4)
            example_losses(model, {"params": params}, data.held_out, mesh)
            golden_logits(model, {"params": params}, golden)

    use()
    with compilations() as seen:
        use()
    assert not seen


def test_layers_in_arrays_of_their_own_are_made_by_one_program():
    """Twelve layers take no more programs than two."""
    found = []
    for layers in (2, 12):
        config = DecoderConfig(320, layers, 32, 4, 2, 8, 40)
        with compilations() as seen:
            init_params(config, "unrolled", "float32", placement(inference_mesh(jax.devices())), 0, 0.02)
        found.append(len(seen))
    assert 0 < found[1] <= found[0] + 1  # keys are split by a program for each number


ONCE = {"evaluation.every": "0 steps", "checkpoint.every": "0 steps"}
REGULARISED = {"adapter.dropout": 0.1, "objective.label_smoothing": 0.1, "objective.neftune_alpha": 5.0}
NUMBERS = (
    {},
    {"seed": 1},
    {"optimizer.learning_rate": 2e-3, "optimizer.clip_norm": 0.0},
    {"adapter.alpha": 32.0, "adapter.scaling": "sqrt_rank", "adapter.dropout": 0.3},
    {"optimizer.weight_decay": 0.3, "optimizer.betas": (0.8, 0.99), "optimizer.epsilon": 1e-6},
    {"objective.label_smoothing": 0.3, "objective.neftune_alpha": 10.0},
    {"optimizer.warmup": "0 steps", "optimizer.final_share": 0.5, "duration": "5 steps"},
    {"seed": 2, "duration": "2 steps", "optimizer.warmup": "1 steps"},
)


def trained(root, name, arg="lora", **changes):
    """What a run logs, but for its times; and the names of the programs that it has compiled."""
    with compilations() as seen:
        run(tiny.config(root, arg, **{"duration": "3 steps"} | ONCE | changes), root / name)
    lines = read_metrics(root / name / "metrics.jsonl")
    return [{key: line[key] for key in line if key.startswith(("train/", "held_out/"))} for line in lines], seen


@pytest.mark.slow
def test_one_compilation_for_eight_runs_that_differ_in_numbers(tmp_path):
    """Seed, learning rate, alpha, decay, betas, smoothing, schedule, number of steps: all are data of the programs."""
    programs.forget()
    logs, first = trained(tmp_path, "0", **REGULARISED | NUMBERS[0])
    for name in ("train_step", "eval_step", "fresh_adapters", "init_rest"):
        assert first.count(f"jit({name})") == 1, name
    logs = [logs]
    for number, changes in enumerate(NUMBERS[1:], 1):
        log, compiled = trained(tmp_path, str(number), **REGULARISED | changes)
        assert compiled == [], changes
        logs.append(log)
    assert len({log[-1]["train/loss"] for log in logs}) == len(NUMBERS)
    programs.forget()
    alone, compiled = trained(tmp_path, "alone", **REGULARISED | NUMBERS[-1])
    assert "jit(train_step)" in compiled
    assert alone == logs[-1]


OTHERS = [
    (
        "full",
        {"optimizer.name": "schedule_free", "optimizer.schedule": "constant", "precision.params": "bfloat16"},
        {"optimizer.betas": (0.8, 0.99), "optimizer.learning_rate": 1e-3, "seed": 3},
    ),
    (
        "full",
        {"objective.kl_to_base": 0.1, "objective.z_loss": 1e-3, "optimizer.groups": ("embedding: weight_decay=0",)},
        {"objective.kl_to_base": 0.3, "objective.z_loss": 1e-2, "optimizer.groups": ("embedding: weight_decay=1",)},
    ),
    ("lora", {"adapter.method": "pissa"}, {"adapter.alpha": 2.0, "seed": 3}),
    ("full", {"ema.decay": 0.9, "ema.evaluate": True, "optimizer.name": "muon"}, {"ema.decay": 0.5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arg", "common", "changes"), OTHERS)
def test_a_second_run_with_other_numbers_compiles_nothing(arg, common, changes, tmp_path):
    programs.forget()
    one, _ = trained(tmp_path, "one", arg, **common)
    other, compiled = trained(tmp_path, "other", arg, **common | changes)
    assert compiled == []
    assert other[-1] != one[-1]
    programs.forget()
    assert trained(tmp_path, "alone", arg, **common | changes)[0] == other


@pytest.mark.slow
def test_what_is_another_program_is_compiled(tmp_path):
    """A term that is switched on, and an objective of the same name that is another function."""
    programs.forget()
    trained(tmp_path, "one")
    assert "jit(train_step)" in trained(tmp_path, "smoothed", **{"objective.label_smoothing": 0.1})[1]
    plain, smoothed = trained(tmp_path, "1"), trained(tmp_path, "2", **{"objective.label_smoothing": 0.1})
    assert plain[1] == smoothed[1] == []
    assert plain[0] != smoothed[0]


@pytest.fixture
def started(tmp_path):
    """(options, state of a seed, step, batch) of adapters with dropout, or of bfloat16 weights without."""

    def start(arg, **changes):
        config = tiny.config(tmp_path, arg, **changes)
        options, base = options_of(config), open_base(config.model.source)
        data, mesh = load_data(options), make_mesh(options.mesh, jax.devices())
        model = setup.make_model(options, base.decoder, mesh)
        state = setup.init_state(options, base, model, mesh, hyperparameters(options, 0, 10))
        step = compile_train_step(model, setup.step_settings(options, mesh), state, mesh)
        batch = put_batch(next(train_batches(data.examples, data.plan, 0, 1)), mesh)
        return mesh, state, step, batch

    return start


@pytest.mark.parametrize(
    ("arg", "changes", "figure"),
    [
        ("lora", {"adapter.dropout": 0.5}, "loss"),
        ("lora", {"objective.neftune_alpha": 10.0}, "loss"),
        ("full", {"precision.params": "bfloat16"}, "rounding"),
    ],
)
def test_each_seed_draws_its_own(arg, changes, figure, started):
    """Dropout, noise and rounding of one batch and the same weights, by one compiled step; a seed gives its own again.

    B of a fresh LoRA is 0, so that dropout has no effect yet: it is filled.
    """
    mesh, state, step, batch = started(arg, **changes)
    found = []
    with jax.set_mesh(mesh):
        for seed in (0, 1, 0, 2**31 + 1):
            copied = jax.tree.map(jnp.copy, state)
            filled = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.02, leaf.dtype), copied.trained)
            place = jax.device_put(seed_array(seed), state.seed.sharding)
            after, metrics = step(copied.replace(trained=filled, seed=place), batch)
            leaves = [np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(after.trained)]
            found.append(np.concatenate(leaves) if figure == "rounding" else np.asarray(metrics["loss"][0]))
    assert step._cache_size() == 1
    np.testing.assert_array_equal(found[0], found[2])
    for other in (found[1], found[3]):
        assert np.any(found[0] != other)


def test_each_seed_begins_with_its_own_adapters(started):
    """The same as ever: those of `jax.random.key(seed)`, whatever the number; only its lowest 32 bits count."""
    a = lambda seed: np.asarray(jax.tree.leaves(started("lora", seed=seed)[1].trained["adapters"])[0])
    zero = a(0)
    assert np.any(a(1) != zero)
    np.testing.assert_array_equal(a(2**32), zero)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 7])
def test_keys_of_the_seed_as_data_are_those_of_the_number(seed):
    expected = jax.random.key_data(jax.random.key(seed))
    np.testing.assert_array_equal(jax.random.key_data(jax.random.key(seed_array(seed))), expected)


def test_shared_functions_are_kept_in_a_bounded_number_and_without_arrays():
    made = []

    @programs.shared
    def make(signature):
        made.append(signature)
        return lambda: None

    signature = lambda size: programs.signature_of({"a": jnp.zeros(size), "b": [jnp.ones((2, size))]})
    gc.collect()
    before = len(jax.live_arrays())
    assert make(signature(1)) is make(signature(1))
    sizes = range(1, programs.KEPT + 2)
    for size in sizes:
        make(signature(size))
    assert [one.shapes[0] for one in made] == [(size,) for size in sizes]
    make(signature(1))  # the least recently used one went
    assert len(made) == len(sizes) + 1
    programs.forget()
    make(signature(1))
    assert len(made) == len(sizes) + 2
    gc.collect()
    assert len(jax.live_arrays()) == before


def test_a_run_leaves_no_arrays_behind(tmp_path):
    """What is shared between runs is programs."""
    left = []
    for name in ("one", "two"):
        trained(tmp_path, name)
        gc.collect()
        left.append(sum(array.nbytes for array in jax.live_arrays()))
    assert left[1] == left[0]
