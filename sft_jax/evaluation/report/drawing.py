"""How the plots of reports look: figures without a display, colours, axes, names that fit; a plot as a PNG."""

import dataclasses
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evaluation.report.tables import visible

# Told apart with any kind of colour vision (after Paul Tol's "bright" and "muted" schemes), and dark enough on white.
COLORS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#b8860b", "#0099bb", "#882255", "#555555", "#999933", "#332288")
MARKERS = "osD^vP*X<>"
_DPI = 110
_WIDTH = 8.0  # inches
PALE = "#8a8f98"
GRID = {"color": "#e4e6ea", "linewidth": 0.8}
IS_BETTER = {True: " (higher is better)", False: " (lower is better)", None: ""}


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        name: of its file, without an ending.
        section: name of the section where it belongs (`tables.Section.name`).
        caption: what it shows.
        png: the file.
    """

    name: str
    section: str
    caption: str
    png: bytes


def figure_with_axes(height: float, title: str) -> tuple[Any, Any]:
    """A figure without pyplot, which would keep it, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(literal(title), fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_point(axes: Any, score: Mapping[str, float], place: float, color: str, marker: str) -> None:
    """A score with its interval, if it has one, along the line at `place`."""
    if "low" in score:
        axes.plot([score["low"], score["high"]], [place] * 2, color=color, linewidth=2, solid_capstyle="butt")
    axes.plot(score["value"], place, marker, color=color, markersize=7)


def name_lines(axes: Any, names: Sequence[str]) -> None:
    """Names the lines at 0, 1, 2, …, the first on top."""
    axes.set_yticks(range(len(names)), [short_name(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", **GRID)
    axes.set_axisbelow(True)


def make_logarithmic(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 times powers of ten, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlabel(f"{axes.get_xlabel()}, logarithmic")
    axes.set_xlim(min(values) / 1.3, max(values) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def short_name(text: str, longest: int = 32) -> str:
    """Of a method, a layer or a comparison, short enough for an axis; matplotlib hides what begins with `_`."""
    return f" {literal(text, longest)}" if text.startswith("_") else literal(text, longest)


def short_names(texts: Sequence[str], longest: int) -> list[str]:
    """`short_name` of the levels of an axis, without the directory where all of them are in the same one."""
    split = [text.rpartition("/") for text in texts]
    together = len(texts) > 1 and len({directory for directory, _, _ in split}) == 1
    return [short_name(name if together else text, longest) for text, (_, _, name) in zip(texts, split, strict=True)]


def name_in_lines(text: str, width: int = 34) -> str:
    """As `short_name`, for a legend: what tells long names apart may stand at their end."""
    return "\n".join(textwrap.wrap(short_name(text, 4 * width), width))


def literal(text: str, longest: int = 90) -> str:
    """Text that is no formula to matplotlib, cut where it is too long."""
    shown = visible(" ".join(text.split()))
    return (shown if len(shown) <= longest else f"{shown[: longest - 1]}…").replace("$", r"\$")


def png_of(figure: Any) -> bytes:
    """The same bytes for the same figure and matplotlib: without the version, which a PNG otherwise carries."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def with_file_names(plots: Sequence[Plot]) -> list[Plot]:
    """Names of ASCII letters, digits, `.`, `-` and `_` alone, each once."""
    taken: set[str] = set()
    named = []
    for plot in plots:
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", plot.name)[:100]
        name = next(name for number in range(len(plots)) if (name := plain + f"_{number}" * (number > 0)) not in taken)
        taken.add(name)
        named.append(dataclasses.replace(plot, name=name))
    return named
