"""A class of a message, written or chosen: the base model, solved examples and fine-tuning, by examples a class.

    python -m experiments.classification.run --train=train.csv --test=test.csv

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the tables.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.classification.rows import write_data
from experiments.classification.tables import KINDS, WORDS, WRITTEN, score_lines, tables_of
from experiments.commands import SEED, Commands
from experiments.rows import HELD_OUT, sizes_of, train_file
from experiments.scores import metric_plot, read_task, show
from sft_jax import commands, reading_flags
from sft_jax.data.records import read_records

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/classification", "Directory for data, runs and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "The pretrained model.")
_TRAIN = flags.DEFINE_string("train", None, "Messages and their classes to train on.", required=True)
_TEST = flags.DEFINE_string("test", None, "Those to measure.", required=True)
_CLASSES = flags.DEFINE_integer("classes", 12, "The most frequent classes; 0: all.", lower_bound=0)
_SIZES = flags.DEFINE_list("sizes", ["2", "8", "32"], "Examples of a class to train on: a run each.")
_HELD_OUT = flags.DEFINE_integer("held_out", 10, "Examples of a class to measure, at most.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("sequence_length", 512, "Of a question with all classes, in tokens.", lower_bound=64)
_STEPS = flags.DEFINE_integer("steps", 40, "Optimizer steps of each run.", lower_bound=1)
flags.FLAGS.set_default("reading.prompt_template", "{text}")
flags.FLAGS.set_default("reading.answer_template", "{category}")

LONGEST_ANSWER = 24  # tokens
SOLVED = 4  # examples in a prompt, the nearest to the question


def main(_: Sequence[str]) -> None:
    """Makes the data, trains and measures what is missing, and shows the tables."""
    out, console, sizes = Path(_OUT.value), Console(), sizes_of(_SIZES.value)
    command = Commands(console, common_flags.MATMUL.value)
    train_rows, test_rows = (read_records(path, reading_flags.reading()) for path in (_TRAIN.value, _TEST.value))
    names = write_data(out / "data", train_rows, test_rows, _CLASSES.value, sizes, _HELD_OUT.value, SEED)
    found = {}
    for size in sizes:
        console.rule(f"{size} examples a class")
        rows = out / "data" / train_file(size)
        changes = {"model.source": _MODEL.value, "data.train": rows, "duration": f"{_STEPS.value} steps"}
        changes["data.sequence_length"] = _LENGTH.value
        command.train(out / f"trained_on_{size}", changes)
        methods = "base,few_shot,sft" if size == sizes[0] else "few_shot,sft"  # the base has no examples
        found[size] = {kind: _measured(kind, size, names, methods, command) for kind in KINDS}
    console.rule("all methods")
    shown = [f"macro-F1, {words}" for words in WORDS.values()]
    show(
        out,
        tables_of(found),
        metric_plot(score_lines(found), shown, "Classes", "macro-F1"),
        console,
        common_flags.INTO.value,
    )


def _measured(kind: str, size: int, names: Sequence[str], methods: str, command: Commands) -> dict:
    """What the evaluation of a run finds, the class being written or chosen."""
    out = Path(_OUT.value)
    directory = out / "evaluations" / f"{WORDS[kind]}_{size}"
    given = {
        "model": out / f"trained_on_{size}",
        "data": out / "data" / HELD_OUT,
        "kind": kind,
        "methods": methods,
        "examples_from": out / "data" / train_file(size),
        "examples": SOLVED,
        "choose_examples": "nearest",
        "reading.group_column": "group",
        "reading.id_column": "id",
    }
    if kind == WRITTEN:  # of an answer in a sentence the class counts that stands in it
        given |= {"scorer": "labels", "scorer_options": json.dumps({"labels": names, "anywhere": True})}
        given |= {"max_new_tokens": LONGEST_ANSWER}
    command.evaluate(directory, given)
    return read_task(directory)


if __name__ == "__main__":
    commands.run(main)
