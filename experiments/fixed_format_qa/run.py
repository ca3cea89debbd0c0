"""Word problems with answers in a fixed form: the base model, an instruction, solved examples and fine-tuning.

    python -m experiments.fixed_format_qa.run --train=train.jsonl --test=test.jsonl

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the table.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.commands import SEED, Commands
from experiments.fixed_format_qa.scorer import MARKER
from experiments.one_run import compare_methods
from experiments.rows import HELD_OUT, chat_row, question_and_answer, train_file, write_rows
from experiments.scores import metric_plot, score_lines, score_table, show
from sft_jax import commands, reading_flags
from sft_jax.data.records import read_records

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/fixed_format_qa", "Directory for data, run and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "The pretrained model.")
_TRAIN = flags.DEFINE_string("train", None, "Questions and answers to train on.", required=True)
_TEST = flags.DEFINE_string("test", None, "Those to measure.", required=True)
_TRAIN_ROWS = flags.DEFINE_integer("train_rows", 1000, "Of --train, drawn.", lower_bound=4)
_HELD_OUT = flags.DEFINE_integer("held_out", 100, "Of --test, drawn.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 120, "Optimizer steps.", lower_bound=1)
_ANSWER_TOKENS = flags.DEFINE_integer("answer_tokens", 256, "Of an answer, at most.", lower_bound=8)
flags.FLAGS.set_default("reading.prompt_template", "{question}")
flags.FLAGS.set_default("reading.answer_template", "{answer}")

METHODS = ("base", "prompted", "few_shot", "prompted+few_shot", "sft")
METRICS = ("exact_match", "result_right", "form_right", "calculations")
INSTRUCTION = (
    "Solve the problem step by step, a step a line. Write each calculation twice, the first time in double angle "
    f"brackets: 3*4 = <<3*4=12>>12. Write the result on a last line of its own, behind {MARKER}: {MARKER} 12"
)


def main(_: Sequence[str]) -> None:
    """Trains and measures what is missing, and shows the table."""
    out, console = Path(_OUT.value), Console()
    data, rows = out / "data", train_file(_TRAIN_ROWS.value)
    drawn = {rows: _drawn(_TRAIN.value, _TRAIN_ROWS.value), HELD_OUT: _drawn(_TEST.value, _HELD_OUT.value)}
    write_rows(data, drawn)
    changes = {"model.source": _MODEL.value, "data.train": data / rows, "duration": f"{_STEPS.value} steps"}
    given = {"data": data / HELD_OUT, "examples_from": data / rows, "max_new_tokens": _ANSWER_TOKENS.value}
    given |= {"scorer": "experiments.fixed_format_qa.scorer:steps_and_result", "instruction": INSTRUCTION}
    lines = score_lines(
        compare_methods(out, METHODS, changes, given, Commands(console, common_flags.MATMUL.value)), METRICS
    )
    plot = metric_plot(lines, METRICS, "Form, arithmetic and result", "share of held-out questions, or of calculations")
    show(out, [score_table(lines)], plot, console, common_flags.INTO.value)


def _drawn(path: str, count: int) -> list[dict[str, object]]:
    """So many rows of a file.

    Raises:
        ValueError: it has fewer.
    """
    records = read_records(path, reading_flags.reading())
    if len(records) < count:
        raise ValueError(f"{path} has {len(records)} rows, fewer than {count}; give a smaller number of rows")
    drawn = random.Random(SEED).sample(records, count)
    return [chat_row(*question_and_answer(record), id=record.id) for record in drawn]


if __name__ == "__main__":
    commands.run(main)
