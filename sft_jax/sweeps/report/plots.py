"""The plots of a sweep's report: learning curves, a metric against what was varied, a grid of two factors, cost."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_jax.evaluation.report.drawing import (
    COLORS,
    GRID,
    IS_BETTER,
    MARKERS,
    PALE,
    Plot,
    figure_with_axes,
    literal,
    make_logarithmic,
    name_in_lines,
    png_of,
    short_names,
    with_file_names,
)
from sft_jax.sweeps.names import short_keys
from sft_jax.sweeps.report.curves import AXES, Curve
from sft_jax.sweeps.settings import exact_text, setting_name

SETTINGS, VARIED, COST = "settings", "varied", "cost"  # sections
COST_NAMES = {
    "tokens": "tokens",
    "supervised_tokens": "supervised tokens",
    "seconds": "seconds of training",
    "peak_memory_bytes": "peak memory of a device, bytes",
    "trained_parameters": "trained parameters",
}
_MOST_LINES = len(COLORS)  # in one plot; of more settings, the best are told apart
_MOST_FACTORS = 8
_MOST_CELLS = 400
_BETTER = {"higher": True, "lower": False, None: None}
_LOGARITHMIC_FROM = 8  # times as large as the smallest

Found = Mapping[str, Any]


def draw_sweep(found: Found, curves: Sequence[Curve], axis: str) -> list[Plot]:
    """All plots for which there is something to draw."""
    told, better = _told_apart(found, [curve.name for curve in curves]), _BETTER[found["better"]]
    plots = [curves_plot(found["metric"], better, curves, axis, told)]
    scored = [setting for setting in found["settings"] if setting["score"] is not None]
    factors = [factor for factor in found["factors"] if len(_levels(scored, factor)) > 1]
    keys, together = short_keys(found["factors"]), _varied_together(scored, factors)
    labels = {
        factor: keys[factor] + (f" (with {', '.join(keys[other] for other in others)})" if others else "")
        for factor, others in together.items()
    }
    for factor, others in list(together.items())[:_MOST_FACTORS]:
        caption = f"{_metric(found)} against {labels[factor]}: mean, interval and seeds"
        figure = _factor_figure(found, scored, (factor, *others), labels[factor], caption)
        plots.append(_plot(f"against {keys[factor]}", VARIED, figure, caption))
    if len(together) == 2:
        caption = f"{_metric(found)} by {' and '.join(labels.values())}: means over seeds"
        plots.append(_plot("grid", VARIED, _grid_figure(found, scored, labels, caption), caption))
    for other in found["also"]:
        caption = f"{_metric(found)} against {other}: means over seeds, and intervals"
        plots.append(_plot(f"beside {other}", VARIED, _beside_figure(found, scored, other, caption), caption))
    for cost, front in found["fronts"].items():
        caption = f"{_metric(found)} against {COST_NAMES[cost]}; the line joins what nothing beats in both"
        plots.append(_plot(f"cost {cost}", COST, _cost_figure(found, scored, cost, front, caption), caption))
    return with_file_names([plot for plot in plots if plot is not None])


def _varied_together(settings: Sequence[Found], factors: Sequence[str]) -> dict[str, list[str]]:
    """Factors, each with those that have a value of their own for each of its values, and so are one with it."""
    found: dict[tuple[int, ...], list[str]] = {}
    for factor in factors:
        texts = [exact_text(one["values"][factor]) for one in settings]
        found.setdefault(tuple(map(texts.index, texts)), []).append(factor)
    return {first: others for first, *others in found.values()}


def is_spread(values: Sequence[float]) -> bool:
    """Whether numbers belong on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC_FROM


def _plot(name: str, section: str, figure: Any, caption: str) -> Plot | None:
    return None if figure is None else Plot(name, section, caption, png_of(figure))


def _metric(found: Found) -> str:
    return found["metric"] if found["at"] == "final" else f"{found['metric']} ({found['at']})"


def _label(found: Found) -> str:
    return literal(_metric(found)) + IS_BETTER[_BETTER[found["better"]]]


def _told_apart(found: Found, names: Sequence[str]) -> list[str]:
    """The settings that have a colour of their own: all, or the best of them."""
    if len(names) <= _MOST_LINES:
        return list(names)
    scores = {one["name"]: one["score"]["value"] for one in found["settings"] if one["score"] is not None}
    sign = -1 if found["better"] == "higher" else 1
    return sorted(names, key=lambda name: sign * scores.get(name, math.inf * sign))[:_MOST_LINES]


