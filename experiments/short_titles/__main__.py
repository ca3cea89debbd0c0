"""Writes the rows of all ablations on short titles into a directory.

    python -m experiments.short_titles
    python -m experiments.short_titles --out=data/titles --rows=400 --held_out=100

A sweep is told of another directory than the default by `--sweep=experiments/data_size/sweep.py:data=data/titles`.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.short_titles.rows import SIZES, all_files, as_lines
from experiments.short_titles.setting import DATA
from sft_jax import commands
from sft_jax.runs.workdir import write_whole

_OUT = flags.DEFINE_string("out", DATA, "Directory for the files, which are replaced.")
_ROWS = flags.DEFINE_integer("rows", 128, "Of each kind, to train on.", lower_bound=SIZES[-1])
_HELD_OUT = flags.DEFINE_integer("held_out", 48, "Of each kind, to be measured.", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 0, "Of the titles.")


def main(_: Sequence[str]) -> None:
    """Writes what the flags ask for."""
    out = Path(_OUT.value)
    files = all_files(_ROWS.value, _HELD_OUT.value, _SEED.value)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        write_whole(out / name, as_lines(rows))
        print(f"{out / name}: {len(rows)} rows")


if __name__ == "__main__":
    commands.run(main)
