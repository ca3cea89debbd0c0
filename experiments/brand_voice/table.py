"""The line of each method: what it says of itself, its tone, how it is told apart, and what became of all else."""

from collections.abc import Mapping
from pathlib import Path

from experiments.commands import SEED
from experiments.scores import Score, read_answers, read_results, read_task
from sft_jax.evaluation.distinguishable import distinguishable
from sft_jax.evaluation.figures import metric_name

ALONE, WITH_REPLAY = "trained_alone", "trained_with_replay"
# What is shown: which run's evaluation has it, and under which name.
METHODS = {"base": (ALONE, "base"), "prompted": (ALONE, "prompted"), "SFT": (ALONE, "sft")}
METHODS |= {"SFT with replay": (WITH_REPLAY, "sft")}
_METRICS = ("says_who", "house_tone", "facts_kept")
_OF_GENERAL = ("brand_absent", "held_out_loss")


def evaluation_of(out: Path, run: str, file: str) -> Path:
    """Where the evaluation of a run on the rows of a file is kept."""
    return out / "evaluations" / f"{run}_{Path(file).stem}"


def lines_of(out: Path, files: Mapping[str, str], general: str) -> dict[str, dict[str, Score]]:
    """The line of each method.

    Args:
        out: of the experiment.
        files: of questions to the house, by what they are called; the metrics of each, and how surely the answers are
            told apart from the base's (AUC), unless neither has a text.
        general: of all other questions, which were measured as a probe with the base and the tuned weights.
    """
    lines: dict[str, dict[str, Score]] = {}
    for shown, (run, method) in METHODS.items():
        line = lines.setdefault(shown, {})
        for words, file in files.items():
            evaluation = evaluation_of(out, run, file)
            scores = read_task(evaluation)["scores"][method]
            line |= {f"{metric_name(metric)}, {words}": scores[metric] for metric in _METRICS if metric in scores}
            if shown != "base":
                base, own = answers(evaluation_of(out, ALONE, file), "base"), answers(evaluation, method)
                if any(text.strip() for text in (*base, *own)):  # what has no text cannot be told apart
                    line[f"told apart from base, {words}"] = distinguishable(base, own, SEED).auc.as_dict()
        probe = evaluation_of(out, run, general)
        if method in (scores := read_task(probe)["scores"]):
            line |= {f"{metric_name(metric)}, general": scores[method][metric] for metric in _OF_GENERAL}
        if method == "sft":
            line[f"{metric_name('kl_base_tuned')}, general"] = read_results(probe)["divergence"]["kl_base_tuned"]
    return lines


def answers(evaluation: Path, method: str) -> list[str]:
    """The texts of a method's answers."""
    return [row["answer"] for row in read_answers(evaluation, method)]
