"""Speed of distillation beside fine-tuning, on this machine; the variants alternate.

    python -m benchmarks.distillation [--rounds=10] [--arg=full] [--model=…]

SmolLM2-135M by default, sequences of 256 tokens of which every one is supervised, layers scanned and computed again in
the backward pass. The teacher has the student's shape: the step reads its 32 most likely tokens of each target, drawn
at random here, from the batch; with --in_step its weights are tried too. Compare ratios: they come from one run.
"""

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import steps
from benchmarks.workers import run_interleaved

_ROUNDS = flags.DEFINE_integer("rounds", 10, "Steps of each variant.", lower_bound=2)
_ARG = flags.DEFINE_enum("arg", "lora", ["full", "lora"], "What is trained: all weights, or adapters.")
_MODEL = flags.DEFINE_string("model", steps.MODEL, "The student, and the shape of the teacher.")
_IN_STEP = flags.DEFINE_bool("in_step", False, "Also with the teacher's weights in the step.")
_SEQUENCES = flags.DEFINE_integer("sequences", 2, "Of a step.", lower_bound=1)
LENGTH, TOP_K, VOCABULARY = 256, 32, 49152


def with_teacher(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch with what a teacher thinks most likely, at random: half of it is left for the rest."""
    rng = np.random.default_rng(0)
    shape = batch["targets"].shape
    ids = rng.integers(0, VOCABULARY // TOP_K, (*shape, TOP_K)) + np.arange(0, VOCABULARY, VOCABULARY // TOP_K)
    shares = rng.dirichlet(np.ones(TOP_K), shape) / 2
    found = np.log(np.concatenate([shares, np.full((*shape, 1), 0.5)], axis=-1))
    return batch | {"teacher_ids": ids.astype(np.int32), "teacher_log_probabilities": found.astype(np.float32)}


def main(_: list[str]) -> None:
    """Times and prints."""
    batch = steps.make_batch(_SEQUENCES.value, LENGTH)
    tunes = {"source": _MODEL.value, "arg": _ARG.value, "execution.layer_layout": "scan", "execution.remat": "full"}
    distils = {**tunes, "objective.name": "forward_kl", "teacher.source": _MODEL.value}
    variants = {
        "fine-tuning": {"batches": [batch], **tunes},
        f"distillation, top {TOP_K}": {"batches": [with_teacher(batch)], "teacher.top_k": TOP_K, **distils},
    }
    if _IN_STEP.value:
        variants["distillation, teacher in the step"] = {"batches": [batch], **distils}
    variants = {name: (steps.ours, given) for name, given in variants.items()}
    _show(run_interleaved(variants, _ROUNDS.value))


def _show(results: dict[str, dict]) -> None:
    """Fine-tuning is what the others are compared with."""
    first, tokens = results["fine-tuning"], _SEQUENCES.value * LENGTH
    table = Table("", "tokens/s, median", "speed, ratio of medians", "of bests", "peak memory, GiB")
    for name, result in results.items():
        ratios = (f"{first[kind] / result[kind]:.2f}" for kind in ("median", "best"))
        table.add_row(name, f"{tokens / result['median']:.0f}", *ratios, f"{result['peak_gib']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
