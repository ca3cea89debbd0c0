"""Several short LoRA runs: each in a process of its own, one after another in one process, and in one program.

    python -m benchmarks.stacked [--runs=8] [--steps=16] [--sequence_length=256]

SmolLM2-135M on the quickstart's documents, one sequence a step; the runs differ in seed, learning rate and alpha. Times
are those of the commands, start-up, compilation and last checkpoint included; each way begins with an empty cache of
compiled programs. Memory is that of the compiled step: arguments, results that do not take their place, temporaries.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.steps import MODEL

_RUNS = flags.DEFINE_integer("runs", 8, "Runs.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 16, "Optimizer steps of each.", lower_bound=1)
_SEQUENCE_LENGTH = flags.DEFINE_integer("sequence_length", 256, "Tokens of a sequence.", lower_bound=2)
_WAY = flags.DEFINE_enum("way", None, ["process", "stacked", "memory"], "Do only this, in this process, in --root.")
_ROOT = flags.DEFINE_string("root", "", "Directory with the data.")

PROCESSES, PROCESS, STACKED = "a process each", "one process, one after another", "one program"


def main(_: list[str]) -> None:
    """Measures and prints."""
    if _WAY.value:
        {"process": _in_one_process, "stacked": _in_one_program, "memory": _memory}[_WAY.value](Path(_ROOT.value))
        return
    from experiments.quickstart.documents import write_dataset

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write_dataset(root, max(64, 2 * _STEPS.value), 8, seed=0)
        seconds = {STACKED: _timed(_command("stacked", root), root / "c")}
        print(seconds, flush=True)
        seconds[PROCESS] = _timed(_command("process", root), root / "b")
        print(seconds, flush=True)
        each = [_timed(_train_command(root, number), root / "a") for number in range(_RUNS.value)]
        print(each, flush=True)
        seconds[PROCESSES] = sum(each)
        done = subprocess.run(_command("memory", root), check=True, stdout=subprocess.PIPE, text=True)
        memory = json.loads(done.stdout.splitlines()[-1])
    Console(width=120).print(_table(seconds), _words(memory))


def _changes(number: int) -> dict[str, Any]:
    """What is a run's own."""
    rates, alphas = (1e-3, 2e-3, 4e-3, 8e-3), (16.0, 32.0)
    return {
        "seed": number,
        "optimizer.learning_rate": rates[number % len(rates)],
        "adapter.alpha": alphas[number // len(rates) % len(alphas)],
    }


def _fields(root: Path, number: int) -> dict[str, Any]:
    return {
        "model.source": MODEL,
        "data.train": str(root / "train.jsonl"),
        "data.sequence_length": _SEQUENCE_LENGTH.value,
        "data.cache": "",
        "batch.sequences": 1,
        "duration": f"{_STEPS.value} steps",
        "evaluation.samples": 0,
        **_changes(number),
    }


def _configs(root: Path) -> list:
    from configs import sft

    made = []
    for number in range(_RUNS.value):
        config = sft.get_config("lora").copy_and_resolve_references()
        config.update_from_flattened_dict(_fields(root, number))
        made.append(config.lock())
    return made


def _train_command(root: Path, number: int) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "sft_jax.train",
        "--config=configs/sft.py:lora",
        f"--workdir={root / f'a{number}'}",
    ]
    return command + [f"--config.{name}={value}" for name, value in _fields(root, number).items()]


def _command(way: str, root: Path) -> list[str]:
    sizes = [f"--{flag.name}={flag.value}" for flag in (_RUNS, _STEPS, _SEQUENCE_LENGTH)]
    return [sys.executable, "-m", "benchmarks.stacked", f"--way={way}", f"--root={root}", *sizes]


def _timed(command: list[str], cache: Path) -> np.ndarray:
    """Seconds that a command takes, and seconds of cores, which say more where others work too."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    start, used = time.perf_counter(), _cores()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return np.array([time.perf_counter() - start, _cores() - used])


def _cores() -> float:
    """Seconds of cores that ended processes of this one have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _in_one_process(root: Path) -> None:
    """Rows and base are read once, and the step is compiled once."""
    from sft_jax import commands
    from sft_jax.options import options_of
    from sft_jax.sweeps.shared import Shared
    from sft_jax.training import run

    commands.start_jax()
    shared, console = Shared(), Console()
    for number, config in enumerate(_configs(root)):
        options = options_of(config)
        data, base = shared.data(options, 1, console), shared.base(options.model)
        run(config, root / f"b{number}", data=data, base=base)


