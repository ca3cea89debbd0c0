"""Runs with a teacher: what it is asked and kept of it, what is refused, and that they go on exactly."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from rich.console import Console

from sft_jax.options import options_of
from sft_jax.planning.asked import case_of
from sft_jax.runs.checkpoints import Checkpoints
from sft_jax.runs.workdir import WorkdirError
from sft_jax.training import run, step, teacher, teacher_values
from sft_jax.training.checked_run import check_run
from sft_jax.training.checks import check_config
from sft_jax.training.memory import batch_sizes, step_bytes, step_program
from sft_jax.training.stacked.fields import NotStackableError, refuse_what_cannot_be_stacked
from sft_jax.training.teacher_values import teacher_key
from sft_jax.training.trial import load_run_data
from tests import distillation, tiny
from tests.distillation import QUIET
from tests.planning.emulated import asked

ONE = {"mesh.fsdp": 1}


def train(config, workdir, **how):
    return run(config, workdir, console=QUIET, devices=jax.devices()[:1], **how)


def lines_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


# ---- The teacher is the student --------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_the_same_weights_are_at_no_distance_before_the_first_step(tmp_path, name, top_k):
    """A teacher that is asked about another token than the student would be seen here."""
    settings = {"objective.name": name, "teacher.top_k": top_k, "duration": "1 steps", **ONE}
    config = distillation.config(tmp_path, **settings, **{"teacher.source": str(tmp_path / "model")})
    train(config, tmp_path / "run")
    first = lines_of(tmp_path / "run")[0]
    assert first["held_out/loss"] == pytest.approx(0, abs=1e-6)
    assert first["held_out/agreement"] == 1
    assert first["held_out/nll"] > 4


# ---- What is kept ----------------------------------------------------------------------------------------------------


def asked_for(monkeypatch):
    """The examples whose values a run computes, with these values."""
    found, plain = [], teacher_values.values_of_teacher

    def noted(checked, variables, examples, *args):
        found.append((examples, plain(checked, variables, examples, *args)))
        return found[-1][1]

    monkeypatch.setattr(teacher_values, "values_of_teacher", noted)
    return found


def test_each_target_has_its_own(tmp_path, monkeypatch):
    """In the order of the rows, however they were packed: those of transformers on each conversation."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    found = asked_for(monkeypatch)
    settings = {"teacher.top_k": 4, "objective.temperature": 2.0, "duration": "1 steps", "objective.positions": "all"}
    config = distillation.config(tmp_path, **settings)
    run(config, tmp_path / "run", console=QUIET)
    assert [len(examples) for examples, _ in found] == [48, 12]
    model = transformers.LlamaForCausalLM.from_pretrained(config.teacher.source, dtype=torch.float32)
    for examples, values in found:
        assert len(values) == examples.supervised.sum()
        for number in (0, 3, len(examples) - 1):
            tokens, weights = examples.example(number)
            logits = distillation.log_probabilities(model, tokens, 1.0)[:-1][weights[1:] > 0][:, :320] / 2.0
            expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            order = np.argsort(-expected, axis=-1)
            mine = values[slice(*examples.target_offsets[number : number + 2])]
            np.testing.assert_array_equal(mine["ids"], order[:, :4])
            top = np.take_along_axis(expected, order, 1)
            rest = np.log(np.exp(top[:, 4:]).sum(-1, keepdims=True))
            np.testing.assert_allclose(mine["log_probabilities"], np.concatenate([top[:, :4], rest], 1), atol=2e-5)


def test_values_are_found_again_without_the_teacher_and_damaged_ones_are_made_again(tmp_path, monkeypatch, capsys):
    cache, read = tmp_path / "cache", []
    plain = teacher.Teacher.variables
    monkeypatch.setattr(teacher.Teacher, "variables", lambda self, mesh: read.append(1) or plain(self, mesh))
    settings = {"teacher.top_k": 4, "duration": "2 steps", "data.cache": str(cache), **ONE}
    said, metrics = [], []
    for number in range(4):
        if number == 2:
            for path in cache.glob("*.values"):
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)
        of_run = {"seed": int(number == 3), "objective.cross_entropy_share": 0.5 * (number == 3)}
        config = distillation.config(tmp_path / "data", **settings, **of_run)
        run(config, tmp_path / str(number), console=Console(width=1000), devices=jax.devices()[:1])
        said.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("Teacher: ")])
        metrics.append(lines_of(tmp_path / str(number)))
    assert [len(lines) for lines in said] == [2, 2, 2, 2]
    assert all("computed, kept in " in line for line in said[0])
    assert all("from the cache, " in line for line in (*said[1], *said[3]))
    assert all("computed again: " in line and "its checksum differs" in line for line in said[2])
    assert len(read) == 2
    assert metrics[0] == metrics[1] == metrics[2] != metrics[3]


