"""Histograms as inline SVG: no script, no library, and readable in dark and light."""

import html

import numpy as np

_WIDTH, _HEIGHT, _BOTTOM, _TOP, _LEFT = 560, 170, 22, 8, 44
_BARS = 32
_SKEWED = 8  # the largest value is more than so many medians: bars of equal ratio, not equal width


def edges_of(sizes: np.ndarray, bars: int = _BARS) -> np.ndarray:
    """Whole-numbered edges of the bars; bar i counts sizes in [edges[i], edges[i + 1])."""
    low, high = int(sizes.min()), int(sizes.max()) + 1
    if high - low <= bars:
        return np.arange(low, high + 1)
    if high > _SKEWED * max(float(np.median(sizes)), 1):
        return np.unique([low, *np.geomspace(max(low, 1), high, bars + 1).round().astype(int)])
    return np.unique(np.linspace(low, high, bars + 1).round().astype(int))


def histogram_svg(sizes: np.ndarray, what: str) -> str:
    """An SVG of how many examples have which size.

    Args:
        sizes: one whole number an example.
        what: its unit, "tokens".
    """
    if not len(sizes):
        return ""
    edges = edges_of(sizes)
    counts, _ = np.histogram(sizes, edges)
    highest = int(counts.max())
    wide = (_WIDTH - _LEFT) / len(counts)
    tall = _HEIGHT - _BOTTOM - _TOP
    parts = [
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Histogram: examples by {html.escape(what)}">'
    ]
    for value in (highest, highest // 2, 0):
        y = _TOP + tall * (1 - value / highest)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,}</text>')
    for number, count in enumerate(counts.tolist()):
        x, bar = _LEFT + number * wide, tall * count / highest
        first, last = int(edges[number]), int(edges[number + 1]) - 1
        between = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        parts.append(
            f"<g><title>{count:,} examples of {between} {html.escape(what)}</title>"
            f'<rect class="hover" x="{x:.1f}" y="{_TOP}" width="{wide:.1f}" height="{tall}"/>'
            f'<rect class="bar" x="{x + 0.75:.1f}" y="{_TOP + tall - bar:.1f}" width="{max(wide - 1.5, 1):.1f}" '
            f'height="{bar:.1f}"/></g>'
        )
    for number in sorted({0, len(counts) // 4, len(counts) // 2, 3 * len(counts) // 4, len(counts)}):
        anchor = "start" if not number else "end" if number == len(counts) else "middle"
        parts.append(
            f'<text x="{_LEFT + number * wide:.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">'
            f"{int(edges[number]) - (number == len(counts)):,}</text>"
        )
    return "".join([*parts, "</svg>"])
