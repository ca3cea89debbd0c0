"""Fields out of documents by the number of rows that are trained, and what is wrong with those that are not right.

    python -m experiments.document_extraction.run
    python -m experiments.document_extraction.run --utterances=utterances.jsonl --ontology=ontology.json \
        --out=runs/utterances

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the tables.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.commands import SEED, Commands
from experiments.document_extraction.by_layout import EXACT, scores_of
from experiments.document_extraction.invented import origin_table, origins_of
from experiments.document_extraction.titles import documents_of, write_titles
from experiments.document_extraction.utterances import write_utterances
from experiments.faults import Faults, fault_tables, faults_of
from experiments.rows import HELD_OUT, sizes_of, train_file
from experiments.scores import Score, metric_plot, read_answers, read_task, score_table, show
from sft_jax import commands

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/document_extraction", "Directory for data, runs and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "The pretrained model.")
_UTTERANCES = flags.DEFINE_string("utterances", "", "Rows of NLU++ in the place of vehicle titles.")
_ONTOLOGY = flags.DEFINE_string("ontology", "", "Their intents and slots.")
_SIZES = flags.DEFINE_list("sizes", ["50", "150", "600"], "Rows to train on: a run each.")
_HELD_OUT = flags.DEFINE_integer(
    "held_out", 120, "Held-out vehicle titles, half of them in new layouts.", lower_bound=4
)
_STEPS = flags.DEFINE_integer("steps", 48, "Optimizer steps of each run.", lower_bound=1)

LONGEST_ANSWER = 96  # tokens


def main(_: Sequence[str]) -> None:
    """Makes the data, trains and measures what is missing, and shows the tables."""
    if bool(_UTTERANCES.value) != bool(_ONTOLOGY.value):
        raise ValueError("--utterances and --ontology go together; without both, vehicle titles are invented")
    out, console, sizes = Path(_OUT.value), Console(), sizes_of(_SIZES.value)
    command = Commands(console, common_flags.MATMUL.value)
    if _UTTERANCES.value:
        fields = write_utterances(out / "data", _UTTERANCES.value, _ONTOLOGY.value, sizes)
    else:
        fields = write_titles(out / "data", sizes, _HELD_OUT.value, SEED)
    lines: dict[str, dict[str, Score]] = {}
    faults: dict[str, dict[str, Faults]] = {}
    origins: dict[str, Counter[tuple[str, str]]] = {}
    documents = {} if _UTTERANCES.value else documents_of(out / "data")
    for size in sizes:
        console.rule(f"{size} rows")
        run, directory = out / f"trained_on_{size}", out / "evaluations" / str(size)
        rows = out / "data" / train_file(size)
        command.train(run, {"model.source": _MODEL.value, "data.train": rows, "duration": f"{_STEPS.value} steps"})
        names = {"base": "base", "few_shot": "few-shot"} if size == sizes[0] else {}
        names["sft"] = f"SFT on {size} rows"
        command.evaluate(directory, _evaluation_flags(run, size, list(names)))
        task = read_task(directory)
        for method, shown in names.items():
            lines[shown] = scores_of(task, method)
            answers = read_answers(directory, method)
            faults[shown] = faults_of([row["outcome"] for row in answers], fields)
            if documents:
                origins[shown] = origins_of(answers, documents, fields)
    console.rule("all methods")
    tables = [score_table(lines), *fault_tables(faults), *([origin_table(origins, fields)] if origins else [])]
    by_layout = [metric for metric in lines["base"] if metric.startswith("exact match, ")]
    plot = metric_plot(lines, by_layout or [EXACT], "All fields right", "share of held-out rows")
    show(out, tables, plot, console, common_flags.INTO.value)


def _evaluation_flags(run: Path, size: int, methods: Sequence[str]) -> dict[str, object]:
    data = Path(_OUT.value) / "data"
    given = {"model": run, "data": data / HELD_OUT, "methods": ",".join(methods), "max_new_tokens": LONGEST_ANSWER}
    given |= {"scorer": "slots" if _UTTERANCES.value else "json_fields", "reading.id_column": "id"}
    given |= {} if _UTTERANCES.value else {"reading.group_column": "layout"}
    return given | ({"examples_from": data / train_file(size)} if "few_shot" in methods else {})


if __name__ == "__main__":
    commands.run(main)
