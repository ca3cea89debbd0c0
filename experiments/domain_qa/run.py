"""Questions of a domain, with and without retrieval over the same answers, before and after fine-tuning.

    python -m experiments.domain_qa.run --data=qa.jsonl

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the tables.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.commands import SEED, Commands
from experiments.domain_qa.rows import CORPUS, write_data
from experiments.one_run import EVALUATION, compare_methods
from experiments.rows import HELD_OUT, train_file
from experiments.scores import (
    group_scores,
    method_name,
    metric_plot,
    read_results,
    score_lines,
    score_table,
    show,
)
from sft_jax import commands, reading_flags
from sft_jax.data.records import read_records

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/domain_qa", "Directory for data, run and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "The pretrained model.")
_DATA = flags.DEFINE_string("data", None, "Questions and answers.", required=True)
_TRAIN_ROWS = flags.DEFINE_integer("train_rows", 400, "Questions to train on.", lower_bound=2)
_HELD_OUT = flags.DEFINE_integer("held_out", 100, "Questions to measure, half of them trained.", lower_bound=4)
_WORDS = flags.DEFINE_integer("words", 60, "Of an answer, at most; the corpus has all of it.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 80, "Optimizer steps.", lower_bound=1)
_ANSWER_TOKENS = flags.DEFINE_integer("answer_tokens", 128, "Of an answer, at most.", lower_bound=8)
flags.FLAGS.set_default("reading.prompt_template", "{question}")
flags.FLAGS.set_default("reading.answer_template", "{answer}")

METHODS = ("base", "rag", "sft", "sft+rag")
METRIC = "rouge_l"
PASSAGES = 2


def main(_: Sequence[str]) -> None:
    """Trains and measures what is missing, and shows the tables."""
    out, console = Path(_OUT.value), Console()
    data, rows = out / "data", train_file(_TRAIN_ROWS.value)
    records = read_records(_DATA.value, reading_flags.reading())
    write_data(data, records, _TRAIN_ROWS.value, _HELD_OUT.value, _WORDS.value, SEED)
    changes = {"model.source": _MODEL.value, "data.train": data / rows, "duration": f"{_STEPS.value} steps"}
    given = {"data": data / HELD_OUT, "scorer": METRIC, "max_new_tokens": _ANSWER_TOKENS.value}
    given |= {"corpus": data / CORPUS, "passages": PASSAGES, "relevant_column": "document"}
    given |= {"reading.group_column": "asked"}
    task = compare_methods(out, METHODS, changes, given, Commands(console, common_flags.MATMUL.value))
    lines = score_lines(task, [METRIC])
    groups = {method_name(method): group_scores(task, method, METRIC) for method in METHODS}
    for name, by_group in groups.items():
        lines[name] |= {f"ROUGE-L, {group} questions": by_group[group] for group in by_group if group != "gap"}
    found = {"BM25": read_results(out / EVALUATION)["retrieval"]}
    tables = [score_table(lines), score_table(found, "Whether the passages have the answer", "search")]
    shown = [metric for metric in lines["base"] if metric != METRIC]
    show(
        out,
        tables,
        metric_plot(lines, shown, "Likeness to the right answer", "ROUGE-L"),
        console,
        common_flags.INTO.value,
    )


if __name__ == "__main__":
    commands.run(main)
