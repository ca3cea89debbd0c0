"""Reports a sweep: settings over seeds, differences to a baseline, plots, what failed. Or compares two runs.

    python -m sft_jax.report runs/rank
    python -m sft_jax.report runs/rank --metric=tasks/extraction/field_f1 --baseline=rank=8 --axis=tokens
    python -m sft_jax.report runs/rank --also=held_out/accuracy --into=experiments/learning_rate_and_rank/README.md
    python -m sft_jax.report --compare runs/rank/A runs/rank/B --out=comparison

WORKDIR is the directory of a sweep, finished or not, or any directory of run directories. The report is written to
WORKDIR/report, as HTML, Markdown, CSV and JSON; --into puts its table and plots into a text too.
"""

import re

from absl import flags

from sft_jax import commands

_METRIC = flags.DEFINE_string(
    "metric",
    "",
    "What to report: a metric of metrics.jsonl, or <directory>/<task>/<method>/<metric> of evaluations in the runs. By "
    "default that by which checkpoints are chosen.",
)
_ALSO = flags.DEFINE_list("also", [], "Further metrics, shown beside it in the table, and in a plot against each.")
_AT = flags.DEFINE_string("at", "final", "Where to take it: final, best (the best checkpoint), or 'step N'.")
_BASELINE = flags.DEFINE_list(
    "baseline", [], "field=value,…: the setting to compare the others with. By default the first."
)
_BETTER = flags.DEFINE_enum("better", None, ["higher", "lower"], "For a metric of your own: which is better.")
_AXIS = flags.DEFINE_enum("axis", "steps", ["steps", "tokens", "supervised_tokens", "seconds"], "Of learning curves.")
_OUT = flags.DEFINE_string("out", "", "Where to write the report. By default WORKDIR/report; with --compare, nowhere.")
_INTO = flags.DEFINE_string(
    "into", "", "A Markdown file, in which the table replaces what stands between two marks; plots are put beside it."
)
_COMPARE = flags.DEFINE_bool("compare", False, "Compare two run directories, which are given in the place of WORKDIR.")
_OF_SWEEPS = ("metric", "also", "at", "baseline", "better", "into")


def main(arguments: list[str]) -> None:
    """Runs what the flags ask for."""
    from rich.console import Console

    directories = arguments[1:]
    if len(directories) != (2 if _COMPARE.value else 1):
        wanted = "--compare RUN_A RUN_B" if _COMPARE.value else "WORKDIR"
        raise ValueError(f"expected {wanted}, got {len(directories)} directories: {' '.join(directories) or 'none'}")
    if _COMPARE.value:
        commands.refuse_unread(_OF_SWEEPS, "the report of a sweep")
        _compare(*directories, Console())
    else:
        _report(directories[0], Console())


def _report(workdir: str, console) -> None:
    from etils import epath

    from sft_jax.sweeps.report.analysis import analyse
    from sft_jax.sweeps.report.curves import curves_of
    from sft_jax.sweeps.report.embedding import check_marks, embed
    from sft_jax.sweeps.report.plots import draw_sweep
    from sft_jax.sweeps.report.quantities import LOGGED, USUAL, quantity_of
    from sft_jax.sweeps.report.reading import read_runs
    from sft_jax.sweeps.report.terminal import terminal_report
    from sft_jax.sweeps.report.write import PAGE, write_sweep_report

    at, baseline = _at(_AT.value), _values(_BASELINE.value)
    if _INTO.value:
        check_marks(_INTO.value)
    runs = read_runs(workdir, {_METRIC.value, *_ALSO.value, *LOGGED, *USUAL} - {""})
    better = None if _BETTER.value is None else _BETTER.value == "higher"
    quantity = quantity_of(runs, _METRIC.value, at, better)
    also = [quantity_of(runs, name, at, None, flag="also") for name in _ALSO.value]
    found = analyse(runs, quantity, baseline, also)
    plots = draw_sweep(found, curves_of(runs, quantity, _AXIS.value), _AXIS.value)
    paths = write_sweep_report(found, plots, _OUT.value or epath.Path(workdir) / "report")
    if _INTO.value:
        embed(found, plots, _INTO.value)
    console.print(terminal_report(found))
    console.print(f"Report: {paths[PAGE]}", soft_wrap=True)


def _compare(first: str, second: str, console) -> None:
    from sft_jax.sweeps.report.comparing import compare_runs, terminal_comparison, write_comparison

    found = compare_runs(first, second, _AXIS.value)
    console.print(terminal_comparison(found))
    if _OUT.value:
        console.print(f"Report: {write_comparison(found, _OUT.value)}", soft_wrap=True)


def _at(text: str) -> str | int:
    if text in ("final", "best"):
        return text
    if found := re.fullmatch(r"step (\d+)", text):
        return int(found[1])
    raise ValueError(f"--at={text!r}: expected final, best or 'step N'")


def _values(pairs: list[str]) -> dict[str, str]:
    """`["rank=8", "alpha=16"]` as a dict."""
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ValueError(f"--baseline: {wrong[0]!r} is not field=value")
    return {name.strip(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}


if __name__ == "__main__":
    commands.run(main, positional=True)
