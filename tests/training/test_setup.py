"""Set-up: what does not fit together is refused, and how a decoder is executed where the config leaves it open."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.models.config import REMAT_POLICIES, DecoderConfig, LongRopeScaling
from sft_jax.models.initial import parameter_shapes
from sft_jax.models.sizes import check_sizes
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.runs.base import open_base
from sft_jax.sharding import make_mesh, put_batch
from sft_jax.training import setup, step_memory
from sft_jax.training.checks import check_config
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.setup import init_state, make_model, resolve_execution, step_settings
from sft_jax.training.step import compile_train_step
from tests import tiny

DECODER = DecoderConfig(
    vocab_size=10, num_layers=1, model_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, ffn_dim=8, max_positions=6
)


def rows(*lists, file="t"):
    names = [f"{file}:{number}" for number in range(1, len(lists) + 1)]
    return TokenizedExamples.from_examples([(row, [1.0] * len(row)) for row in lists], names)


def test_data_that_fits():
    check_sizes(DECODER, rows([1, 9], [1, 2, 3, 4, 5, 6]), None)
    check_sizes(DECODER, rows([1, 9], [1]), rows([9]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([rows([1], [1] * 7)], "t:2 has 7 tokens; the model knows 6 positions. --config.data.sequence_length=6"),
        ([rows([1]), rows([1] * 8, file="h")], "h:1 has 8 tokens"),
        ([rows([1, 2], [3, 10, 4])], "t:2 has token 10; the model has embeddings of 10 tokens"),
        ([rows([1]), rows([11], file="h")], "h:1 has token 11"),
    ],
)
def test_data_that_does_not(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sizes(DECODER, *given)


def pair(trunk, *answers):
    """An example with branches of so many tokens."""
    branches = np.repeat(np.arange(1 + len(answers), dtype=np.uint8), (trunk, *answers))
    weights = (branches > 0).astype(np.float32)
    return TokenizedExamples.from_examples([(np.ones(len(branches)), weights)], ["t:1"], branches=[branches])


def test_of_a_pair_each_answer_has_positions_of_its_own():
    check_sizes(DECODER, pair(3, 3, 2))
    with pytest.raises(ValueError, match=r"t:1 has 7 tokens; the model knows 6 positions"):
        check_sizes(DECODER, pair(3, 2, 4))


def test_answers_of_a_pair_that_rotate_their_prompt_in_two_ways_are_refused():
    scaling = LongRopeScaling((1.0, 1.0), (2.0, 2.0), short_positions=4)
    decoder = dataclasses.replace(DECODER, rope_scaling=scaling)
    check_sizes(decoder, pair(2, 2, 1), pair(2, 3, 4), rows([1] * 6, [1, 2]))
    with pytest.raises(ValueError, match=r"t:1: its answers make texts of 4, 5 tokens, .* more than 4 otherwise"):
        check_sizes(decoder, pair(2, 2, 3))
    with pytest.raises(ValueError, match="texts of 5, 4 tokens"):  # one answer, and one to another prompt
        check_sizes(decoder, pair(2, 0, 3, 0, 2))


def test_rows_are_read_as_the_config_says(tmp_path):
    """What was read is said, a row that cannot be read is dropped by name, and held-out rows are read alike."""
    options = {"prompt_template": "Mood? {text}", "answer_template": "{mood}", "on_bad_row": "drop"}
    config = tiny.config(tmp_path, **{f"data.reading.{name}": value for name, value in options.items()})
    with config.unlocked():
        config.data.train, config.data.held_out = str(tmp_path / "train.csv"), str(tmp_path / "test.csv")
    Path(config.data.train).write_text("text,mood\nHi,good\nHo\nOh,bad\n")
    Path(config.data.held_out).write_text("text,mood\nHm,so so\n")
    data = load_data(options_of(config))
    assert list(data.examples.ids) == ["train.csv:2", "train.csv:4"]
    assert data.report.numbers["read"][0] == "train.csv: CSV, table"
    assert data.report.numbers["dropped"]["not a valid row"]["rows"] == 1
    assert "train.csv:3" in data.report.numbers["dropped"]["not a valid row"]["first"][0]
    assert [record.conversation[0].content for record in data.held_out_records] == ["Mood? Hm"]
    assert "test.csv: CSV, table" in data.held_out_note


def test_training_rows_are_cleaned(tmp_path):
    """In order, before they are tokenized; held-out rows are measured as they are."""
    config = tiny.config(tmp_path, **{"data.cleaning": ("strip_whitespace", "drop_exact_duplicates")})
    lines = ['{"prompt": "a", "completion": "b"}', '{"prompt": "a ", "completion": "b\\n"}'] * 2
    for path in (config.data.train, config.data.held_out):
        Path(path).write_text("\n".join(lines))
    data = load_data(options_of(config))
    assert list(data.examples.ids) == ["train.jsonl:1"]
    assert data.report.numbers["dropped"] == {
        "drop_exact_duplicates: the same as a row before it": {
            "rows": 3,
            "first": [f"train.jsonl:{n} (train.jsonl:1)" for n in (2, 3, 4)],
        }
    }
    assert len(data.held_out_records) == 4


@pytest.mark.parametrize(
    ("arg", "rows", "micro_batches", "platform", "expected"),
    [
        ("full", 8, 1, "cpu", ("unrolled", "none")),
        ("full", 64, 1, "cpu", ("unrolled", "none")),
        ("lora", 8, 1, "cpu", ("unrolled", "none")),
        ("lora", 16, 1, "cpu", ("scan", "full")),
        ("lora", 16, 2, "cpu", ("unrolled", "none")),
        ("full", 8, 1, "tpu", ("scan", "full")),
    ],
)
def test_execution_by_platform_and_tokens(tmp_path, monkeypatch, arg, rows, micro_batches, platform, expected):
    """Of a TPU of which nobody knows how much memory it has, the least is taken."""
    config = tiny.config(tmp_path, arg, **{"batch.sequences": rows, "batch.micro_batches": micro_batches})
    execution = executed(config, monkeypatch, platform)
    assert (execution.layer_layout, execution.remat) == expected


def executed(config, monkeypatch, platform: str, memory: int | None = None):
    """How a run would be executed on 8 devices of a platform, each with so much memory."""
    monkeypatch.setattr(setup, "platform_of", lambda mesh: platform)
    monkeypatch.setattr(step_memory, "device_bytes", lambda devices: memory)
    mesh = make_mesh(config.mesh.to_dict(), jax.devices())
    return resolve_execution(options_of(config), open_base(config.model.source).decoder, mesh)


def test_as_much_is_saved_as_fits(tmp_path, monkeypatch):
    """By the estimate, with its margin; where even the least does not fit, the least."""
    config = tiny.config(tmp_path)
    options, decoder = options_of(config), open_base(config.model.source).decoder
    mesh, execution = make_mesh(options.mesh, jax.devices()), executed(config, monkeypatch, "tpu")
    needed = {
        remat: step_memory.step_memory(options, decoder, mesh, dataclasses.replace(execution, remat=remat)).total
        for remat in REMAT_POLICIES
    }
    assert sorted(needed.values(), reverse=True) == list(needed.values())
    for remat, total in needed.items():
        limit = total / step_memory.SHARE
        assert executed(config, monkeypatch, "gpu", int(limit) + 1).remat == remat
        assert executed(config, monkeypatch, "gpu", int(limit) - 1).remat != remat or remat == "full"
    asked = tiny.config(tmp_path, **{"execution.remat": "attention"})
    assert executed(asked, monkeypatch, "gpu", 2**40).remat == "attention"


def test_runs_in_one_program_have_a_state_each_and_share_what_is_frozen(tmp_path, monkeypatch):
    config = tiny.config(tmp_path, "lora")
    options, decoder = options_of(config), open_base(config.model.source).decoder
    mesh, execution = make_mesh(options.mesh, jax.devices()), executed(config, monkeypatch, "tpu")
    one, three = (step_memory.step_memory(options, decoder, mesh, execution, runs) for runs in (1, 3))
    frozen = one.state - (three.state - one.state) / 2
    weights = sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(decoder))) * 4
    assert weights / 8 <= frozen <= weights / 8 * 1.1  # norms are on every device
    assert three.gradients == 3 * one.gradients


def test_an_execution_that_is_asked_for(tmp_path, monkeypatch):
    options = {"execution.layer_layout": "scan", "execution.remat": "products", "execution.attention": "reference"}
    execution = executed(tiny.config(tmp_path, "full", **options), monkeypatch, "tpu", 2**40)
    assert (execution.layer_layout, execution.remat, execution.attention_backend) == ("scan", "products", "reference")


@pytest.mark.parametrize(("platform", "said"), [("gpu", "yes"), ("tpu", "always"), ("cpu", "always")])
def test_steps_are_deterministic_on_gpus_where_that_is_asked_for(tmp_path, monkeypatch, platform, said):
    """Elsewhere they are anyway: nothing is asked of the compiler, and that is said."""
    config = tiny.config(tmp_path, **{"execution.deterministic": True})
    options, mesh = options_of(config), make_mesh(config.mesh.to_dict(), jax.devices())
    monkeypatch.setattr(setup, "platform_of", lambda mesh: platform)
    model = make_model(options, open_base(config.model.source).decoder, mesh)
    compiler_options = step_settings(options, mesh).compiler_options
    assert compiler_options == ({"xla_gpu_deterministic_ops": True} if platform == "gpu" else None)
    assert setup.chosen_by_platform(options, model, platform)["deterministic"] == said
    without = options_of(tiny.config(tmp_path))
    assert step_settings(without, mesh).compiler_options is None
    if platform == "gpu":
        assert setup.chosen_by_platform(without, model, platform)["deterministic"] == "no"


@pytest.mark.parametrize("objective", ["cross_entropy", "dpo", "kto", "policy_gradient"])
@pytest.mark.parametrize(
    ("platform", "matmul", "chosen"),
    [("tpu", "bfloat16", "splash"), ("gpu", "bfloat16", "triton"), ("tpu", "float32", "blocked")],
)
def test_answers_that_share_a_prompt_are_read_by_the_platforms_attention(
    tmp_path, monkeypatch, objective, platform, matmul, chosen
):
    asked = {"objective.name": objective, "precision.matmul": matmul, "execution.remat": "full"}
    config = tiny.config(tmp_path, **asked)
    options, mesh = options_of(config), make_mesh(config.mesh.to_dict(), jax.devices())
    monkeypatch.setattr(setup, "platform_of", lambda mesh: platform)
    model = make_model(options, open_base(config.model.source).decoder, mesh)
    assert model.execution.attention_backend == chosen
    said = setup.chosen_by_platform(options, model, platform)
    assert {name: value for name, value in said.items() if name.startswith("attention")} == {"attention": chosen}


def test_float16_is_not_trained_in(tmp_path):
    with pytest.raises(ValueError, match=r"--config\.precision\.matmul='float16' .*float32.*bfloat16"):
        check_config(tiny.config(tmp_path, **{"precision.matmul": "float16"}))


def test_the_state_is_overwritten_in_place(tmp_path):
    """No parameter and no moment is copied in the compiled step, which would cost memory of the size of the state."""
    config = tiny.config(tmp_path, **{"mesh.fsdp": 1, "execution.layer_layout": "unrolled"})
    mesh = make_mesh(config.mesh.to_dict(), jax.devices()[:1])
    base = open_base(config.model.source)
    model = make_model(options_of(config), base.decoder, mesh)
    with jax.set_mesh(mesh):
        state = init_state(options_of(config), base, model, mesh, hyperparameters(options_of(config), 1, 6))
        step = compile_train_step(model, step_settings(options_of(config), mesh), state, mesh)
        shape = (config.batch.sequences, config.data.sequence_length)
        integers = {name: np.ones(shape, np.int32) for name in ("tokens", "positions", "segment_ids", "target_slots")}
        batch = integers | {"targets": np.ones(shape, np.int32), "weights": np.ones(shape, np.float32)}
        text = step.lower(state, put_batch(batch, mesh)).compile().as_text()
    assert "%state_trained__" in text
    assert "%state_opt_state_" in text
    assert not re.findall(r" copy\(%state_(?:trained|opt_state)\S*kernel", text)