def curves_plot(
    metric: str,
    better: bool | None,
    curves: Sequence[Curve],
    axis: str,
    told: Sequence[str],
    place: tuple[str, str] = ("curves", SETTINGS),
) -> Plot | None:
    """A line and a band for each setting; None where nothing was measured more than once.

    Args:
        metric: that the curves are of.
        better: True for the higher, False for the lower.
        curves: of all settings.
        axis: of `AXES`.
        told: names of the settings that have a colour, at most as many as there are; others are grey.
        place: name and section of the plot.
    """
    curves = [curve for curve in curves if len(curve.x) > 1]
    if not curves:
        return None
    pale = [curve for curve in curves if curve.name not in told]
    caption = _curves_caption(metric, curves, axis, len(pale))
    figure, axes = figure_with_axes(4.6, caption)
    for curve in pale:
        axes.plot(curve.x, curve.mean, color=PALE, linewidth=0.7, alpha=0.5)
    for number, curve in enumerate(sorted((c for c in curves if c.name in told), key=lambda c: told.index(c.name))):
        color = COLORS[number % len(COLORS)]
        marker = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4} if len(curve.x) <= 30 else {}
        axes.plot(curve.x, curve.mean, color=color, linewidth=1.8, label=name_in_lines(curve.name), **marker)
        if curve.seeds > 1:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
    axes.set_ylabel(literal(metric) + IS_BETTER[better])
    if is_spread(np.concatenate([curve.mean for curve in curves]).tolist()):
        axes.set_yscale("log")
    axes.set_xlabel(AXES[axis])
    if axis != "seconds":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(**GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return Plot(*place, caption, png_of(figure))


def _curves_caption(metric: str, curves: Sequence[Curve], axis: str, pale: int) -> str:
    band = ", mean and range of the seeds" if max(curve.seeds for curve in curves) > 1 else ""
    return f"{metric} against {AXES[axis]}{band}" + (f"; in grey the other {pale} settings" if pale else "")


def _levels(settings: Sequence[Found], factor: str) -> list[Any]:
    """The values of a factor: numbers in order, others as they come."""
    values = {exact_text(one["values"][factor]): one["values"][factor] for one in settings}
    return sorted(values.values()) if _are_numbers(values.values()) else list(values.values())


def _are_numbers(values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _factor_figure(found: Found, settings: Sequence[Found], together: Sequence[str], label: str, title: str) -> Any:
    """The metric against a factor, the first of those that vary together; a series for each combination of the others.

    Numbers are joined by a line.
    """
    factor = together[0]
    levels = _levels(settings, factor)
    numeric = _are_numbers(levels)
    place = (lambda value: float(value)) if numeric else lambda value: levels.index(value)
    lines: dict[str, list[Found]] = {}
    for one in settings:
        others = {name: value for name, value in one["values"].items() if name not in together}
        lines.setdefault(setting_name(others) if others else "", []).append(one)
    logarithmic = numeric and is_spread(levels)
    joined = {"linestyle": "-" if numeric else "", "linewidth": 1.2}  # between two names there is nothing
    figure, axes = figure_with_axes(4.2, title)
    few = 1 < len(lines) <= _MOST_LINES
    for number, (name, members) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)] if len(lines) <= _MOST_LINES else PALE
        apart = (number - (len(lines) - 1) / 2) * 0.012 if few else 0.0  # so that intervals do not hide one another
        width = math.log(levels[-1] / levels[0]) if logarithmic else place(levels[-1]) - place(levels[0])
        at = lambda x, apart=apart, width=width: x * math.exp(apart * width) if logarithmic else x + apart * width
        members = sorted(members, key=lambda one: place(one["values"][factor]))
        x = [at(place(one["values"][factor])) for one in members]
        axes.plot(x, [one["score"]["value"] for one in members], color=color, alpha=0.8, **joined)
        for where, one in zip(x, members, strict=True):
            _draw_score(axes, where, one, color, MARKERS[number % len(MARKERS)] if few else "o")
        if few:
            style = {"color": color, "marker": MARKERS[number % len(MARKERS)], **joined}
            axes.plot([], [], label=name_in_lines(name), **style)
    _along(axes, label, levels, numeric=numeric, logarithmic=logarithmic)
    axes.set_ylabel(_label(found))
    axes.grid(**GRID)
    if few:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def _draw_score(axes: Any, x: float, setting: Found, color: str, marker: str) -> None:
    """Mean, interval, and each seed as a dot."""
    score = setting["score"]
    if score["low"] is not None:
        axes.plot([x, x], [score["low"], score["high"]], color=color, linewidth=1.6, alpha=0.45)
    values = [run["value"] for run in setting["runs"] if run["value"] is not None]
    axes.plot([x] * len(values), values, ".", color=color, markersize=4, alpha=0.6)
    axes.plot(x, score["value"], marker, color=color, markersize=6)


