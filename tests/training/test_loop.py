"""The loop: one compilation, shardings as asked for, no sync, steps that are skipped, options that are read."""

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from rich.console import Console

import tests.training.poison  # noqa: F401  registers its objectives
from sft_jax.models.partitioning import PARAM_AXES
from sft_jax.runs.metric_log import read_metrics
from sft_jax.sharding import path_string
from sft_jax.training import held_out, loop, programs, run, trial
from sft_jax.training.recorder import DivergedError, Recorder
from tests import tiny
from tests.training.moments import at

CUBE = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "execution.layer_layout": "scan"}
# The shape that is split and how, on a mesh (2, 2, 2). d=32, ffn=48, vocabulary 320, 2 kv heads of 8, LoRA rank 4.
FULL_SPECS = {
    "embedding": P(None, ("tensor", *PARAM_AXES)),
    "layers/attention/query/kernel": P(None, PARAM_AXES, "tensor"),
    "layers/attention/key/kernel": P(None, PARAM_AXES, "tensor"),
    "layers/attention/value/kernel": P(None, PARAM_AXES, "tensor"),
    "layers/attention/out/kernel": P(None, "tensor", PARAM_AXES),
    "layers/ffn/gate/kernel": P(None, PARAM_AXES, "tensor"),
    "layers/ffn/up/kernel": P(None, PARAM_AXES, "tensor"),
    "layers/ffn/down/kernel": P(None, "tensor", PARAM_AXES),
    "layers/attention_norm/scale": P(),
    "layers/ffn_norm/scale": P(),
    "final_norm/scale": P(),
}


class Watched:
    """A run with its calls in order, its jitted functions, and its last state."""

    def __init__(self, root: Path, arg: str, **overrides):
        self.calls: list[tuple[str, int]] = []
        self.compiled: dict[str, list] = {"compile_train_step": [], "compile_eval_step": []}
        self.config = tiny.config(root, arg, **overrides)
        self.workdir = root / f"run {arg}"
        with pytest.MonkeyPatch.context() as patch:
            for module, (name, made) in zip((loop, held_out), self.compiled.items(), strict=True):
                patch.setattr(module, name, self._keep(getattr(module, name), made, name))
            record = Recorder.record

            def recorded(recorder, step, *arguments):
                self.calls.append(("read", step))
                return record(recorder, step, *arguments)

            patch.setattr(Recorder, "record", recorded)
            programs.forget()  # runs of other tests may have compiled them for batches of other shapes
            self.result = run(self.config, self.workdir)
        self.lines = read_metrics(self.workdir / "metrics.jsonl")

    def _keep(self, compile_step, made, name):
        def compile_and_keep(*arguments):
            compiled = compile_step(*arguments)
            made.append(compiled)
            if name == "compile_eval_step":
                return compiled
            count = 0

            def step(state, batch):
                nonlocal count
                count += 1
                self.calls.append(("dispatch", count))
                self.state, metrics = compiled(state, batch)
                return self.state, metrics

            return step

        return compile_and_keep


@pytest.fixture(scope="module", params=["full", "lora"])
def watched(request, tmp_path_factory):
    return Watched(tmp_path_factory.mktemp("loop"), request.param, **CUBE)


def test_one_compilation(watched):
    """Over evaluations at 0, 3 and 6 and checkpoints at 2, 3, 4 and 6."""
    assert watched.result.step == 6
    for name, made in watched.compiled.items():
        assert [step._cache_size() for step in made] == [1], name


def test_metrics_are_read_one_step_late(watched):
    """Step n is read after n + 1 is dispatched, but for steps that are evaluated or saved, which wait anyway."""
    assert watched.calls[:4] == [("dispatch", 1), ("dispatch", 2), ("read", 1), ("read", 2)]
    waits = {2, 3, 4, 6}  # saved or evaluated
    order = {call: index for index, call in enumerate(watched.calls)}
    for step in set(range(1, 6)) - waits:
        assert order["dispatch", step + 1] < order["read", step]
    assert [step for kind, step in watched.calls if kind == "read"] == list(range(1, 7))


