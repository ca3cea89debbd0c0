"""The report's plots, as PNG: scores with intervals, against cost and against the mix of weights; differences; drift.

Drawn by matplotlib without a display. A method has the same colour wherever it stands.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evaluation.figures import metric_name
from sft_jax.evaluation.methods import mixes
from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.report.drawing import (
    COLORS,
    GRID,
    IS_BETTER,
    MARKERS,
    PALE,
    Plot,
    draw_point,
    figure_with_axes,
    literal,
    make_logarithmic,
    name_lines,
    png_of,
    short_name,
    with_file_names,
)
from sft_jax.evaluation.report.verdicts import UNDECIDED, WORSE, called, key_comparisons

_VERDICT_COLORS = {"better": "#228833", WORSE: "#cc3311", UNDECIDED: PALE}
_MOST_LABELS = 12  # names of layers along an axis


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
                "mix": (
                    _mix_figure,
                    f"{name}: {metric_name(task['primary'])} between the base's weights and the tuned ones",
                ),
                "differences": (_difference_figure, f"{name}: differences, 95 % intervals"),
            }
            for part, (draw, caption) in parts.items():
                figure = draw(task, results["methods"], caption)
                if figure is not None:
                    found.append(Plot(f"{kind} {name} {part}", f"{kind} {name}", caption, png_of(figure)))
    if results["drift"]:
        caption = "Relative change of the weights by layer"
        found.append(Plot("drift", "drift", caption, png_of(_drift_figure(results["drift"], caption))))
    return with_file_names(found)


def _scores_figure(task: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Any:
    """A line for each method, the first on top."""
    scores = _primary_scores(task, methods)
    figure, axes = figure_with_axes(0.42 * len(scores) + 1.4, title)
    colors = method_colors(list(methods))
    for place, (name, score) in enumerate(scores.items()):
        draw_point(axes, score, place, colors[name], MARKERS[list(methods).index(name) % len(MARKERS)])
    name_lines(axes, list(scores))
    axes.set_xlabel(_metric_label(task["primary"]))
    return figure


def _cost_figure(task: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Any:
    """A point for each method; None where all cost the same."""
    scores = _primary_scores(task, methods)
    costs = {name: methods[name]["prompt_tokens"] + methods[name]["generated_tokens"] for name in scores}
    if len(set(costs.values())) < 2:
        return None
    figure, axes = figure_with_axes(4.2, title)
    colors = method_colors(list(methods))
    for name, score in scores.items():
        marker = MARKERS[list(methods).index(name) % len(MARKERS)]
        low, high = score.get("low", score["value"]), score.get("high", score["value"])
        axes.plot([costs[name]] * 2, [low, high], color=colors[name], alpha=0.5, linewidth=1.6)
        axes.plot(costs[name], score["value"], marker, color=colors[name], markersize=8, label=short_name(name))
    axes.set_xlabel("prompt and generated tokens a request, mean")
    if min(costs.values()) > 0:
        make_logarithmic(axes, list(costs.values()))
    axes.set_ylabel(_metric_label(task["primary"]))
    axes.grid(**GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _mix_figure(task: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Any:
    """A curve over the mix of base and tuned weights; None without one between them."""
    scores = _primary_scores(task, methods)
    curve = {mix: scores[name] for name, mix in mixes(list(scores)).items()}
    if not any(0 < mix < 1 for mix in curve) or len(curve) < 2:
        return None
    figure, axes = figure_with_axes(4.2, title)
    axes.plot(list(curve), [score["value"] for score in curve.values()], "o-", color=COLORS[0], markersize=6)
    bounds = [(score.get("low", score["value"]), score.get("high", score["value"])) for score in curve.values()]
    axes.fill_between(list(curve), *zip(*bounds, strict=True), color=COLORS[0], alpha=0.15, linewidth=0)
    axes.set_xlabel("share of the update: 0 is the base, 1 the tuned model")
    axes.set_ylabel(_metric_label(task["primary"]))
    axes.grid(**GRID)
    return figure


def _difference_figure(task: Mapping[str, Any], methods: Mapping[str, Any], title: str) -> Any:
    """A forest plot: a line for each comparison; None without any."""
    pairs = key_comparisons(task, methods)
    if not pairs:
        return None
    figure, axes = figure_with_axes(0.42 * len(pairs) + 1.6, title)
    axes.axvline(0, color="#1b1f24", linewidth=1)
    for place, pair in enumerate(pairs):
        draw_point(axes, pair, place, _VERDICT_COLORS.get(called(pair), "#4477aa"), "o")
    name_lines(axes, [f"{literal(pair['second'], 15)} − {literal(pair['first'], 15)}" for pair in pairs])
    axes.set_xlabel(f"difference in {_metric_label(task['primary'])}\ngrey: not shown, by Holm-corrected p-values")
    return figure


def _drift_figure(drift: Sequence[Mapping[str, Any]], title: str) -> Any:
    """A line for each kind of parameter, along the layers in their order."""
    layers = list(dict.fromkeys(entry["layer"] for entry in drift))
    kinds = list(dict.fromkeys(entry["kind"] for entry in drift))
    figure, axes = figure_with_axes(4.2, title)
    for number, kind in enumerate(kinds):
        points = [(layers.index(entry["layer"]), entry["relative"]) for entry in drift if entry["kind"] == kind]
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
        axes.plot(*zip(*points, strict=True), label=short_name(kind), **style)
    every = -(-len(layers) // _MOST_LABELS)
    shown = layers[::every]
    level = max(map(len, shown)) * len(shown) < 80  # letters that fit beside one another
    turned = {} if level else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(0, len(layers), every), [short_name(layer, 20) for layer in shown], **turned)
    axes.set_xlabel("layer")
    axes.set_ylabel("norm of the change / norm of the base")
    axes.set_ylim(bottom=0)
    axes.grid(**GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _primary_scores(task: Mapping[str, Any], methods: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    scores = {name: task["scores"].get(name, {}).get(task["primary"]) for name in methods}
    return {name: score for name, score in scores.items() if score is not None}


def _metric_label(metric: str) -> str:
    return literal(metric_name(metric)) + IS_BETTER[higher_is_better(metric)]
