"""Speed of a step with sampled answers (GRPO) with LoRA, beside TRL; the variants take turns.

    python -m benchmarks.rlvr_speed

SmolLM2-135M in float32, a prompt of 235 tokens and eight answers of up to 55. The update alone trains on the answers of
the first step over and over: with one sequence in which all answers share their prompt, with a sequence for each, and
TRL's. A whole step samples and judges them too; TRL's answers are those of transformers' `generate`. TRL has gradient
checkpointing off, a fused AdamW, no reference, and no forward pass for the probabilities at sampling. Compare ratios:
they come from one run.
"""

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
_LAYERS = flags.DEFINE_integer("layers", 0, "Only the first layers of the model, to try this; 0: all.", lower_bound=0)

LENGTHS, GROUP, ROWS = Lengths(prompt=235, answer=55), 8, 64
SHARED, SEPARATE = (LENGTHS.prompt + GROUP * LENGTHS.answer, GROUP * (LENGTHS.prompt + LENGTHS.answer))  # tokens read


def main(_: list[str]) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as directory:
        model = str(write_model(Path(directory), _LAYERS.value))
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
        rows = write_conversations(Path(directory) / "rows.jsonl", load_tokenizer(model), ROWS, LENGTHS)
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
        rows = write_conversations(Path(directory) / "rows.jsonl", load_tokenizer(model), ROWS, LENGTHS)
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