def specs(tree) -> dict[str, P]:
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found[path_string(path)] = P(*(axis for axis in leaf.sharding.spec))
    return found


def trimmed(spec: P) -> tuple:
    axes = tuple(spec)
    while axes and axes[-1] is None:
        axes = axes[:-1]
    return axes


def expected_spec(path: str) -> tuple:
    if path.endswith("/a"):
        return (None, PARAM_AXES)
    if path.endswith("/b"):
        return (None, None, PARAM_AXES)
    return trimmed(FULL_SPECS[path.removeprefix("params/")])


def test_state_has_the_specs_asked_for(watched):
    """Parameters, and moments like what they are moments of, after a run."""
    state = watched.state
    for tree in (state.trained, state.frozen):
        for path, spec in specs(tree).items():
            assert trimmed(spec) == expected_spec(path), path
    adam = state.opt_state[0]
    for moments in (adam.mu, adam.nu):
        assert jax.tree.structure(moments) == jax.tree.structure(state.trained), "the frozen part has no moments"
        for path, spec in specs(moments).items():
            assert trimmed(spec) == expected_spec(path), path
    split = state.trained["adapters" if watched.config.adapter.method == "lora" else "params"]["layers"]["ffn"]["up"]
    leaf = split.get("a", split.get("kernel"))
    assert leaf.addressable_shards[0].data.size < leaf.size, "a device must hold a part only"


def test_memory_of_the_optimizer_follows_the_trained_part(watched):
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    trained = size(watched.state.trained)
    assert trained * 2 <= size(watched.state.opt_state) <= trained * 2 + 64
    if watched.config.adapter.method == "lora":
        # 2 layers, rank 4: q, out 32+32; k, v 32+16; gate, up 32+48; down 48+32.
        assert trained == 4 * 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80)
        assert not watched.state.trained.get("params")
    else:
        assert not jax.tree.leaves(watched.state.frozen)


