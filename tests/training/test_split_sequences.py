"""A whole run whose sequences are split over devices: everything that it logs and says is that of one whose are not."""

import pytest
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from tests import tiny
from tests.models import families

COMMON = {
    "duration": "4 steps",
    "evaluation.every": "2 steps",
    "evaluation.samples": 2,
    "evaluation.sample_tokens": 4,
    "optimizer.learning_rate": 1e-3,  # so that what differs by rounding is not blown up from step to step
    "mesh.fsdp": 2,
    "batch.sequences": 16,
}
WHOLE = {"mesh.replica": 4, "execution.attention": "blocked"}
CASES = {
    "full, all positions": ("full", {"objective.positions": "all", "batch.micro_batches": 2}),
    "lora, near its base": ("lora", {"objective.kl_to_base": 0.5, "batch.micro_batches": 2}),
    "lora, splash": ("lora", {"execution.attention": "splash"}),
    "full, mean of examples": ("full", {"objective.normalize": "examples", "data.packing": "none"}),
}

LIMIT = 40  # tokens of a text that is short: some are


def said(workdir):
    """The lines of the metrics but for speeds, and the last samples."""
    lines = [
        {name: value for name, value in line.items() if not name.startswith("speed/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]
    events = EventAccumulator(str(workdir))
    events.Reload()
    names = [name for name in events.Tags()["tensors"] if name.startswith("samples/")]
    return lines, {name: events.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_a_run_says_is_not_a_matter_of_the_axis(case, tmp_path):
    arg, overrides = CASES[case]
    run(tiny.config(tmp_path, arg, **COMMON | overrides | WHOLE), tmp_path / "whole")
    run(tiny.config(tmp_path, arg, **COMMON | overrides | {"mesh.context": 4}), tmp_path / "split")
    (lines, texts), (expected, expected_texts) = said(tmp_path / "split"), said(tmp_path / "whole")
    assert [line["step"] for line in expected] == [0, 1, 2, 3, 4]
    assert "held_out/loss" in expected[0]
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-5), line["step"]
    assert len(expected_texts) == 2
    assert texts == expected_texts


@pytest.mark.slow
@pytest.mark.parametrize("family", ["phi3 long texts", "ministral3"])
def test_what_depends_on_a_text_is_of_all_of_it(family, tmp_path):
    """Frequencies by the length of a text, of which a device holds a part; queries that grow with their position."""
    fields = families.hf_config(family)
    rope = fields.get("rope_parameters", fields)
    rope["original_max_position_embeddings"] = LIMIT
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    source = families.save(families.random_model(config), tmp_path / "model")
    tiny.tokenizer().save_pretrained(source)
    tiny.write_rows(tmp_path / "train.jsonl", 24)
    tiny.write_rows(tmp_path / "held_out.jsonl", 8, seed=1)
    common = COMMON | {"duration": "2 steps", "model.source": str(source), "evaluation.samples": 0}
    run(tiny.config(tmp_path, "lora", **common | WHOLE), tmp_path / "whole")
    run(tiny.config(tmp_path, "lora", **common | {"mesh.context": 4}), tmp_path / "split")
    (lines, _), (expected, _) = said(tmp_path / "split"), said(tmp_path / "whole")
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5), line["step"]
