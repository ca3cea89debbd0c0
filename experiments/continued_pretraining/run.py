"""A model is trained on a new domain, with replay of an old one and without; both are measured text by text.

    python -m experiments.continued_pretraining.run

What is done stays in the directory: an interrupted experiment goes on where it was, and a second one only measures.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.continued_pretraining.replay import SEED, experiment, table_of
from experiments.continued_pretraining.texts import modules, texts_of, titles, write_texts
from experiments.scores import show
from sft_jax import commands

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/continued_pretraining", "Directory for texts, runs and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "What is trained on from.")
_DOMAIN = flags.DEFINE_string("domain", "", 'File of texts of the new domain, {"text"}; empty: vehicle titles.')
_GENERAL = flags.DEFINE_string("general", "", "File of texts of the old one; empty: Python's standard library.")
_TEXTS = flags.DEFINE_integer("texts", 500, "Texts of each, where none are given.", lower_bound=2)
_HELD_OUT = flags.DEFINE_integer("held_out", 30, "Of each, those that are held out.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 16, "Optimizer steps of each run.", lower_bound=1)

_CHARACTERS = 800  # of a held-out text


def main(_: Sequence[str]) -> None:
    """Makes the texts, trains what is missing, and shows the table."""
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    new = texts_of(_DOMAIN.value) if _DOMAIN.value else titles(_TEXTS.value, SEED)
    old = texts_of(_GENERAL.value) if _GENERAL.value else modules(_TEXTS.value, SEED)
    write_texts(out, new, old, _HELD_OUT.value, _CHARACTERS)
    changes = {"duration": f"{_STEPS.value} steps", "precision.matmul": common_flags.MATMUL.value}
    console = Console()
    results = experiment(out, _MODEL.value, changes, console)
    show(out, [table_of(results)], None, console, common_flags.INTO.value)


if __name__ == "__main__":
    commands.run(main)
