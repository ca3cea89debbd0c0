"""A tuned model learns on from its own answers: by DPO, by rewards, and for comparison by more fine-tuning.

    python -m experiments.alignment.run
    python -m experiments.alignment.run --chain --out=runs/alignment_chain

The second begins with texts of the domain, and takes each stage from the model of the one before.

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the table.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.alignment import report
from experiments.alignment.stages import SMOKE, Settings, Stages
from experiments.alignment.ways import WAYS, chain, side_by_side
from experiments.scores import MARKS
from sft_jax import commands
from sft_jax.sweeps.report.embedding import PLOTS, replace

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/alignment", "Directory for documents, answers, runs and results.")
_WAYS = flags.DEFINE_list("ways", list(WAYS), "Of learning on, those that are compared with the tuned model.")
_CHAIN = flags.DEFINE_bool("chain", False, "Continued pretraining, SFT, DPO, rewards: each from the one before.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Does it run from end to end? A small random model, a few documents.")


def main(_: Sequence[str]) -> None:
    """Runs what is missing, and shows the table."""
    if unknown := [way for way in _WAYS.value if way not in WAYS]:
        raise ValueError(f"--ways={','.join(_WAYS.value)}: there is no {unknown[0]!r}; there are {', '.join(WAYS)}")
    if _CHAIN.value and flags.FLAGS["ways"].present:
        raise ValueError("--ways and --chain: a chain has all its stages; leave one of the flags out")
    changes = {"is_chain": _CHAIN.value, "matmul": common_flags.MATMUL.value}
    settings = dataclasses.replace(SMOKE if _SMOKE.value else Settings(), **changes)
    out, console = Path(_OUT.value), Console()
    stages = Stages(out, settings, console)
    documents = stages.documents()
    compared = chain(stages, documents) if _CHAIN.value else side_by_side(stages, documents, _WAYS.value)
    evaluations, models = {}, []
    for model in compared:  # each is measured once it is there
        models.append(model)
        evaluations[model.name] = stages.evaluated(model.weights, documents["tested"], model.name)
    report.write(out, models, evaluations, stages.costs)
    tables = [(out / file).read_text(encoding="utf-8") for file in ("table.md", "faults.md")]
    for table in tables:
        console.print(table, highlight=False, soft_wrap=True, markup=False)
    if common_flags.INTO.value:
        plot = "chain" if _CHAIN.value else "curves"
        image = f"![rewards and accuracy on pairs, by step]({PLOTS}/{plot}.png)"
        replace(common_flags.INTO.value, [*tables, image, ""], {plot: (out / "curves.png").read_bytes()}, MARKS)
    console.print(f"Answers side by side: {out / 'report' / 'report.html'}", soft_wrap=True)


if __name__ == "__main__":
    commands.run(main)
