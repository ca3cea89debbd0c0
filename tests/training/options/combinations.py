"""Runs of the combinations of `table.py`: models and data for them, and two steps of each."""

import functools
import json
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

from configs import sft
from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import RunResult, run
from tests import tiny
from tests.models import families
from tests.training.options import table
from tests.training.options.covering import Row, covering_rows

PARTS = 4  # test files over which the combinations are spread


@functools.cache
def rows() -> list[Row]:
    return covering_rows(table.options(), [combination for combination, _ in table.refused()], table.COSTLY)


def part(number: int) -> list:
    """The combinations of one test file, `number` of 1 … PARTS."""
    return [pytest.param(row, id=str(index)) for index, row in enumerate(rows()) if index % PARTS == number - 1]


def write_inputs(root: Path) -> Path:
    """Three models, an adapter that fits them, data."""
    for name, tied, layers in (("tied", True, 2), ("untied", False, 1)):
        tiny.write_checkpoint(root / name, tie_word_embeddings=tied, num_hidden_layers=layers)
    fields = families.hf_config("mixtral") | {"intermediate_size": 64}  # whole blocks of MXFP4
    mixture = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    families.save(families.random_model(mixture), root / "experts")
    tiny.tokenizer().save_pretrained(root / "experts")
    (root / "template.jinja").write_text(tiny.CHATML.replace("'\\n' + message", "': ' + message"))
    for name, count, seed in (("train", 24, 0), ("other", 24, 2), ("held_out", 6, 1)):
        _write_rows(root / "mixed" / f"{name}.jsonl", count, seed)
        _write_rows(root / "short" / f"{name}.jsonl", count, seed, longest=25)
    (root / "benchmark.jsonl").write_text(json.dumps({"prompt": "What is never asked?"}) + "\n")
    _write_adapter(root / "adapter")
    return root


def _write_rows(path: Path, count: int, seed: int, longest: int = 100) -> None:
    """Rows with prompts of so many characters at most, and with columns of names, groups and weights."""
    path.parent.mkdir(exist_ok=True)
    drawn = [json.loads(line) for line in tiny.write_rows(path, 4 * count, seed).read_text().splitlines()]
    rows = [row for row in drawn if len(row["prompt"]) <= longest][:count]
    assert len(rows) == count
    more = lambda number: {"name": f"row {number}", "topic": "odd" if number % 2 else "even", "weight": 1 + number % 3}
    path.write_text("".join(json.dumps(row | more(number)) + "\n" for number, row in enumerate(rows)))


def _write_adapter(directory: Path) -> None:
    """A PEFT directory with an adapter of the first layer's queries, which have the same size in all models."""
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": [0]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    rng, prefix = np.random.default_rng(0), "base_model.model.model.layers.0.self_attn.q_proj"
    matrices = {f"{prefix}.lora_A.weight": (4, 32), f"{prefix}.lora_B.weight": (32, 4)}
    tensors = {name: 0.1 * rng.standard_normal(shape).astype(np.float32) for name, shape in matrices.items()}
    save_file(tensors, str(directory / "adapter_model.safetensors"))


def config_of(row: Row, root: Path) -> ml_collections.ConfigDict:
    fields = table.overrides(row, str(root))
    mixed, config = fields.pop("data.mixture", None), sft.get_config("full").unlock()
    config.update_from_flattened_dict(fields)
    if mixed:
        config.data.mixture = {
            name: sft.source(f"{table.rows_of(row, str(root))}/{name}.jsonl", weight="1") for name in ("train", "other")
        }
    return config.lock()


def usual_with(combination: Row) -> Row:
    """The first values of all options, but for a combination; what that presupposes is as it must be."""
    usual = {name: values[0] for name, values in table.options().items()}
    if combination.get("adapter.initial"):
        usual["adapter.method"] = "lora"
    return usual | combination


def start(row: Row, root: Path, workdir: Path) -> RunResult:
    """The run of a combination."""
    print(row)  # shown where the test fails
    devices = jax.devices()[:1] if row["mesh"] == "one device" else None
    evaluators = {"mine": lambda model, state: {"step": state.step}} if row["evaluators"] == "given" else None
    return run(config_of(row, root), workdir, evaluators, devices=devices)


def check_two_steps(row: Row, root: Path, workdir: Path) -> None:
    """Two steps with an evaluation and a checkpoint, and everything measured is a number."""
    result = start(row, root, workdir)
    assert result.step == result.total_steps == 2
    assert (workdir / "checkpoints" / "2").is_dir()
    expected = {"held_out/nll"} if row["data.held_out"] else set()
    assert result.metrics.keys() >= expected | ({"mine/step"} if row["evaluators"] == "given" else set())
    assert np.isfinite(list(result.metrics.values())).all(), result.metrics
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    assert last["step"] == 2
    assert np.isfinite(last["train/loss"])
    assert last["train/grad_norm"] > 0
    assert last["train/skipped"] == 0
