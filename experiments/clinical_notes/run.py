"""Notes of consultations: the base model, an instruction, solved examples and fine-tuning, side by side.

    python -m experiments.clinical_notes.run

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the table.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.clinical_notes.rows import INSTRUCTION, write_data
from experiments.commands import SEED, Commands
from experiments.one_run import compare_methods
from experiments.rows import HELD_OUT, train_file
from experiments.scores import group_scores, method_name, metric_plot, score_lines, score_table, show
from sft_jax import commands

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/clinical_notes", "Directory for data, run and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "The pretrained model.")
_TRAIN_ROWS = flags.DEFINE_integer("train_rows", 300, "Consultations to train on.", lower_bound=4)
_HELD_OUT = flags.DEFINE_integer("held_out", 100, "Held-out consultations, half with new terms.", lower_bound=4)
_STEPS = flags.DEFINE_integer("steps", 60, "Optimizer steps.", lower_bound=1)

LONGEST_ANSWER = 128  # tokens
METHODS = ("base", "prompted", "few_shot", "prompted+few_shot", "sft")
METRICS = ("exact_match", "sections_complete", "facts_kept", "nothing_invented", "house_wording")


def main(_: Sequence[str]) -> None:
    """Makes the data, trains and measures what is missing, and shows the tables."""
    out, console = Path(_OUT.value), Console()
    data = out / "data"
    write_data(data, _TRAIN_ROWS.value, _HELD_OUT.value, SEED)
    rows = data / train_file(_TRAIN_ROWS.value)
    changes = {"model.source": _MODEL.value, "data.train": rows, "duration": f"{_STEPS.value} steps"}
    given = {"data": data / HELD_OUT, "examples_from": rows, "max_new_tokens": LONGEST_ANSWER}
    given |= {"scorer": "experiments.clinical_notes.scorer:note", "instruction": INSTRUCTION}
    given |= {"reading.group_column": "terms", "reading.id_column": "id"}
    task = compare_methods(out, METHODS, changes, given, Commands(console, common_flags.MATMUL.value))
    lines = score_lines(task, METRICS)
    by_terms = {method_name(method): group_scores(task, method, "facts_kept") for method in METHODS}
    tables = [score_table(lines), score_table(by_terms, "Facts kept, by whether the terms were trained")]
    show(
        out,
        tables,
        metric_plot(lines, METRICS, "Notes", "share of held-out notes, or of facts"),
        console,
        common_flags.INTO.value,
    )


if __name__ == "__main__":
    commands.run(main)