def _along(axes: Any, name: str, levels: Sequence[Any], *, numeric: bool, logarithmic: bool) -> None:
    """The axis of a factor, with its values as ticks."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xlabel(literal(name) + (", logarithmic" if logarithmic else ""))
    if logarithmic:
        axes.set_xscale("log")
    if not numeric or len(levels) <= 10:
        at = list(levels) if numeric else range(len(levels))
        texts = short_names([exact_text(level) for level in levels], 24)
        turned = {} if sum(map(len, texts)) < 70 else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(at, texts, **turned)
    if not numeric:
        axes.set_xlim(-0.5, len(levels) - 0.5)


def _grid_figure(found: Found, settings: Sequence[Found], labels: Mapping[str, str], title: str) -> Any:
    """A heat map of two factors, each with its label; None where it would have too many cells."""
    factors = list(labels)
    rows, columns = (_levels(settings, factor) for factor in factors)
    if len(rows) * len(columns) > _MOST_CELLS:
        return None
    table = np.full((len(rows), len(columns)), np.nan)
    for one in settings:
        row, column = (one["values"][factor] for factor in factors)
        table[rows.index(row), columns.index(column)] = one["score"]["value"]
    figure, axes = figure_with_axes(min(1.6 + 0.5 * len(rows), 9.0), title)
    image = axes.imshow(table, cmap="viridis_r" if found["better"] == "lower" else "viridis", aspect="auto")
    figure.colorbar(image, ax=axes)
    for setter, levels, factor in ((axes.set_yticks, rows, factors[0]), (axes.set_xticks, columns, factors[1])):
        setter(range(len(levels)), short_names([exact_text(level) for level in levels], 14))
        (axes.set_ylabel if levels is rows else axes.set_xlabel)(literal(labels[factor]))
    axes.spines[:].set_visible(False)
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    for row, column in itertools.product(range(len(rows)), range(len(columns))):
        value = table[row, column]
        if np.isfinite(value) and len(columns) <= 12:
            dark = (value > middle) == (found["better"] == "lower")
            axes.text(column, row, f"{value:.4g}", ha="center", va="center", color="white" if dark else "black", size=9)
    return figure


def _beside_figure(found: Found, settings: Sequence[Found], other: str, title: str) -> Any:
    """A point for each setting that has both, with both intervals; None where there are fewer than two."""
    there = [one for one in settings if one["also"][other] is not None]
    if len(there) < 2:
        return None
    figure, axes = figure_with_axes(4.4, title)
    told = _told_apart(found, [one["name"] for one in there])
    for one in there:
        x, y, number = one["also"][other], one["score"], told.index(one["name"]) if one["name"] in told else None
        color = PALE if number is None else COLORS[number % len(COLORS)]
        marker = "o" if number is None else MARKERS[number % len(MARKERS)]
        for score, line in ((x, lambda at, y=y: (at, [y["value"]] * 2)), (y, lambda at, x=x: ([x["value"]] * 2, at))):
            if score["low"] is not None:
                axes.plot(*line([score["low"], score["high"]]), color=color, linewidth=1.2, alpha=0.4)
        label = {} if number is None else {"label": name_in_lines(one["name"])}
        axes.plot(x["value"], y["value"], marker, color=color, markersize=7, linestyle="", **label)
    axes.set_xlabel(literal(other))
    axes.set_ylabel(_label(found))
    axes.grid(**GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def _cost_figure(found: Found, settings: Sequence[Found], cost: str, front: Sequence[str], title: str) -> Any:
    """A point for each setting, and the front as a line."""
    there = [one for one in settings if cost in one["costs"]]
    figure, axes = figure_with_axes(4.4, title)
    told = _told_apart(found, front)
    ordered = sorted((one for one in there if one["name"] in front), key=lambda one: one["costs"][cost])
    axes.plot(
        [one["costs"][cost] for one in ordered],
        [one["score"]["value"] for one in ordered],
        color=PALE,
        linewidth=1.2,
        drawstyle="steps-post",
    )
    for one in there:
        if one["name"] not in told:
            axes.plot(one["costs"][cost], one["score"]["value"], "o", color=PALE, markersize=5, alpha=0.7)
    for number, one in enumerate(one for one in ordered if one["name"] in told):
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 8}
        axes.plot(one["costs"][cost], one["score"]["value"], linestyle="", label=name_in_lines(one["name"]), **style)
    axes.set_xlabel(COST_NAMES[cost])
    costs = [one["costs"][cost] for one in there]
    if is_spread(costs):
        make_logarithmic(axes, costs)
    axes.set_ylabel(_label(found))
    axes.grid(**GRID)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure
