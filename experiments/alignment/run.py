"""A tuned model learns on from its own answers: by DPO, by rewards, and for comparison by more fine-tuning.

    python -m experiments.alignment.run

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the table.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments.alignment import report
from experiments.alignment.stages import SMOKE, Settings, Stages
from sft_jax import commands
from sft_jax.evaluation.own_answers import BEST, PAIRS

_OUT = flags.DEFINE_string("out", "runs/alignment", "Directory for documents, answers, runs and results.")
_MATMUL = flags.DEFINE_enum(
    "matmul",
    "bfloat16",
    ["bfloat16", "float32"],
    "dtype of the inputs of matrix products; CPUs that have none of bfloat16 are faster in float32.",
)
_SMOKE = flags.DEFINE_bool("smoke", False, "Does it run from end to end? A small random model, a few documents.")


def main(_: Sequence[str]) -> None:
    """Runs what is missing, and shows the table."""
    settings = dataclasses.replace(SMOKE if _SMOKE.value else Settings(), matmul=_MATMUL.value)
    out, console = Path(_OUT.value), Console()
    stages = Stages(out, settings, console)
    tested = stages.documents()["tested"]
    evaluations = {model.name: stages.evaluated(model, tested) for model in models(stages)}  # each once it is there
    console.print(report.table_of(report.write(out, evaluations, stages.costs)))
    console.print(f"Answers side by side: {out / 'report' / 'report.html'}", soft_wrap=True)


def models(stages: Stages) -> Iterator[Path]:
    """What is compared: the tuned model, and what came of it on the fresh documents."""
    documents = stages.documents()
    yield (tuned := stages.tuned(documents["tuned_on"]))
    yield stages.dpo(tuned, stages.own_answers(tuned, documents["fresh"], PAIRS))
    yield stages.continued(tuned, stages.own_answers(tuned, documents["fresh"], BEST), "sft_on_right_answers")
    yield stages.rlvr(tuned, documents["fresh"])


if __name__ == "__main__":
    commands.run(main)