def key_of(root, tmp_path, **overrides):
    config = distillation.config(root, **({"teacher.top_k": 4} | overrides))
    checked = check_run(config, epath.Path(tmp_path), jax.devices(), None)
    data = load_run_data(checked.options, len(jax.devices()), QUIET)
    return json.dumps(teacher_key(checked, data.examples, data.plan.sequence_targets), sort_keys=True)


def test_what_the_key_knows(tmp_path):
    root = tmp_path / "a"
    plain = key_of(root, tmp_path)
    same = {"objective.name": "reverse_kl", "objective.cross_entropy_share": 0.5, "seed": 3, "duration": "3 steps"}
    tiny.write_checkpoint(root / "student", seed=9, num_hidden_layers=1)
    same |= {"optimizer.learning_rate": 1.0, "model.source": str(root / "student")}
    assert key_of(root, tmp_path, **same) == plain
    tiny.write_checkpoint(root / "other", seed=4, **distillation.TEACHER)
    tiny.write_checkpoint(root / "padded", num_hidden_layers=1, vocab_size=324)
    changed = [
        key_of(root, tmp_path, **{"teacher.source": str(root / "other")}),
        key_of(root, tmp_path, **{"teacher.top_k": 5}),
        key_of(root, tmp_path, **{"objective.temperature": 2.0}),
        key_of(root, tmp_path, **{"precision.matmul": "bfloat16"}),
        key_of(root, tmp_path, **{"batch.micro_batches": 2, "mesh.fsdp": 4, "mesh.tensor": 2}),
        key_of(root, tmp_path, **{"data.train": str(root / "held_out.jsonl")}),
        key_of(root, tmp_path, **{"model.source": str(root / "padded")}),  # which shares more tokens
    ]
    assert len({plain, *changed}) == 1 + len(changed)


# ---- What is refused -------------------------------------------------------------------------------------------------


def opened(config):
    return check_run(config, epath.Path("/nowhere"), jax.devices()[:1], None)


def refused_and_mended(config, message, instead):
    """Before there is a run directory; what is advised passes."""
    with pytest.raises(ValueError, match=message):
        opened(config)
    with config.unlocked():
        config.update_from_flattened_dict(instead)
    assert opened(config).teacher is not None


