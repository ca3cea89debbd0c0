"""What the experiment compares: the arguments of its commands, and the table of what they found."""

from collections.abc import Mapping
from pathlib import Path

from experiments.order_support.letters import CLOSING, ESCALATION, OPENING
from experiments.order_support.rows import HELD_OUT, LATER, RECORDS, RECORDS_LATER, TRAIN, VALIDATION
from experiments.scores import Score, read_task, score_plot, score_table
from sft_jax.evaluation.report.tables import TextTable

INSTRUCTION = (
    f"You answer the letters of customers of the shop Fernwood, in one short paragraph. Begin with '{OPENING}' and end "
    f"with '{CLOSING}'. Take all facts from the passages. If an order is delayed or an item arrived damaged, name no "
    f"date and write '{ESCALATION}' Do that in no other case."
)
LONGEST_ANSWER = 96  # tokens; reference answers have at most 70
PASSAGES = 2
PLAIN, WITH_PASSAGES = "trained_on_letters", "trained_with_passages"
METHODS = ("base", "prompted", "few_shot", "rag", "prompted+few_shot+rag", "sft", "sft+rag")
METRICS = ("exact_match", "facts_right", "nothing_invented", "escalated_rightly", "house_style")

Results = Mapping[str, Mapping[str, Mapping[str, Score]]]  # by file, shown method and metric: a score

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


def training_changes(out: Path, name: str, model: str, steps: int) -> dict[str, object]:
    """What a run has in its config, by path."""
    data = out / "data"
    changes = {
        "model.source": model,
        "data.train": data / TRAIN,
        "data.held_out": data / VALIDATION,
        "data.reading.group_column": "kind",
        "duration": f"{steps} steps",
        "evaluation.every": "20 steps",
        "evaluation.samples": 0,
        "checkpoint.every": "20 steps",
    }
    if name == WITH_PASSAGES:
        changes |= {"data.retrieval.corpus": data / RECORDS, "data.retrieval.passages": PASSAGES}
    return changes


def evaluation_flags(out: Path, name: str, file: str) -> dict[str, object]:
    """Flags of the command that asks the questions of `file`: of all methods, or of what was trained with passages."""
    data = out / "data"
    given = {
        "model": out / name,
        "data": data / file,
        "scorer": "experiments.order_support.scorer:letter",
        "methods": ",".join(METHODS) if name == PLAIN else "sft+rag",
        "max_new_tokens": LONGEST_ANSWER,
        "reading.group_column": "kind",
        "corpus": data / (RECORDS if file == HELD_OUT else RECORDS_LATER),
        "passages": PASSAGES,
    }
    if name == PLAIN:
        return given | {"instruction": INSTRUCTION, "examples_from": data / TRAIN}
    return given | {"compare": evaluation_of(out, PLAIN, file)}


def evaluation_of(out: Path, name: str, file: str) -> Path:
    """Where the evaluation of a run on the rows of a file is kept."""
    return out / "evaluations" / f"{name}_{Path(file).stem}"


def read_results(out: Path, file: str) -> dict[str, dict[str, Score]]:
    """The scores of each row of the table on the rows of a file: by metric."""
    return {
        shown: read_task(evaluation_of(out, name, file))["scores"][method] for shown, (name, method) in ROWS.items()
    }


def table_of(results: Results) -> TextTable:
    """A line for each method: all metrics on the held-out letters, and those that are right when records changed."""
    now, then = results[HELD_OUT], results[LATER]
    lines = {}
    for shown in ROWS:
        after = {"exact match after the change": then[shown]["exact_match"]}
        lines[shown] = {metric: now[shown][metric] for metric in METRICS} | after
    return score_table(lines)


def plot_of(results: Results) -> bytes:
    """The shares of letters that each method answers rightly, before and after the change, as PNG."""
    words = {HELD_OUT: "records as they were in training", LATER: "letters whose answer has changed since"}
    series = {words[file]: {shown: results[file][shown]["exact_match"] for shown in ROWS} for file in words}
    axis = "exact match: facts, nothing made up, escalation and style are right"
    return score_plot(series, "Letters answered rightly, 95 % intervals", axis)
