"""The report's plots, as PNG: scores with intervals, quality against cost, differences, and how far weights moved.

Drawn by matplotlib without a display. A method has the same colour wherever it stands.
"""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evaluation.figures import metric_name
from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.report.tables import visible
from sft_jax.evaluation.report.verdicts import UNDECIDED, WORSE, called, key_comparisons

# Told apart with any kind of colour vision (after Paul Tol's "bright" and "muted" schemes), and dark enough on white.
COLORS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#b8860b", "#0099bb", "#882255", "#555555", "#999933", "#332288")
MARKERS = "osD^vP*X<>"
_DPI = 110
_WIDTH = 8.0  # inches
_PALE = "#8a8f98"
_VERDICT_COLORS = {"better": "#228833", WORSE: "#cc3311", UNDECIDED: _PALE}
_MOST_LABELS = 12  # names of layers along an axis


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


def method_colors(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, by its place; from the eleventh on they come again."""
    return {name: COLORS[number % len(COLORS)] for number, name in enumerate(methods)}


def draw_plots(results: Mapping[str, Any]) -> list[Plot]:
    """All plots for which there is something to draw."""
    found = []
    for kind in ("task", "forgetting"):
        for name, task in ((results["tasks"] if kind == "task" else results["forgetting"]) or {}).items():
            parts = {
                "scores": (_scores_figure, f"{name}: {metric_name(task['primary'])} by method, 95 % intervals"),
                "cost": (_cost_figure, f"{name}: {metric_name(task['primary'])} against tokens a request"),
                "differences": (_difference_figure, f"{name}: differences, 95 % intervals"),
            }
            for part, (draw, caption) in parts.items():
                figure = draw(task, results["methods"], caption)
                if figure is not None:
                    found.append(Plot(f"{kind} {name} {part}", f"{kind} {name}", caption, _png(figure)))
    if results["drift"]:
        caption = "Relative change of the weights by layer"
        found.append(Plot("drift", "drift", caption, _png(_drift_figure(results["drift"], caption))))
    return _with_file_names(found)


def _scores_figure(task: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Any:
    """A line for each method, the first on top."""
    scores = _primary_scores(task, methods)
    figure, axes = _figure(0.42 * len(scores) + 1.4, title)
    colors = method_colors(list(methods))
    for place, (name, score) in enumerate(scores.items()):
        _point(axes, score, place, colors[name], MARKERS[list(methods).index(name) % len(MARKERS)])
    _named_lines(axes, list(scores))
    axes.set_xlabel(_metric_label(task["primary"]))
    return figure


def _cost_figure(task: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Any:
    """A point for each method; None where all cost the same."""
    scores = _primary_scores(task, methods)
    costs = {name: methods[name]["prompt_tokens"] + methods[name]["generated_tokens"] for name in scores}
    if len(set(costs.values())) < 2:
        return None
    figure, axes = _figure(4.2, title)
    colors = method_colors(list(methods))
    for name, score in scores.items():
        marker = MARKERS[list(methods).index(name) % len(MARKERS)]
        low, high = score.get("low", score["value"]), score.get("high", score["value"])
        axes.plot([costs[name]] * 2, [low, high], color=colors[name], alpha=0.5, linewidth=1.6)
        axes.plot(costs[name], score["value"], marker, color=colors[name], markersize=8, label=_name(name))
    axes.set_xlabel("prompt and generated tokens a request, mean")
    if min(costs.values()) > 0:
        _logarithmic(axes, list(costs.values()))
    axes.set_ylabel(_metric_label(task["primary"]))
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _difference_figure(task: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Any:
    """A forest plot: a line for each comparison; None without any."""
    pairs = key_comparisons(task, methods)
    if not pairs:
        return None
    figure, axes = _figure(0.42 * len(pairs) + 1.6, title)
    axes.axvline(0, color="#1b1f24", linewidth=1)
    for place, pair in enumerate(pairs):
        _point(axes, pair, place, _VERDICT_COLORS.get(called(pair), "#4477aa"), "o")
    _named_lines(axes, [f"{_literal(pair['second'], 15)} − {_literal(pair['first'], 15)}" for pair in pairs])
    axes.set_xlabel(f"difference in {_metric_label(task['primary'])}\ngrey: not shown, by Holm-corrected p-values")
    return figure


def _drift_figure(drift: Sequence[Mapping[str, Any]], title: str) -> Any:
    """A line for each kind of parameter, along the layers in their order."""
    layers = list(dict.fromkeys(entry["layer"] for entry in drift))
    kinds = list(dict.fromkeys(entry["kind"] for entry in drift))
    figure, axes = _figure(4.2, title)
    for number, kind in enumerate(kinds):
        points = [(layers.index(entry["layer"]), entry["relative"]) for entry in drift if entry["kind"] == kind]
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        axes.plot(*zip(*points, strict=True), label=_name(kind), **style)
    every = -(-len(layers) // _MOST_LABELS)
    shown = layers[::every]
    level = max(map(len, shown)) * len(shown) < 80  # letters that fit beside one another
    turned = {} if level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(0, len(layers), every), [_name(layer, 20) for layer in shown], **turned)
    axes.set_xlabel("layer")
    axes.set_ylabel("norm of the change / norm of the base")
    axes.set_ylim(bottom=0)
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _primary_scores(task: Mapping[str, Any], methods: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    scores = {name: task["scores"].get(name, {}).get(task["primary"]) for name in methods}
    return {name: score for name, score in scores.items() if score is not None}


def _figure(height: float, title: str) -> tuple[Any, Any]:
    """A figure without pyplot, which would keep it, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(_literal(title), fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _point(axes: Any, score: Mapping[str, float], place: int, color: str, marker: str) -> None:
    if "low" in score:
        axes.plot([score["low"], score["high"]], [place] * 2, color=color, linewidth=2, solid_capstyle="butt")
    axes.plot(score["value"], place, marker, color=color, markersize=7)


def _named_lines(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_name(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5 times powers of ten, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlabel(f"{axes.get_xlabel()}, logarithmic")
    axes.set_xlim(min(values) / 1.3, max(values) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _metric_label(metric: str) -> str:
    better = {True: " (higher is better)", False: " (lower is better)", None: ""}[higher_is_better(metric)]
    return _literal(metric_name(metric)) + better


def _name(text: str, longest: int = 32) -> str:
    """Of a method, a layer or a comparison, short enough for an axis; matplotlib hides what begins with `_`."""
    return f" {_literal(text, longest)}" if text.startswith("_") else _literal(text, longest)


def _literal(text: str, longest: int = 90) -> str:
    """Text that is no formula to matplotlib, cut where it is too long."""
    shown = visible(" ".join(text.split()))
    return (shown if len(shown) <= longest else f"{shown[: longest - 1]}…").replace("$", r"\$")


def _png(figure: Any) -> bytes:
    """The same bytes for the same figure and matplotlib: without the version, which a PNG otherwise carries."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _with_file_names(plots: Sequence[Plot]) -> list[Plot]:
    """Names of ASCII letters, digits, `.`, `-` and `_` alone, each once."""
    taken: set[str] = set()
    named = []
    for plot in plots:
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", plot.name)[:100]
        name = next(name for number in range(len(plots)) if (name := plain + f"_{number}" * (number > 0)) not in taken)
        taken.add(name)
        named.append(dataclasses.replace(plot, name=name))
    return named
