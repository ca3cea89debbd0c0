"""Speed and memory of DPO with LoRA, beside TRL and beside fine-tuning on the same tokens; the variants take turns.

    python -m benchmarks.preference_speed [--only=short]

Two pairs of made-up words a step, LoRA of rank 16 on all projections, float32. `alike`: prompts and answers of 150
tokens each; `short`: prompts of 235 and answers of 55; `varied`: the same on average, with lengths by a lognormal law.
The model is a fifth of SmolLM2-135M (`--part=1`: the whole one): of its layers and of its vocabulary, so that both have
the shares of a step that they have in the whole one.

TRL has gradient checkpointing off, a fused AdamW, and the reference's log-probabilities computed before or in the step;
with `varied` it also groups pairs by their length. Pairs a second are tokens a second, of rows with a prompt for each
answer, divided by those of a pair; a row of fine-tuning has as many tokens as a pair of ours. Compare ratios: they come
from one run.

`--only=memory` compiles the steps of DPO and of fine-tuning, with LoRA and of all weights, and takes no step.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import run_steps, trl_steps
from benchmarks.made_up_rows import Lengths, write_conversations, write_pairs
from benchmarks.steps import write_model
from benchmarks.torch_pairs import pairs_of
from benchmarks.workers import StepFunction, run_interleaved

LENGTHS = {"alike": Lengths(150, 150), "short": Lengths(235, 55), "varied": Lengths(235, 55, spread=0.3)}
_ONLY = flags.DEFINE_enum("only", "all", ["all", *LENGTHS, "memory"], "Which comparison.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Steps of each variant that are timed.", lower_bound=2)
_PART = flags.DEFINE_integer(
    "part", 5, "Of layers and vocabulary: 5 is the first fifth; 1: the whole model.", lower_bound=1
)

PAIRS = 2  # of a step
_UNUSED = 2  # tokens of a pair behind the ends of its answers: the chat template's newlines


def main(_: list[str]) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as directory:
        model = str(write_model(Path(directory), _PART.value))
        for name, lengths in LENGTHS.items():
            if _ONLY.value in ("all", name):
                variants = _variants(name, model, lengths)
                _show(name, lengths, run_interleaved(variants, _ROUNDS.value, warm_up=1))
        if _ONLY.value in ("all", "memory"):
            Console().print(_memory(model))


def _variants(name: str, model: str, lengths: Lengths) -> dict[str, tuple]:
    """What takes turns; the first one is what the others are compared with."""
    rows = {"model": model, "lengths": lengths}
    disk = {
        "TRL, reference computed before": (theirs, rows),
        "ours, reference computed before": (ours, rows),
    }
    if name == "alike":
        in_step = {
            "TRL, reference in the step": (theirs, {**rows, "precompute_ref_log_probs": False}),
            "ours, reference in the step": (ours, {**rows, "measure_reference": True}),
        }
        return in_step | disk
    if name == "varied":
        grouped = {**rows, "train_sampling_strategy": "group_by_length"}
        return disk | {"TRL, pairs grouped by length": (theirs, grouped)}
    return disk | {"ours, fine-tuning on as many tokens as it reads": (ours, {**rows, "objective": "cross_entropy"})}


def ours(model: str, lengths: Lengths, objective: str = "dpo", measure_reference: bool = False) -> StepFunction:
    """Our step on such rows."""
    with tempfile.TemporaryDirectory() as directory:
        config = config_for(Path(directory), model, lengths, "lora", objective)
        return run_steps.trained(config, 2, measure_reference)


def theirs(model: str, lengths: Lengths, **settings: Any) -> StepFunction:
    """TRL's step on the same rows."""
    from sft_jax.options import options_of
    from sft_jax.preparation.run_data import load_data

    with tempfile.TemporaryDirectory() as directory:
        config = config_for(Path(directory), model, lengths, "lora", "dpo")
        pairs = pairs_of(load_data(options_of(config)).examples)
    common = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": PAIRS, "beta": config.objective.beta}
    return trl_steps.dpo(model, pairs, PAIRS, **(common | {"learning_rate": 5e-6} | settings))


def config_for(root: Path, model: str, lengths: Lengths, arg: str, objective: str):
    """The config of a run on rows that are written into `root`; both objectives have sequences of the same size."""
    from configs import preference, sft
    from sft_jax.sources import load_tokenizer

    of_pairs = objective == "dpo"
    config = (preference if of_pairs else sft).get_config(arg).copy_and_resolve_references()
    write = write_pairs if of_pairs else write_conversations
    written = lengths if of_pairs else dataclasses.replace(lengths, answer=2 * lengths.answer)
    rows = 16 if lengths.spread else 8
    pair = lengths.prompt + 2 * lengths.answer + _UNUSED
    config.update_from_flattened_dict(
        {
            "model.source": model,
            "data.train": str(write(root / f"{objective}.jsonl", load_tokenizer(model), rows, written)),
            "data.cache": "",
            # Lengths that vary share long sequences; alike, each pair has one.
            "data.sequence_length": 2 * pair if lengths.spread else pair,
            "batch.sequences": 1 if lengths.spread else PAIRS,
            "duration": "1000 steps",
            "optimizer.schedule": "constant",
            "optimizer.learning_rate": 5e-6,
            "optimizer.weight_decay": 0.0,
            "precision.matmul": "float32",
            "execution.layer_layout": "unrolled",
            "execution.remat": "none",
            "checkpoint.best_metric": "",
        }
    )
    return config.lock()


def _show(name: str, lengths: Lengths, results: dict[str, dict]) -> None:
    """A table of one comparison."""
    first, tokens = next(iter(results.values())), 2 * (lengths.prompt + lengths.answer)
    title = f"{name}: prompts of {lengths.prompt} tokens, answers of {lengths.answer}"
    table = Table("", "pairs/s", "speed, ratio", "peak memory, GiB", title=title)
    for variant, result in results.items():
        cells = (f"{result['rate'] / tokens:.3f}", f"{result['rate'] / first['rate']:.2f}")
        table.add_row(variant, *cells, f"{result['peak_gib']:.2f}")
    Console(width=120).print(table)


def _memory(model: str) -> Table:
    """Bytes that the compiled steps need, with their states and batches."""
    lengths, made = LENGTHS["short"], {}
    with tempfile.TemporaryDirectory() as directory:
        for arg in ("lora", "full"):
            for objective in ("cross_entropy", "dpo"):
                made[arg, objective] = _bytes_of_step(config_for(Path(directory), model, lengths, arg, objective))
    table = Table("", "fine-tuning, MiB", "DPO", "ratio", title="memory of the compiled step")
    for arg in ("lora", "full"):
        one, other = made[arg, "cross_entropy"], made[arg, "dpo"]
        table.add_row(arg, f"{one / 2**20:,.0f}", f"{other / 2**20:,.0f}", f"{other / one:.3f}")
    return table


def _bytes_of_step(config) -> int:
    import jax

    from sft_jax.options import options_of
    from sft_jax.preparation.run_data import load_data
    from sft_jax.runs.base import base_of
    from sft_jax.runs.precision import with_dtypes
    from sft_jax.sharding import make_mesh
    from sft_jax.training.memory import batch_sizes, step_program

    options = options_of(with_dtypes(config, jax.default_backend()))
    mesh, decoder = make_mesh(options.mesh, jax.devices()), base_of(options.model).decoder
    return step_program(options, decoder, batch_sizes(load_data(options)), mesh).memory()


if __name__ == "__main__":
    app.run(main)
