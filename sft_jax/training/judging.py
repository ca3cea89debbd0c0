"""What is wrong with a run's data: the checks on what was read and tokenized, and whether the run is to go on.

Between the data layer, which checks, and the run, which stops. `config.data.fail_on` is the severity that stops it.
"""

import collections
from collections.abc import Callable, Sequence
from pathlib import PurePath

import ml_collections
from etils import epath

from sft_jax.data.checks import SEVERITIES, Finding, Severity, Subject
from sft_jax.data.cleaning import names_of_steps
from sft_jax.data.reading import Reading
from sft_jax.data.records import Record, RecordError, RecordReader, read_prompts
from sft_jax.data.rendering import ConversationRenderer, Masking
from sft_jax.data.tokenized import DroppedRow, Tokenized, TokenizedRows

FAIL_ON = ("error", "warning", "never")


class DataFindingsError(ValueError):
    """Findings so grave that nothing is to be trained on such data. The message says which."""


def read_benchmarks(config: ml_collections.ConfigDict) -> dict[str, list[Record]]:
    """The prompts of `config.data.benchmarks`, by the name of their file, or all of the path where names are equal.

    Raises:
        RecordError: a file that cannot be read, or whose prompts cannot be told from the rest of its rows.
    """
    files = {text: benchmark_file(text) for text in config.data.benchmarks}
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


def files_of_benchmarks(config: ml_collections.ConfigDict) -> list[tuple[str, epath.Path]]:
    """Every file of `config.data.benchmarks`, with what was asked for: its name and the column of its prompts.

    Raises:
        RecordError: one that does not exist.
    """
    return [
        (f"{text}: {name}", file)
        for text in config.data.benchmarks
        for name, file in RecordReader(benchmark_file(text)[0]).files
    ]


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


def subject_of(
    config: ml_collections.ConfigDict,
    renderer: ConversationRenderer,
    records: Sequence[Record],
    rows: TokenizedRows,
    dropped: Sequence[DroppedRow],
    held_out: Sequence[Record],
    benchmarks: dict[str, list[Record]],
    whole: Tokenized | None,
) -> Subject:
    """What the checks look at; see there for `whole`."""
    return Subject(
        records,
        rows,
        dropped,
        renderer.tokenizer,
        config.data.row_tokens,
        renderer.stop_ids,
        held_out,
        benchmarks,
        config.data.masking.end_of_turn,
        config.data.masking.too_long,
        whole,
        "assistant" in Masking(**config.data.masking).roles(),
        renderer.turn_headers,
        config.data.masking.train_on == "last",
        tuple(config.model.new_tokens),
        names_of_steps(config.data.cleaning),
    )


def as_grave(findings: Sequence[Finding], fail_on: str) -> list[Finding]:
    """The findings at least as grave as `fail_on`; none for "never"."""
    if fail_on == "never":
        return []
    least: Callable[[Severity], int] = SEVERITIES.index
    return [finding for finding in findings if least(finding.severity) >= SEVERITIES.index(fail_on)]


def check_findings(findings: Sequence[Finding], fail_on: str) -> None:
    """Stops a run on data with such findings.

    Raises:
        DataFindingsError: there are some; says how to go on.
    """
    grave = as_grave(findings, fail_on)
    if grave:
        lines = [f"  {finding.severity}: {finding.title}. {finding.advice}" for finding in grave]
        raise DataFindingsError(
            "\n".join(
                [
                    "nothing is trained on data with these findings:",
                    *lines,
                    "python -m sft_jax.preview with the same config shows the rows. To train on it all the same: "
                    "--config.data.fail_on=never",
                ]
            )
        )
