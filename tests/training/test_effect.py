"""A run whose steps change nothing ends in an error, and an array that is trained in vain is named, once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import tests.training.poison  # noqa: F401  registers its objectives
from sft_jax.objectives import OBJECTIVES, cross_entropy
from sft_jax.options import options_of
from sft_jax.training import effect, run
from sft_jax.training.effect import NoEffectError, counted, no_counts, parts, squares
from sft_jax.training.state import TrainState
from tests import tiny

QUIET = {"data.held_out": "", "checkpoint.best_metric": "", "duration": "6 steps", "optimizer.warmup": "0 steps"}


def constant(logits, targets, weights, settings):
    metrics = cross_entropy(logits, targets, weights, settings)
    total, count = metrics["loss"]
    return metrics | {"loss": (jax.lax.stop_gradient(total), count)}


OBJECTIVES["constant"] = constant


def shown_by(root, name, arg="full", **changes):
    """What a run shows on the terminal."""
    config = tiny.config(root, arg, **QUIET | changes)
    with (root / f"{name}.txt").open("w") as file:
        run(config, root / name, console=Console(file=file, width=120))
    return (root / f"{name}.txt").read_text()


def test_squares_are_the_same_in_both_layouts():
    rng = np.random.default_rng(0)
    kernels, norm = rng.standard_normal((3, 4, 5)), rng.standard_normal(7)
    scan = {"params": {"layers": {"ffn": {"up": {"kernel": jnp.asarray(kernels)}}}, "final_norm": {"scale": norm}}}
    layers = {f"layers_{i}": {"ffn": {"up": {"kernel": jnp.asarray(kernels[i])}}} for i in (2, 0, 1)}
    unrolled = {"params": {**layers, "final_norm": {"scale": norm}}}
    for tree in (scan, unrolled):
        found = squares(tree)
        assert list(found) == ["final_norm/scale", "layers/ffn/up/kernel"]
        np.testing.assert_allclose(found["layers/ffn/up/kernel"], (kernels**2).sum((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(found["final_norm/scale"], [(norm**2).sum()], rtol=1e-5)
        expected = [("final_norm/scale", None), *(("layers/ffn/up/kernel", layer) for layer in range(3))]
        assert parts(tree) == expected
    last = {"params": {"layers_2": layers["layers_2"]}}
    assert parts(last) == [("layers/ffn/up/kernel", 2)]


def test_steps_that_are_not_finite_count_for_nothing():
    tree = {"params": {"a": jnp.ones(2), "b": jnp.zeros(2)}}
    counts = no_counts(tree)
    for finite in (True, False, True):
        counts = counted(counts, jnp.asarray(finite), squares(tree), squares(jax.tree.map(jnp.zeros_like, tree)))
    assert counts["gradient"].tolist() == [2, 0]
    assert counts["update"].tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["full", "lora"])
def test_a_run_in_which_all_moves_says_nothing(tmp_path, arg):
    """`a` of LoRA has no gradient at the first step."""
    assert "warning" not in shown_by(tmp_path, "run", arg)
    assert "warning" not in shown_by(tmp_path, "short", arg, duration="1 steps")


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_an_array_without_gradient_is_named_once(tmp_path, layout):
    """With gate and up at 0, nothing in the feed-forward part of layer 1 can move."""
    tiny.config(tmp_path)
    tensors = tiny.tensors(tiny.HF_CONFIG | {"num_hidden_layers": 2})
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.1.mlp.{name}.weight"][:] = 0
    tiny.save_file(tensors, str(tmp_path / "model" / "model.safetensors"))
    changes = {"execution.layer_layout": layout, "batch.micro_batches": 1}
    shown = " ".join(shown_by(tmp_path, "run", **changes, **{"checkpoint.every": "5 steps"}).split())
    names = ("ffn/down/kernel", "ffn/gate/kernel", "ffn/up/kernel", "ffn_norm/scale")
    listed = ", ".join(f"layers/{name} (layer 1)" for name in names)
    assert shown.count(f"warning: no gradient in the first 5 steps for {listed}.") == 1
    assert shown.count("warning") == 1


def test_it_is_not_said_again_after_a_restart(tmp_path):
    none = {"params": {}}
    state = lambda step, skipped: TrainState(step, none, {}, {}, {}, 0, skipped, 0, {}, {})
    config = tiny.config(tmp_path)
    for step, skipped, looked in ((0, 0, False), (4, 0, False), (6, 2, False), (5, 0, True), (7, 2, True)):
        watch = effect.EffectWatch(options_of(config).optimizer, state(step, skipped), lambda step, text: None)
        assert watch._looked == looked


def test_a_group_without_learning_rate_was_asked_for(tmp_path):
    """It has gradients and no update; not so the group whose rate is too small to be one."""
    groups = ("layers/ffn/.*: learning_rate_factor=0, weight_decay=0", "embedding: learning_rate_factor=1e-37")
    shown = " ".join(shown_by(tmp_path, "run", **{"optimizer.groups": groups}).split())
    assert shown.count("warning") == 1
    assert (
        "warning: gradients and no update in the first 5 steps for embedding: the learning rate is too small" in shown
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective.name": "constant"},
            "in 5 steps no trained array has had a gradient.*final_norm/scale.*layers 0-1",
        ),
        ({"objective.name": "constant", "duration": "1 steps"}, "in 1 steps no trained array has had a gradient"),
        ({"optimizer.groups": (".*: learning_rate_factor=0",)}, "in 5 steps no trained array has had an update"),
        (
            {"objective.name": "always poisoned", "duration": "2 steps"},
            r"all 2 steps were skipped.*skipped_steps\.jsonl",
        ),
    ],
)
def test_a_run_without_effect_is_an_error(tmp_path, changes, message):
    """And leaves no checkpoint that looks like a result."""
    changes = {"checkpoint.every": "100 steps", **changes}
    with pytest.raises(NoEffectError, match=message):
        shown_by(tmp_path, "run", **changes)
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()]


def test_a_learning_rate_of_0_is_as_asked(tmp_path):
    assert "The learning rate is 0" in shown_by(tmp_path, "run", **{"optimizer.learning_rate": 0.0})


def test_experts_without_tokens_are_no_finding():
    """Those of a layer are looked at together."""
    tree = {"params": {"layers": {"experts": {"up": {"kernel": jnp.zeros((2, 4, 3, 3)).at[:, 1].set(1.0)}}}}}
    assert [bool(value) for value in squares(tree)["layers/experts/up/kernel"] > 0] == [True, True]
