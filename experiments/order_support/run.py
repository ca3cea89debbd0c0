"""All ways of adapting one model to a shop's letters, side by side, before and after the shop's records change.

    python -m experiments.order_support.run

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the table.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from experiments.commands import run_command
from experiments.order_support.letters import CLOSING, ESCALATION, OPENING
from experiments.order_support.rows import HELD_OUT, LATER, RECORDS, RECORDS_LATER, TRAIN, VALIDATION, write_data
from sft_jax import commands
from sft_jax.evaluation.figures import metric_name, score_text
from sft_jax.evaluation.report.drawing import COLORS, MARKERS, draw_point, figure_with_axes, name_lines, png_of
from sft_jax.evaluation.report.markdown import table_lines
from sft_jax.evaluation.report.tables import TextTable
from sft_jax.runs.workdir import write_whole

_OUT = flags.DEFINE_string("out", "runs/order_support", "Directory for data, runs and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "The pretrained model.")
_TRAIN_ROWS = flags.DEFINE_integer("train_rows", 400, "Letters to train on.", lower_bound=4)
_HELD_OUT_ROWS = flags.DEFINE_integer("held_out_rows", 120, "Held-out letters.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 60, "Optimizer steps of each run.", lower_bound=1)

INSTRUCTION = (
    f"You answer the letters of customers of the shop Fernwood, in one short paragraph. Begin with '{OPENING}' and end "
    f"with '{CLOSING}'. Take all facts from the passages. If an order is delayed or an item arrived damaged, name no "
    f"date and write '{ESCALATION}' Do that in no other case."
)
LONGEST_ANSWER = 96  # tokens; reference answers have at most 70
SEED = 0
PASSAGES = 2
PLAIN, WITH_PASSAGES = "trained_on_letters", "trained_with_passages"
METHODS = ("base", "prompted", "few_shot", "rag", "prompted+few_shot+rag", "sft", "sft+rag")
METRICS = ("exact_match", "facts_right", "nothing_invented", "escalated_rightly", "house_style")

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by file, shown method and metric: a score

# The rows of the table: what is shown, which run's evaluation has it, and under which name.
ROWS = {
    "base": (PLAIN, "base"),
    "prompted": (PLAIN, "prompted"),
    "few-shot": (PLAIN, "few_shot"),
    "retrieval": (PLAIN, "rag"),
    "prompted, few-shot, retrieval": (PLAIN, "prompted+few_shot+rag"),
    "SFT": (PLAIN, "sft"),
    "SFT, then retrieval": (PLAIN, "sft+rag"),
    "SFT with retrieved passages": (WITH_PASSAGES, "sft+rag"),
}


def main(_: Sequence[str]) -> None:
    """Makes the data, trains and measures what is missing, and shows the table."""
    out, console = Path(_OUT.value), Console()
    write_data(out / "data", _TRAIN_ROWS.value, _HELD_OUT_ROWS.value, SEED)
    for name in (PLAIN, WITH_PASSAGES):
        console.rule(name.replace("_", " "))
        run_command("sft_jax.train", training_arguments(out, name, _MODEL.value, _STEPS.value), console)
    for file in (HELD_OUT, LATER):
        for name in (PLAIN, WITH_PASSAGES):
            console.rule(f"{file}, {name.replace('_', ' ')}")
            run_command("sft_jax.evaluate", evaluation_arguments(out, name, file), console)
    console.rule("all methods")
    _show(out, console)


def training_arguments(out: Path, name: str, model: str, steps: int) -> list[str]:
    """Flags of the training command of a run."""
    data = out / "data"
    given = {
        "model.source": model,
        "data.train": data / TRAIN,
        "data.held_out": data / VALIDATION,
        "data.reading.group_column": "kind",
        "data.sequence_length": 512,
        "batch.sequences": 4,
        "duration": f"{steps} steps",
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup": "10 percent",
        "evaluation.every": "20 steps",
        "evaluation.samples": 0,
        "checkpoint.every": "20 steps",
        "seed": SEED,
    }
    if name == WITH_PASSAGES:
        given |= {"data.retrieval.corpus": data / RECORDS, "data.retrieval.passages": PASSAGES}
    flags_of_config = [f"--config.{path}={value}" for path, value in given.items()]
    return ["--config=configs/sft.py:lora", f"--workdir={out / name}", *flags_of_config]


def evaluation_arguments(out: Path, name: str, file: str) -> list[str]:
    """Flags of the command that asks the questions of `file`: of all methods, or of what was trained with passages."""
    data = out / "data"
    methods = METHODS if name == PLAIN else ("sft+rag",)
    corpus = RECORDS if file == HELD_OUT else RECORDS_LATER
    arguments = [
        *(f"--model={out / name}", f"--data={data / file}", "--scorer=experiments.order_support.scorer:letter"),
        *(f"--methods={','.join(methods)}", f"--max_new_tokens={LONGEST_ANSWER}", "--reading.group_column=kind"),
        *(f"--corpus={data / corpus}", f"--passages={PASSAGES}", "--noloss", f"--seed={SEED}"),
        f"--out={evaluation_of(out, name, file)}",
    ]
    if name == PLAIN:
        return [*arguments, f"--instruction={INSTRUCTION}", f"--examples_from={data / TRAIN}"]
    return [*arguments, f"--compare={evaluation_of(out, PLAIN, file)}"]


def evaluation_of(out: Path, name: str, file: str) -> Path:
    """Where the evaluation of a run on the rows of a file is kept."""
    return out / "evaluations" / f"{name}_{Path(file).stem}"


def read_results(out: Path, file: str) -> dict[str, dict[str, Any]]:
    """The scores of each row of the table on the rows of a file: by metric."""
    found = {}
    for shown, (name, method) in ROWS.items():
        path = evaluation_of(out, name, file) / "results.json"
        (task,) = json.loads(path.read_text(encoding="utf-8"))["tasks"].values()
        found[shown] = task["scores"][method]
    return found


def table_of(results: Results) -> TextTable:
    """A line for each method: all metrics on the held-out letters, and those that are right when records changed."""
    columns = ("method", *(metric_name(metric) for metric in METRICS), "exact match after the change")
    lines = []
    for shown in ROWS:
        now, then = (results[file][shown] for file in (HELD_OUT, LATER))
        lines.append((shown, *(score_text(now[metric]) for metric in METRICS), score_text(then["exact_match"])))
    return TextTable("", columns, tuple(lines))


def plot_of(results: Results) -> bytes:
    """The shares of letters that each method answers rightly, before and after the change, as PNG."""
    figure, axes = figure_with_axes(0.5 * len(ROWS) + 1.4, "Letters answered rightly, 95 % intervals")
    for file, words, color, marker, shift in (
        (HELD_OUT, "records as they were in training", COLORS[0], MARKERS[0], -0.12),
        (LATER, "letters whose answer has changed since", COLORS[1], MARKERS[1], 0.12),
    ):
        for place, shown in enumerate(ROWS):
            draw_point(axes, results[file][shown]["exact_match"], place + shift, color, marker)
        axes.plot([], [], marker, color=color, label=words)
    name_lines(axes, list(ROWS))
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("exact match: facts, nothing made up, escalation and style are right")
    axes.legend(loc="lower right", frameon=False)
    return png_of(figure)


def _show(out: Path, console: Console) -> None:
    """Writes the table and the plot, and prints the table."""
    results = {file: read_results(out, file) for file in (HELD_OUT, LATER)}
    table = "\n".join(table_lines(table_of(results)))
    write_whole(out / "table.md", table + "\n")
    (out / "methods.png").write_bytes(plot_of(results))
    console.print(table, highlight=False, soft_wrap=True, markup=False)
    console.print(f"table: {out / 'table.md'}; plot: {out / 'methods.png'}", soft_wrap=True)


if __name__ == "__main__":
    commands.run(main)
