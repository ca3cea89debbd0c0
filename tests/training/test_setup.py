"""Set-up: what does not fit together is refused, and how a decoder is executed where the config leaves it open."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.models.config import DecoderConfig
from sft_jax.models.sizes import check_sizes
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.runs.base import open_base
from sft_jax.sharding import make_mesh, put_batch
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
def test_execution_by_platform_and_tokens(tmp_path, arg, rows, micro_batches, platform, expected):
    config = tiny.config(tmp_path, arg, **{"batch.sequences": rows, "batch.micro_batches": micro_batches})
    execution = resolve_execution(options_of(config), platform)
    assert (execution.layer_layout, execution.remat) == expected


def test_an_execution_that_is_asked_for(tmp_path):
    options = {"execution.layer_layout": "scan", "execution.remat": "dots", "execution.attention": "whole"}
    execution = resolve_execution(options_of(tiny.config(tmp_path, "full", **options)), "cpu")
    assert (execution.layer_layout, execution.remat, execution.attention_backend) == ("scan", "dots", "whole")


def test_float16_is_not_trained_in(tmp_path):
    with pytest.raises(ValueError, match=r"--config\.precision\.matmul='float16' .*float32.*bfloat16"):
        check_config(tiny.config(tmp_path, **{"precision.matmul": "float16"}))


def test_the_state_is_overwritten_in_place(tmp_path):
    """No parameter and no moment is copied in the compiled step, which would cost memory of the size of the state."""
    config = tiny.config(tmp_path, **{"mesh.fsdp": 1, "execution.layer_layout": "unrolled"})
    mesh = make_mesh(config.mesh.to_dict(), jax.devices()[:1])
    base = open_base(config.model.source)
    model = make_model(options_of(config), base.decoder, "cpu")
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
