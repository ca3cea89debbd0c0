"""Memory of a training step, by role, and the held-out loss after the same number of steps.

    python -m benchmarks.memory [--steps=100] [--sequences=2] [--sequence_length=256] [--only=lora,lora_nf4]

SmolLM2-135M on the quickstart's documents: full fine-tuning with AdamW, and with moments in 8 bits; LoRA beside weights
in float32, bfloat16, int8 and NF4. Each variant runs in a process of its own, on the same batches in the same order,
with layers scanned and rematerialized in the backward pass, as on accelerators. Bytes by role are those of the arrays,
checked against the arguments of the compiled step; the memory of the step in all is as the compiler reports it.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.steps import MODEL
from sft_jax.options import options_of

_STEPS = flags.DEFINE_integer("steps", 100, "Optimizer steps.", lower_bound=2)
_SEQUENCES = flags.DEFINE_integer("sequences", 2, "Sequences of a batch.", lower_bound=1)
_SEQUENCE_LENGTH = flags.DEFINE_integer(
    "sequence_length", 256, "Tokens of a sequence; longer documents are left out.", lower_bound=2
)
_HELD_OUT_ROWS = flags.DEFINE_integer("held_out_rows", 32, "Documents to measure with.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "Names of variants; by default all.")
_DATA = flags.DEFINE_string("data", "", "Measure the one variant of --only in this process, on this directory's data.")

FULL, LORA = {"optimizer.learning_rate": 1e-4}, {"optimizer.learning_rate": 2e-3}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", FULL),
    "full_adam8bit": ("full", FULL | {"optimizer.name": "adam8bit"}),
    "lora": ("lora", LORA),
    "lora_bf16": ("lora", LORA | {"precision.frozen": "bfloat16"}),
    "lora_int8": ("lora", LORA | {"precision.quantized": "int8"}),
    "lora_nf4": ("lora", LORA | {"precision.quantized": "nf4"}),
}
ROLES = ("trained", "opt_state", "frozen")


def main(_: list[str]) -> None:
    """Measures and prints."""
    names = _ONLY.value or list(VARIANTS)
    if _DATA.value:
        print(json.dumps(_measure(Path(_DATA.value), *VARIANTS[names[0]])), flush=True)
        return
    from experiments.quickstart.documents import write_dataset

    with tempfile.TemporaryDirectory() as directory:
        # The steps need fewer: a sequence holds one document or several, and few documents are too long.
        write_dataset(directory, max(64, 2 * _STEPS.value * _SEQUENCES.value), _HELD_OUT_ROWS.value, seed=0)
        results = {name: _in_process(name, directory) for name in names}
    Console(width=160).print(_table(results))


def _in_process(name: str, directory: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", f"--only={name}", f"--data={directory}"]
    sizes = {"steps": _STEPS, "sequences": _SEQUENCES, "sequence_length": _SEQUENCE_LENGTH}
    command += [f"--{name}={flag.value}" for name, flag in sizes.items()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(name, {key: round(value, 4) for key, value in result.items()}, flush=True)
    return result


def _measure(data_directory: Path, arg: str, changes: dict[str, Any]) -> dict[str, float]:
    """Bytes by role and of the step in all, tokens a second, held-out loss before and after."""
    import jax

    from sft_jax.data.batches import train_batches
    from sft_jax.preparation.run_data import load_data
    from sft_jax.runs.base import base_of
    from sft_jax.sharding import make_mesh, put_batch
    from sft_jax.training.held_out import held_out_metrics
    from sft_jax.training.optimizer import hyperparameters
    from sft_jax.training.setup import init_state, make_model, step_settings
    from sft_jax.training.step import compile_eval_step, compile_train_step

    config = _config(data_directory, arg, changes)
    data, base, mesh = (
        load_data(options_of(config)),
        base_of(options_of(config).model),
        make_mesh(config.mesh.to_dict(), jax.devices()),
    )
    model, settings = (
        make_model(options_of(config), base.decoder, mesh),
        step_settings(options_of(config), mesh),
    )
    batches = train_batches(data.examples, data.plan, start_step=0, end_step=_STEPS.value, normalize="tokens")
    with jax.set_mesh(mesh):
        hyper = hyperparameters(options_of(config), _STEPS.value // 10, _STEPS.value)
        state = init_state(options_of(config), base, model, mesh, hyper)
        evaluate = compile_eval_step(model, settings, state, mesh)
        before = held_out_metrics(evaluate, state, data, options_of(config), mesh)["held_out/nll"]
        batch = put_batch(next(batches), mesh)
        compiled = compile_train_step(model, settings, state, mesh).lower(state, batch).compile()
        held = {role: _bytes(getattr(state, role)) for role in ROLES}
        held["step"] = _bytes_of_step(compiled.memory_analysis(), _bytes(state) + _bytes(batch))
        seconds = []
        for step in range(_STEPS.value):
            batch = batch if step == 0 else put_batch(next(batches), mesh)
            start = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
        after = held_out_metrics(evaluate, state, data, options_of(config), mesh)["held_out/nll"]
    rate = _SEQUENCES.value * _SEQUENCE_LENGTH.value / statistics.median(seconds)
    return {**held, "tokens_per_second": rate, "before": before, "after": after}


def _config(data_directory: Path, arg: str, changes: dict[str, Any]):
    import jax

    from configs import sft
    from sft_jax.runs.precision import with_dtypes

    config = sft.get_config(arg).copy_and_resolve_references()
    settings = {
        "model.source": MODEL,
        "data.train": str(data_directory / "train.jsonl"),
        "data.held_out": str(data_directory / "held_out.jsonl"),
        "data.sequence_length": _SEQUENCE_LENGTH.value,
        "duration": f"{_STEPS.value} steps",
        "batch.sequences": _SEQUENCES.value,
        "evaluation.batch_sequences": _SEQUENCES.value,
        "execution.layer_layout": "scan",
        "execution.remat": "full",
    }
    config.update_from_flattened_dict(settings | changes)
    return with_dtypes(config, jax.default_backend())


def _bytes(tree: Any) -> int:
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _bytes_of_step(analysis: Any, held: int) -> int:
    """What a compiled step needs.

    Raises:
        ValueError: its arguments are not the arrays that were counted.
    """
    from sft_jax.training.memory import step_bytes

    if abs(analysis.argument_size_in_bytes - held) > 0.01 * held:
        raise ValueError(f"the step takes {analysis.argument_size_in_bytes} bytes, its state and batch have {held}")
    return step_bytes(analysis)


def _table(results: dict[str, dict[str, float]]) -> Table:
    """Ratios are to the first variant."""
    first = next(iter(results.values()))
    total = lambda result: sum(result[role] for role in ROLES)
    mib = lambda count: f"{count / 2**20:,.0f}"
    table = Table(
        "", "trained, MiB", "optimizer", "frozen", "sum", "ratio", "step in all", "ratio", "tokens/s", "ratio"
    )
    table.add_column("held-out loss before")
    table.add_column(f"after {_STEPS.value} steps")
    for name, result in results.items():
        table.add_row(
            name,
            *(mib(result[role]) for role in ROLES),
            mib(total(result)),
            f"{total(result) / total(first):.2f}",
            mib(result["step"]),
            f"{result['step'] / first['step']:.2f}",
            f"{result['tokens_per_second']:.0f}",
            f"{result['tokens_per_second'] / first['tokens_per_second']:.2f}",
            f"{result['before']:.4f}",
            f"{result['after']:.4f}",
        )
    return table


if __name__ == "__main__":
    app.run(main)
