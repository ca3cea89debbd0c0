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

BEGIN, END = "<!-- report of the sweep -->", "<!-- end of the report -->"
PLOTS = "plots"  # directory beside the text


class MarksError(ValueError):
    """A text has no place for a report."""


def check_marks(path: str) -> None:
    """Checks that a text has a place for a report.

    Raises:
        MarksError: there is no such file, or it has not both marks, each once and in their order.
    """
    _parts(Path(path))


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
    text = Path(path)
    before, old, after = _parts(text)
    shown = [plot for plot in plots if plot.section == VARIED]
    (text.parent / PLOTS).mkdir(exist_ok=True)
    for plot in shown:
        write_whole(text.parent / PLOTS / f"{plot.name}.png", plot.png)
    for image in (text.parent / PLOTS).glob("*.png"):
        if f"({PLOTS}/{image.name})" in old and image.stem not in {plot.name for plot in shown}:
            image.unlink()
    lines = ["", *section_lines(sections_of(found)[0])]
    for plot in shown:
        lines += [image_line(plot, PLOTS), ""]
    write_whole(text, before + "\n".join([BEGIN, *lines, END]) + after)


def _parts(path: Path) -> tuple[str, str, str]:
    """What stands before the marks, between them, and behind them."""
    if not path.is_file():
        raise MarksError(f"--into={path}: there is no such file")
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    between, end, after = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) + text.count(END) != 2:
        raise MarksError(
            f"--into={path}: the report replaces what stands between two lines, which have to be there once, in this "
            f"order:\n{BEGIN}\n{END}"
        )
    return before, between, after
