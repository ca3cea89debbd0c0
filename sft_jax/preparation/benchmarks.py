"""Reads the prompts of benchmarks; training rows that hold one are reported, or removed by a cleaning step."""

import collections
from collections.abc import Sequence
from pathlib import PurePath

from etils import epath

from sft_jax.data.reading import Reading
from sft_jax.data.records import Record, RecordError, RecordReader, read_prompts


def read_benchmarks(asked: Sequence[str]) -> dict[str, list[Record]]:
    """The prompts of `config.data.benchmarks`, by the name of their file, or all of the path where names are equal.

    Raises:
        RecordError: a file that cannot be read, or whose prompts cannot be told from the rest of its rows.
    """
    files = {text: benchmark_file(text) for text in asked}
    names = collections.Counter(PurePath(path).name for path, _ in files.values())
    found = {}
    for text, (path, column) in files.items():
        name = PurePath(path).name
        found[name if names[name] == 1 else text] = _benchmark(path, column)
    return found


def benchmark_file(text: str) -> tuple[str, str]:
    """The path of a benchmark, and the column of its prompts behind a "="; empty where its rows are of a known form."""
    path, _, column = text.rpartition("=")
    return (text, "") if not path or epath.Path(text).exists() else (path, column)


def files_of_benchmarks(asked: Sequence[str]) -> list[tuple[str, epath.Path]]:
    """Every file of `config.data.benchmarks`, with what was asked for: its name and the column of its prompts.

    Raises:
        RecordError: one that does not exist.
    """
    return [(f"{text}: {name}", file) for text in asked for name, file in RecordReader(benchmark_file(text)[0]).files]


def _benchmark(path: str, column: str) -> list[Record]:
    if column:
        return read_prompts(path, Reading(format="table", prompt_template=f"{{{column}}}", flags=""))
    try:
        return read_prompts(path, Reading(flags=""))
    except RecordError as error:
        raise RecordError(
            f"{str(error).splitlines()[0]}\nFor a benchmark name the column of its prompts: "
            f"--config.data.benchmarks=\"('{path}=COLUMN',)\"."
        ) from error
