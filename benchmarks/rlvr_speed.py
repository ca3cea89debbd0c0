"""Speed of a step with sampled answers (GRPO) with LoRA, beside TRL; the variants take turns.

    python -m benchmarks.rlvr_speed

A prompt of 235 tokens and eight answers of up to 55 a step, LoRA of rank 16 on all projections, float32; the model is a
fifth of SmolLM2-135M (`--part=1`: the whole one), of its layers and of its vocabulary. The update alone trains on the
answers of the first step over and over: with one sequence in which all answers share their prompt, with a sequence for
each, and TRL's. A whole step samples and judges them too; TRL's answers are those of transformers' `generate`. TRL has
gradient checkpointing off, a fused AdamW, no reference, and no forward pass for the probabilities at sampling. Compare
ratios: they come from one run.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from benchmarks import run_steps, trl_steps
from benchmarks.made_up_rows import Lengths, write_conversations
from benchmarks.steps import write_model
from benchmarks.workers import StepFunction, run_interleaved

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Steps of each variant that are timed.", lower_bound=2)
_PART = flags.DEFINE_integer(
    "part", 5, "Of layers and vocabulary: 5 is the first fifth; 1: the whole model.", lower_bound=1
)

LENGTHS, GROUP, ROWS = Lengths(prompt=235, answer=55), 8, 64
REFERENCES = dataclasses.replace(LENGTHS, answer=8)  # which nobody looks at, and which have to fit into a sequence
SHARED, SEPARATE = (LENGTHS.prompt + GROUP * LENGTHS.answer, GROUP * (LENGTHS.prompt + LENGTHS.answer))  # tokens read


def main(_: list[str]) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as directory:
        model = str(write_model(Path(directory), _PART.value))
        rows = {"model": model}
        variants = {
            "TRL, update": (theirs, {**rows, "every_step": False}),
            "ours, update, a sequence for each answer": (ours, {**rows, "every_step": False, "shared": False}),
            "ours, update": (ours, {**rows, "every_step": False}),
            "TRL, whole step": (theirs, rows),
            "ours, whole step": (ours, rows),
        }
        results = run_interleaved(variants, _ROUNDS.value, warm_up=1)
    Console(width=120).print(_table(results))
    shared, separate = (results[f"ours, update{more}"]["median"] for more in ("", ", a sequence for each answer"))
    print(
        f"sharing the prompt: {separate / shared:.2f} times as fast, reading {SEPARATE / SHARED:.2f} times fewer tokens"
    )


def ours(model: str, every_step: bool = True, shared: bool = True) -> StepFunction:
    """Our step."""
    from configs import rlvr
    from configs.sft import reward
    from sft_jax.sources import load_tokenizer

    config = rlvr.get_config("lora").copy_and_resolve_references()
    with config.unlocked():
        config.rollouts.rewards = ConfigDict({"vowels": reward("benchmarks.trl_steps:vowels")})
    with tempfile.TemporaryDirectory() as directory:
        rows = write_conversations(Path(directory) / "rows.jsonl", load_tokenizer(model), ROWS, REFERENCES)
        settings = {
            "model.source": model,
            "data.train": str(rows),
            "data.cache": "",
            "data.sequence_length": SHARED if shared else SEPARATE // GROUP,
            "batch.sequences": 1 if shared else GROUP,
            "batch.micro_batches": 1,
            "duration": "40 steps",
            "rollouts.prompts": 1,
            "rollouts.group": GROUP,
            "rollouts.max_new_tokens": LENGTHS.answer,
            "rollouts.truncated": "train",
            "precision.matmul": "float32",
            "execution.layer_layout": "unrolled",
            "execution.remat": "none",
        }
        config.update_from_flattened_dict(settings)
        return run_steps.sampled(config.lock(), every_step)


def theirs(model: str, every_step: bool = True) -> StepFunction:
    """TRL's step on the same prompts."""
    from sft_jax.sources import load_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        rows = write_conversations(Path(directory) / "rows.jsonl", load_tokenizer(model), ROWS, REFERENCES)
        prompts = [json.loads(line)["prompt"] for line in rows.read_text().splitlines()]
    sizes = {
        "per_device_train_batch_size": GROUP,
        "num_generations": GROUP,
        "max_completion_length": LENGTHS.answer,
        "learning_rate": 1e-5,
    }
    return trl_steps.grpo(model, prompts, every_step, **sizes)


def _table(results: dict[str, dict]) -> Table:
    """Updates are compared with TRL's update, whole steps with TRL's whole step."""
    table = Table("", "seconds, median", "best", "speed, ratio of medians", "peak memory, GiB")
    for name, result in results.items():
        theirs = results["TRL, whole step" if name.endswith("whole step") else "TRL, update"]
        ratio = f"{theirs['median'] / result['median']:.2f}"
        table.add_row(name, f"{result['median']:.2f}", f"{result['best']:.2f}", ratio, f"{result['peak_gib']:.2f}")
    return table


if __name__ == "__main__":
    app.run(main)
