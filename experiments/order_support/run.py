"""All ways of adapting one model to a shop's letters, side by side, before and after the shop's records change.

    python -m experiments.order_support.run

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the table.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.commands import SEED, Commands
from experiments.order_support import methods
from experiments.order_support.rows import HELD_OUT, LATER, write_data
from experiments.scores import show
from sft_jax import commands

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/order_support", "Directory for data, runs and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "The pretrained model.")
_TRAIN_ROWS = flags.DEFINE_integer("train_rows", 400, "Letters to train on.", lower_bound=4)
_HELD_OUT_ROWS = flags.DEFINE_integer("held_out_rows", 120, "Held-out letters.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 60, "Optimizer steps of each run.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    """Makes the data, trains and measures what is missing, and shows the table."""
    out, console = Path(_OUT.value), Console()
    command = Commands(console, common_flags.MATMUL.value)
    write_data(out / "data", _TRAIN_ROWS.value, _HELD_OUT_ROWS.value, SEED)
    for name in (methods.PLAIN, methods.WITH_PASSAGES):
        console.rule(name.replace("_", " "))
        command.train(out / name, methods.training_changes(out, name, _MODEL.value, _STEPS.value))
    for file in (HELD_OUT, LATER):
        for name in (methods.PLAIN, methods.WITH_PASSAGES):
            console.rule(f"{file}, {name.replace('_', ' ')}")
            flags_of_task = methods.evaluation_flags(out, name, file)
            command.evaluate(methods.evaluation_of(out, name, file), flags_of_task)
    console.rule("all methods")
    results = {file: methods.read_results(out, file) for file in (HELD_OUT, LATER)}
    show(out, [methods.table_of(results)], methods.plot_of(results), console, common_flags.INTO.value)


if __name__ == "__main__":
    commands.run(main)
