"""Puts the report of a sweep into a text that somebody wrote: what stands between two marks is replaced.

So that the figures of a README are always those of runs, and none is copied by hand.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_jax.evaluation.report.drawing import Plot
from sft_jax.evaluation.report.markdown import image_line, section_lines
from sft_jax.runs.workdir import write_whole
from sft_jax.sweeps.report.plots import VARIED
from sft_jax.sweeps.report.sections import sections_of

Marks = tuple[str, str]  # a line before what is replaced, and one behind it

MARKS: Marks = ("<!-- report of the sweep -->", "<!-- end of the report -->")
PLOTS = "plots"  # directory beside the text


class MarksError(ValueError):
    """A text has no place for a report."""


def check_marks(path: str, marks: Marks = MARKS) -> None:
    """Checks that a text has a place for a report.

    Args:
        path: of a Markdown file.
        marks: between which the place is.

    Raises:
        MarksError: there is no such file, or it has not both marks, each once and in their order.
    """
    _parts(Path(path), marks)


def embed(found: Mapping[str, Any], plots: Sequence[Plot], path: str) -> None:
    """Writes facts, verdicts, the table of settings and the plots of what was varied between the marks of a text.

    Plots of an earlier report that it does not have are removed.

    Args:
        found: of the package's form.
        plots: of it.
        path: of a Markdown file; plots are put into `plots/` beside it.

    Raises:
        MarksError: see `check_marks`.
    """
    shown = [plot for plot in plots if plot.section == VARIED]
    lines = [*section_lines(sections_of(found)[0]), *(line for plot in shown for line in (image_line(plot, PLOTS), ""))]
    replace(path, lines, {plot.name: plot.png for plot in shown})


def replace(path: str, lines: Sequence[str], plots: Mapping[str, bytes], marks: Marks = MARKS) -> None:
    """Writes lines between the marks of a text, and plots into `plots/` beside it; removes plots that stood there.

    Args:
        path: of a Markdown file.
        lines: what stands between the marks then.
        plots: PNG by name, of those that `lines` show.
        marks: between which they are written.

    Raises:
        MarksError: see `check_marks`.
    """
    text = Path(path)
    before, old, after = _parts(text, marks)
    for name, png in plots.items():
        (text.parent / PLOTS).mkdir(exist_ok=True)
        write_whole(text.parent / PLOTS / f"{name}.png", png)
    for image in (text.parent / PLOTS).glob("*.png"):
        if f"({PLOTS}/{image.name})" in old and image.stem not in plots:
            image.unlink()
    write_whole(text, before + "\n".join([marks[0], "", *lines, marks[1]]) + after)


def _parts(path: Path, marks: Marks) -> tuple[str, str, str]:
    """What stands before the marks, between them, and behind them."""
    if not path.is_file():
        raise MarksError(f"--into={path}: there is no such file")
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(marks[0])
    between, end, after = rest.partition(marks[1])
    if not (begin and end) or sum(map(text.count, marks)) != 2:
        raise MarksError(
            f"--into={path}: the report replaces what stands between two lines, which have to be there once, in this "
            "order:\n" + "\n".join(marks)
        )
    return before, between, after