def _in_one_program(root: Path) -> None:
    from sft_jax import commands
    from sft_jax.training.stacked import run_stacked

    commands.start_jax()
    ends = run_stacked(_configs(root), [root / f"c{number}" for number in range(_RUNS.value)])
    if not all(end.done for end in ends):
        raise RuntimeError(f"runs did not come to their end: {ends}")


def _memory(root: Path) -> None:
    """Bytes of the compiled steps: of a run, and of all together."""
    import jax

    from sft_jax.data.batches import train_batches
    from sft_jax.options import options_of
    from sft_jax.preparation.run_data import load_data
    from sft_jax.runs.base import base_of
    from sft_jax.runs.precision import with_dtypes
    from sft_jax.sharding import batch_sharding, make_mesh
    from sft_jax.training.abstract import abstract_state
    from sft_jax.training.setup import make_model, step_settings
    from sft_jax.training.stacked.fields import options_of_all
    from sft_jax.training.stacked.lanes import Lanes, frozen_of
    from sft_jax.training.stacked.step import compile_stacked_step, stacked_batch_sharding
    from sft_jax.training.step import compile_train_step

    options = [options_of(with_dtypes(config, jax.default_backend())) for config in _configs(root)]
    data, base, mesh = load_data(options[0]), base_of(options[0].model), make_mesh(options[0].mesh, jax.devices())
    batch = next(train_batches(data.examples, data.plan, threads=0))

    def program(of: Any) -> tuple:
        model, settings = make_model(of, base.decoder, mesh), step_settings(of, mesh)
        return model, settings, abstract_state(of, base.decoder, mesh, model.execution.layer_layout)

    def like(array: np.ndarray, sharding: Any, *axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*axes, *array.shape), array.dtype, sharding=sharding)

    with jax.set_mesh(mesh):
        model, settings, state = program(options[0])
        arrays = {name: like(array, batch_sharding(mesh)) for name, array in batch.items()}
        one = compile_train_step(model, settings, state, mesh).lower(state, arrays).compile()
        model, settings, state = program(options_of_all(options))
        lanes, frozen = Lanes([state] * len(options), mesh), frozen_of(state)
        arrays = {name: like(array, stacked_batch_sharding(mesh), len(options)) for name, array in batch.items()}
        step = compile_stacked_step(model, settings, lanes, frozen, mesh)
        together = step.lower(lanes.abstract, frozen.arrays, arrays).compile()
    print(json.dumps({"one": _bytes_of(one.memory_analysis()), "together": _bytes_of(together.memory_analysis())}))


def _bytes_of(analysis: Any) -> int:
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return max(analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes, analysis.peak_memory_in_bytes)


def _table(seconds: dict[str, np.ndarray]) -> Table:
    """Ratios are to a process each."""
    tokens = _RUNS.value * _STEPS.value * _SEQUENCE_LENGTH.value
    title = f"{_RUNS.value} runs of {_STEPS.value} steps"
    table = Table(title, "seconds", "times as fast", "positions a second", "seconds of cores", "times less")
    for way in (PROCESSES, PROCESS, STACKED):
        (took, used), (all_took, all_used) = seconds[way], seconds[PROCESSES]
        rates = (f"{all_took / took:.2f}", f"{tokens / took:,.0f}", f"{used:.0f}", f"{all_used / used:.2f}")
        table.add_row(way, f"{took:.0f}", *rates)
    return table


def _words(memory: dict[str, int]) -> str:
    one, together = memory["one"], memory["together"]
    mib = lambda count: f"{count / 2**20:,.0f} MiB"
    share = together / (_RUNS.value * one)
    return f"The step of a run takes {mib(one)}, that of all {mib(together)}: {share:.2f} of {_RUNS.value} steps."


if __name__ == "__main__":
    app.run(main)