def test_the_loss_falls_and_everything_is_logged(watched):
    assert [line["step"] for line in watched.lines] == list(range(7))
    for name in ("loss", "nll", "accuracy", "grad_norm", "learning_rate", "update_ratio", "skipped"):
        assert f"train/{name}" in watched.lines[1]
    assert {"train/grad_norm/attention", "train/grad_norm/ffn"} <= watched.lines[1].keys()
    assert {"speed/tokens_per_second", "speed/supervised_tokens_per_second"} <= watched.lines[1].keys()
    assert [line["step"] for line in watched.lines if "held_out/loss" in line] == [0, 3, 6]
    assert watched.result.metrics["held_out/loss"] == watched.lines[6]["held_out/loss"]
    if watched.config.adapter.method == "none":
        assert watched.lines[6]["held_out/loss"] < watched.lines[0]["held_out/loss"] - 0.5


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    """Skipped steps leave parameters and moments as they were, are counted, and their rows noted; the rest trains."""
    states = []
    with pytest.MonkeyPatch.context() as patch:
        compile_step = loop.compile_train_step

        def keep(*arguments):
            compiled = compile_step(*arguments)

            def step(state, batch):
                before = jax.device_get((state.trained, state.opt_state))
                state, metrics = compiled(state, batch)
                states.append((before, jax.device_get((state.trained, state.opt_state)), int(state.step)))
                return state, metrics

            return step

        patch.setattr(loop, "compile_train_step", keep)
        config = tiny.config(
            tmp_path,
            **{
                "objective.name": "poisoned",
                "objective.head_chunk_tokens": 0,
                "optimizer.max_skipped_in_a_row": 100,
                "duration": "8 steps",
                "data.sequence_length": 96,
                "data.held_out": "",
                "checkpoint.every": "100 steps",
                "optimizer.warmup": "0 steps",
            },
        )
        run(config, tmp_path / "run")
    skipped = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["train/skipped"]]
    assert 0 < len(skipped) < 8
    for before, after, step in states:
        same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), before, after)
        assert all(jax.tree.leaves(same)) == (step in skipped), step
    noted = [json.loads(line) for line in (tmp_path / "run" / "skipped_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in noted] == skipped
    assert all(re.fullmatch(r"train\.jsonl:\d+", name) for line in noted for name in line["example_ids"])


def test_many_such_steps_stop_the_run(tmp_path):
    config = tiny.config(
        tmp_path,
        **{
            "objective.name": "always poisoned",
            "optimizer.max_skipped_in_a_row": 3,
            "data.held_out": "",
            "checkpoint.every": "100 steps",
        },
    )
    with pytest.raises(DivergedError, match=r"3 steps in a row, up to step 3.*skipped_steps\.jsonl"):
        run(config, tmp_path / "run")
    noted = (tmp_path / "run" / "skipped_steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in noted] == [1, 2, 3]
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.slow
def test_evaluators_samples_profile_and_progress(tmp_path):
    """What is passed in gets the state; samples and a profile appear; plain lines where there is no terminal."""
    config = tiny.config(
        tmp_path,
        "lora",
        **{
            "duration": "3 steps",
            "evaluation.samples": 1,
            "evaluation.sample_tokens": 4,
            "profile.start": 2,
            "profile.steps": 1,
            "checkpoint.best_metric": "mine/steps",
            "checkpoint.best_is": "max",
        },
    )
    shown = tmp_path / "shown.txt"
    with shown.open("w") as file:
        result = run(
            config,
            tmp_path / "run",
            evaluators={"mine": lambda model, state: {"steps": jnp.asarray(state.step)}},
            console=Console(file=file, width=120),
        )
    assert result.metrics["mine/steps"] == 3
    assert list((tmp_path / "run" / "plugins").rglob("*.xplane.pb"))
    text = shown.read_text()
    assert "Held out: 12 examples" in text
    assert re.search(r"training 3/3 loss \d\.\d{4} .* tok/s \(.* supervised\) ETA 0:00:00", text)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["error", "signal"])
def test_a_run_that_ends_within_its_profile_ends_the_trace(end, tmp_path):
    """It is written as far as it goes, and the next run of this process can have one."""

    def stop():
        if end == "error":
            raise RuntimeError("broken")
        os.kill(os.getpid(), signal.SIGTERM)

    config = tiny.config(tmp_path, **{"profile.start": 1, "profile.steps": 5, "data.held_out": ""})
    with pytest.MonkeyPatch.context() as patch:
        at("dispatch", 2, stop, patch.setattr)
        expected = pytest.raises(RuntimeError, match="broken") if end == "error" else contextlib.nullcontext()
        with expected:
            assert run(config, tmp_path / "run").interrupted == signal.SIGTERM
    with jax.profiler.trace(str(tmp_path / "next")):  # refused while another one runs
        pass
    assert list((tmp_path / "run" / "plugins").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("name", "held_out", "known"),
    [
        ("held_out/los", True, "held_out/accuracy, held_out/loss, held_out/nll, mine/…"),
        ("held_out/nll", False, "mine/…"),
        ("min/metric", False, "mine/…"),
    ],
)
def test_a_best_metric_that_is_not_measured_is_refused_before_the_directory_is_claimed(name, held_out, known, tmp_path):
    config = tiny.config(tmp_path, **{"checkpoint.best_metric": name} | ({} if held_out else {"data.held_out": ""}))
    with pytest.raises(ValueError, match=rf"best_metric='{name}' is not measured; there are {known}"):
        run(config, tmp_path / "run", {"mine": lambda model, state: {"metric": 1.0}})
    assert not (tmp_path / "run").exists()


def test_a_best_metric_that_its_evaluator_does_not_give_is_refused(tmp_path):
    config = tiny.config(tmp_path, **{"checkpoint.best_metric": "mine/other", "data.held_out": ""})
    with pytest.raises(ValueError, match="best_metric='mine/other' is not measured; there are mine/metric"):
        run(config, tmp_path / "run", {"mine": lambda model, state: {"metric": 1.0}})


@pytest.mark.parametrize("targets", [("embedding",), ("(embedding|norm)", ".*bedding")])
def test_dropout_that_nothing_draws_is_refused(tmp_path, targets, monkeypatch):
    """Whatever the pattern; it is said before rows are read, and followed."""
    settings = {"adapter.targets": targets, "duration": "1 steps"}
    config = tiny.config(tmp_path, "lora", **settings, **{"adapter.dropout": 0.1})
    with monkeypatch.context() as patch:
        patch.setattr(trial, "load_data", lambda *_: pytest.fail("rows are read"))
        with pytest.raises(ValueError, match=r"dropout=0\.1: dropout is drawn in the projections.* Leave it at 0"):
            run(config, tmp_path / "run")
    assert run(tiny.config(tmp_path, "lora", **settings, **{"adapter.dropout": 0.0}), tmp_path / "run").step == 1


@pytest.mark.slow
def test_dropout_differs_by_step_and_repeats_by_seed(tmp_path):
    """At learning rate 0 and on one batch over and over, only dropout changes the loss."""

    def losses(name, **overrides):
        common = {
            "duration": "3 steps",
            "optimizer.learning_rate": 0.0,
            "data.held_out": "",
            "checkpoint.every": "100 steps",
            "batch.sequences": 24,  # a whole epoch, so that each batch holds the same conversations
            "adapter.alpha": 64.0,
        }
        run(tiny.config(tmp_path, "lora", **common, **overrides), tmp_path / name)
        return [line["train/grad_norm"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]

    first = losses("a", **{"adapter.dropout": 0.5})
    assert len({round(value, 4) for value in first}) == 3
    assert losses("b", **{"adapter.dropout": 0.5}) == first
    none = losses("c")
    np.testing.assert_allclose(none, none[0], rtol=1e-3)
    assert max(abs(value - none[0]) for value in first) > 1e-2 * none[0], (first, none)


@pytest.mark.slow
def test_evaluations_and_samples_draw_no_dropout(tmp_path):
    """What is measured under dropout is what a second run, which begins with the result, measures before its steps."""
    common = {"duration": "2 steps", "evaluation.samples": 1, "evaluation.sample_tokens": 2}
    seen = []
    evaluators = {"mine": lambda model, state: seen.append(model) or {"loss": 0.0}}
    config = tiny.config(tmp_path, "lora", **common, **{"adapter.dropout": 0.5, "optimizer.warmup": "0 steps"})
    result = run(config, tmp_path / "run", evaluators)
    assert [model.adapter.dropout for model in seen] == [False, False]
    again = tiny.config(tmp_path, **common, **{"model.source": str(tmp_path / "run")})
    run(again, tmp_path / "again")
    before = read_metrics(tmp_path / "again" / "metrics.jsonl")[0]
    assert before["held_out/loss"] == pytest.approx(result.metrics["held_out/loss"], abs=1e-4)


def test_a_relative_workdir_is_relative_to_the_current_directory(tmp_path, monkeypatch):
    config = tiny.config(tmp_path, duration="2 steps")
    monkeypatch.chdir(tmp_path)
    assert run(config, "relative/run").step == 2
    assert (tmp_path / "relative" / "run" / "checkpoints" / "2").is_dir()


def test_the_commit_of_a_model_from_the_hub_is_recorded(tmp_path, monkeypatch):
    config = tiny.config(tmp_path, duration="1 steps", **{"data.held_out": "", "checkpoint.best_metric": ""})
    snapshot = (tmp_path / "model").rename(tmp_path / "0123abc")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    config.model.source, config.model.revision = "org/name", "main"
    run(config, tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())["model"]
    assert recorded == {"name": "org/name", "location": str(snapshot), "revision": "0123abc"}
