"""Speed and memory of a training step on this machine, beside a plain torch step; the variants alternate.

    python -m benchmarks.step_speed [--rounds=10]

SmolLM2-135M, 4 sequences of 256 tokens, AdamW. Compare ratios: they come from one run; absolute numbers vary from hour
to hour.
"""

from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import steps
from benchmarks.workers import run_interleaved

_ROUNDS = flags.DEFINE_integer("rounds", 10, "Steps of each variant.", lower_bound=2)
_ONLY = flags.DEFINE_enum("only", "all", ["all", "float32", "bfloat16", "lora"], "Which comparison to run.")
SEQUENCES, LENGTH = 4, 256


def main(_: list[str]) -> None:
    """Times and prints."""
    every = [steps.make_batch(SEQUENCES, LENGTH)]
    tenth = [steps.make_batch(SEQUENCES, LENGTH, supervised=0.1)]
    fp32 = {"precision.matmul": "float32"}
    comparisons = {
        "float32": {
            "torch, float32": (steps.plain_torch, {"batches": every}),
            "ours, float32": (steps.ours, {"batches": every, **fp32}),
        },
        "bfloat16": {
            "torch, bf16 autocast": (steps.plain_torch, {"batches": every, "bf16": True}),
            "ours, bf16 matmuls": (steps.ours, {"batches": every}),
        },
        "lora": {
            "ours, full": (steps.ours, {"batches": every}),
            "ours, LoRA": (steps.ours, {"batches": every, "arg": "lora"}),
            "ours, LoRA, 10 % supervised": (steps.ours, {"batches": tenth, "arg": "lora"}),
        },
    }
    for name, variants in comparisons.items():
        if _ONLY.value in ("all", name):
            _show(run_interleaved(variants, _ROUNDS.value))


def _show(results: dict[str, dict]) -> None:
    """The first variant is what the others are compared with."""
    first = next(iter(results.values()))
    table = Table("", "tokens/s, median", "best", "speed, ratio of medians", "of bests", "peak memory, GiB")
    for name, result in results.items():
        table.add_row(
            name,
            f"{SEQUENCES * LENGTH / result['median']:.0f}",
            f"{SEQUENCES * LENGTH / result['best']:.0f}",
            f"{first['median'] / result['median']:.2f}",
            f"{first['best'] / result['best']:.2f}",
            f"{result['peak_gib']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