def test_a_teacher_with_another_vocabulary_is_refused_by_name(tmp_path):
    """Of the same size: two ids mean each other's tokens."""
    config = distillation.config(tmp_path, **ONE)
    tiny.write_checkpoint(tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    made = json.loads(path.read_text())
    vocabulary = made["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(made))
    said = r"--config\.teacher\.source=.*other has another vocabulary .* 2 ids mean something else, \d+ is 'a' and 'b'"
    good = config.teacher.source
    with config.unlocked():
        config.teacher.source = str(tmp_path / "other")
    refused_and_mended(config, said, {"teacher.source": good})


@pytest.mark.parametrize(
    ("name", "value", "message", "instead"),
    [
        ("model.new_tokens", ("<|x|>",), r"new_tokens=\('<\|x\|>',\)\): 1 ids mean .* is '<\|x\|>' and None", ()),
        (
            "teacher.top_k",
            321,
            r"--config\.teacher\.top_k=321: student and teacher share 320 tokens; give no more",
            320,
        ),
        ("objective.teacher_share", 0.2, r"teacher_share=0\.2 is not read by .*=forward_kl; leave it at 0\.5", 0.5),
        ("objective.label_smoothing", 0.2, r"label_smoothing=0\.2 is not read by .*=forward_kl", 0.0),
        ("objective.kl_to_base", 0.2, r"kl_to_base=0\.2 is not read by .*=forward_kl", 0.0),
        ("objective.kl_weight", 0.2, r"kl_weight=0\.2 is not read by .*=forward_kl", 0.0),
    ],
)
def test_what_a_run_with_a_teacher_refuses(tmp_path, name, value, message, instead):
    refused_and_mended(distillation.config(tmp_path, **ONE, **{name: value}), message, {name: instead})


def test_no_teacher_is_named(tmp_path):
    config = distillation.config(tmp_path, **ONE, **{"teacher.source": ""})
    said = r"--config\.teacher\.source is empty, and --config\.objective\.name=forward_kl"
    refused_and_mended(config, said, {"teacher.source": str(tmp_path / "teacher")})


def test_a_metric_that_is_not_measured(tmp_path):
    config = distillation.config(tmp_path, **ONE, **{"checkpoint.best_metric": "held_out/kl"})
    with pytest.raises(ValueError, match="there are held_out/accuracy, held_out/agreement, held_out/divergence, held_"):
        train(config, tmp_path / "run")


def test_a_teacher_with_too_few_positions(tmp_path):
    tiny.write_checkpoint(tmp_path / "short", max_position_embeddings=60)
    config = distillation.config(tmp_path, **ONE, duration="1 steps", **{"teacher.source": str(tmp_path / "short")})
    said = (
        r"--config\.teacher\.source=.*short: .* and the teacher knows 60 positions\. --config\.data\.sequence_length=60"
    )
    with pytest.raises(ValueError, match=said):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with config.unlocked():
        config.data.sequence_length, config.data.fail_on = 60, "never"
    assert train(config, tmp_path / "run").step == 1


def test_runs_without_a_teacher_do_not_read_one(tmp_path):
    for field, value, default in (("source", "x", ""), ("revision", "main", ""), ("top_k", 3, 0)):
        config = tiny.config(tmp_path, **{f"teacher.{field}": value}).unlock()
        with pytest.raises(
            ValueError, match=rf"teacher\.{field}={value!r} is not read .*; leave it at {default!r}, or"
        ):
            check_config(config)
        config.teacher[field] = default
        check_config(config)


def test_several_runs_with_teachers_are_not_one_program(tmp_path):
    configs = [distillation.config(tmp_path, seed=seed) for seed in (0, 1)]
    with pytest.raises(NotStackableError, match="a run that has a teacher is trained by itself"):
        refuse_what_cannot_be_stacked(configs)


def test_a_plan_knows_no_teacher_in_the_step_and_what_is_advised_is_planned(tmp_path):
    config = distillation.config(tmp_path, **{"mesh.fsdp": 4})
    with pytest.raises(ValueError, match=r"--config\.teacher\.top_k=0 .* Give --config\.teacher\.top_k=32"):
        case_of(asked(config), "tiny", config, QUIET)
    config = distillation.config(tmp_path, **{"mesh.fsdp": 4, "teacher.top_k": 32})
    case = case_of(asked(config), "tiny", config, QUIET)
    assert case.program().batch["teacher_ids"].shape[2] == 32


# ---- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [0, 4])
def test_a_killed_run_goes_on_exactly(tmp_path, monkeypatch, top_k):
    """With dropout of the student; neither the teacher nor what is kept of it is in a checkpoint."""
    settings = {"duration": "4 steps", "checkpoint.every": "2 steps", "evaluation.every": "2 steps", **ONE}
    settings |= {"adapter.dropout": 0.3, "teacher.top_k": top_k, "data.cache": str(tmp_path / "cache")}
    config = distillation.config(tmp_path, "lora", **settings)
    made = []
    compile_step = step.compile_train_step
    monkeypatch.setattr(
        "sft_jax.training.loop.compile_train_step", lambda *a: made.append(compile_step(*a)) or made[-1]
    )
    train(config, tmp_path / "whole")
    assert [one._cache_size() for one in made] == [1], "it is compiled once"
    lines = lines_of(tmp_path / "whole")
    checkpoints = Checkpoints(epath.Path(tmp_path / "whole"), keep_last=10, read_only=True)
    described = checkpoints._described(4)
    checkpoints.close()
    assert "trained" in described
    assert "teacher" not in described

    class Killed(Exception):
        pass

    with monkeypatch.context() as patched:
        save = Checkpoints.save

        def save_and_die(self, number, *arguments):
            save(self, number, *arguments)
            self._wait_for_digests()
            raise Killed

        patched.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            train(config, tmp_path / "parts")
    train(config, tmp_path / "parts")
    assert lines_of(tmp_path / "parts") == lines
    assert lines[-1]["held_out/loss"] < lines[0]["held_out/loss"]


def test_a_run_does_not_go_on_with_another_teacher(tmp_path):
    config = distillation.config(tmp_path, duration="2 steps", **ONE)
    train(config, tmp_path / "run", stop_after=1)
    tiny.write_checkpoint(tmp_path / "teacher", seed=8, **distillation.TEACHER)
    with pytest.raises(WorkdirError, match="teacher changed since it started"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("top_k", [0, 32])
def test_no_array_has_all_logits_of_a_batch(tmp_path, top_k):
    """What the step needs grows with the chunk of slots that the head takes, not with the batch's."""
    large = {"vocab_size": 8192, "num_hidden_layers": 1}
    tiny.write_checkpoint(tmp_path / "student", **large)
    tiny.write_checkpoint(tmp_path / "large", **large, hidden_size=64)
    sources = {"model.source": str(tmp_path / "student"), "teacher.source": str(tmp_path / "large")}
    held = {}
    for chunk in (16, 0):
        settings = {"teacher.top_k": top_k, "batch.sequences": 8, "objective.head_chunk_tokens": chunk, **ONE}
        config = distillation.config(tmp_path, **sources, **settings)
        checked = check_run(config, epath.Path(tmp_path), jax.devices()[:1], None)
        sizes = batch_sizes(load_run_data(options_of(config), 1, QUIET))
        program = step_program(checked.options, checked.base.decoder, sizes, checked.mesh, teacher=checked.teacher)
        held[chunk] = step_bytes(program.lowered().compile().memory_analysis())
    logits = 8 * sizes.sequence_targets * large["vocab_size"] * 4
    assert held[0] - held[16] > 2 * logits
    assert sum(leaf.size for leaf in jax.tree.leaves(program.state.teacher)) == (0 if top_k else 8192 * 64 + 15552)
