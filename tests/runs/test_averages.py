"""What a run puts to use: the trained weights, their average over the steps, or schedule-free's own."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sft_jax.options import options_of
from sft_jax.runs.averages import for_use
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny
from tests.models import reference

STEPS, DECAY = 4, 0.7
QUIET = {"checkpoint.best_metric": "", "evaluation.every": "0 steps", "duration": f"{STEPS} steps"}


def loaded(directory, weights="trained"):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return reference.flat(load_for_inference(str(directory), mesh, "float32", weights).variables)


def stepwise(root, arg, name, **changes):
    """The trained parameters after each step, from a run that saves after each."""
    settings = QUIET | {"checkpoint.every": "1 steps", "checkpoint.keep_last": STEPS} | changes
    run(tiny.config(root, arg, **settings), root / name)
    return [loaded(f"{root / name}:{step}") for step in range(1, STEPS + 1)]


@pytest.mark.slow
def test_the_average_is_its_definition(tmp_path):
    """Begins at the weights of step 0; in each step 0.7 of itself and 0.3 of the weights. Of adapters, that is."""
    after = stepwise(tmp_path, "lora", "run", **{"ema.decay": DECAY})
    found = loaded(tmp_path / "run", "ema")
    start = tiny.config(tmp_path, "lora", **QUIET | {"optimizer.learning_rate": 0.0})
    run(start, tmp_path / "start")
    average = loaded(tmp_path / "start")
    for weights in after:
        average = {path: DECAY * average[path] + (1 - DECAY) * weights[path] for path in average}
    assert found.keys() == average.keys()
    for path, leaf in average.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=1e-7, err_msg=path)
    trained = [path for path in average if path.startswith("adapters/")]
    assert any(np.abs(found[path] - after[-1][path]).max() > 1e-4 for path in trained)


def test_evaluations_are_of_the_average_where_asked(tmp_path):
    """With a decay of nearly 1 the average stays at step 0, and so does what is measured."""
    settings = QUIET | {"evaluation.every": "2 steps", "ema.decay": 0.999999, "optimizer.learning_rate": 0.05}
    found = {}
    for evaluate in (False, True):
        run(tiny.config(tmp_path, **settings, **{"ema.evaluate": evaluate}), tmp_path / str(evaluate))
        lines = read_metrics(tmp_path / str(evaluate) / "metrics.jsonl")
        found[evaluate] = [line["held_out/nll"] for line in lines if "held_out/nll" in line]
    np.testing.assert_allclose(found[True], found[True][0], rtol=1e-3)
    assert found[False][-1] < found[False][0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["adam8bit", "muon", "adafactor", "schedule_free"])
def test_a_run_goes_on_with_its_average_and_its_rule(tmp_path, rule):
    """Continued after 2 of 4 steps: the same losses bit for bit, the same weights, the same average."""
    changes = {"ema.decay": DECAY, "optimizer.name": rule, "optimizer.learning_rate": 1e-3}
    changes |= {"optimizer.schedule": "constant", "execution.layer_layout": "scan"}
    settings = QUIET | {"checkpoint.every": "1 steps", "checkpoint.keep_last": STEPS} | changes
    run(tiny.config(tmp_path, **settings), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / str(step))
    run(tiny.config(tmp_path, **settings), tmp_path / "parts")
    losses = [
        [line["train/loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "train/loss" in line]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    for weights in ("trained", "ema"):
        whole, parts = (loaded(tmp_path / name, weights) for name in ("whole", "parts"))
        for path in whole:
            np.testing.assert_array_equal(whole[path], parts[path], err_msg=path)


def test_schedule_free_is_used_at_its_average(tmp_path):
    """What is loaded is optax's own x, and differs from where it trains."""
    kept = {}
    changes = {"optimizer.name": "schedule_free", "optimizer.schedule": "constant", "optimizer.learning_rate": 0.01}
    config = tiny.config(tmp_path, **QUIET, **changes)
    run(config, tmp_path / "run", evaluators={"keep": lambda model, state: kept.update(state=state) or {}})
    used = reference.flat(reference.in_layout(kept["state"].trained["params"], "unrolled"))
    found = loaded(tmp_path / "run")
    for path, leaf in used.items():
        np.testing.assert_allclose(found[f"params/{path}"], leaf, atol=1e-6)
    y, z = ({"w": jnp.asarray(x)} for x in ([1.0, 2.0], [3.0, -1.0]))
    state = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9).init(y)._replace(z=z)
    expected = optax.contrib.schedule_free_eval_params(state, y)
    ours = for_use({"trained": y, "opt_state/z": z}, options_of(config).optimizer.betas[0])
    np.testing.assert_allclose(ours["w"], expected["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema.evaluate": True}, "there is no average to evaluate"),
        ({"ema.decay": 1.0}, r"ema\.decay=1\.0 must lie in \[0, 1\)"),
        ({"optimizer.name": "schedule_free"}, r"schedule='cosine': schedule_free averages in place of a schedule"),
        ({"optimizer.name": "adam"}, "optimizer.name='adam' must be one of adamw"),
        ({"optimizer.name": "adafactor", "optimizer.betas": (0.8, 0.9)}, "betas=.* is not read by .*; leave it out"),
        (
            {"optimizer.name": "schedule_free", "optimizer.schedule": "constant", "optimizer.betas": (0.0, 0.95)},
            r"optimizer.betas=\(0.0, 0.95\): schedule_free .* above 0",
        ),
        ({"optimizer.epsilon": 0.0}, r"optimizer.epsilon=0.0 must be above 0"),
        ({"adapter.alpha": 0.0}, r"adapter.alpha=0.0 must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tiny.config(tmp_path, **changes), tmp_path / "run")


def test_a_run_without_an_average_says_so(tmp_path):
    run(tiny.config(tmp_path, **QUIET | {"duration": "1 steps"}), tmp_path / "run")
    with pytest.raises(ValueError, match="the run kept no average"):
        loaded(tmp_path / "run", "ema")
