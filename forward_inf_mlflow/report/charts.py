"""Charts: how a score is distributed and where the threshold lies, as SVG to put inside a page.

The SVG carries no colours of its own: it names the page's CSS variables, so that one drawing
serves light, dark and print. It carries no text but our own either; nothing in it comes from data
except numbers.
"""

from __future__ import annotations

import re
from io import StringIO

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

_WIDTH, _HEIGHT = 5.6, 2.1  # inches at 100 px: about one pane wide, so text keeps its size
_BINS = 40
_FLOOR = 0.6  # counts; where the log scale begins, so that a bar of one row has a height

# matplotlib knows no CSS variables: draw in marked colours, then name the variables.
_INK, _MUTED, _LINE, _REST, _FLAGGED = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _REST: "var(--rest)",
    _FLAGGED: "var(--flagged)",
}

_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "svg.hashsalt": "forward-inf",  # the same numbers give the same bytes
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.unicode_minus": True,
}


def distribution(
    values: np.ndarray,
    flagged: np.ndarray,
    *,
    threshold: float | None,
    axis: str,
    noun: str,
    description: str,
) -> Markup | None:
    """Draw a histogram with the flagged part in front and the threshold as a labelled line.

    Counts are on a log scale: a handful of flagged rows stays visible beside thousands of others.
    Values far outside the bulk are counted in the outermost bars.

    Args:
        values: ``(n,)`` scores; NaN rows are left out.
        flagged: ``(n,)`` booleans, which rows the verdict names.
        threshold: Where the verdict begins, in the unit of ``values``; None draws no line.
        axis: What the horizontal axis shows and which direction is suspicious.
        noun: What is counted, such as "training rows".
        description: The same in words, for readers who do not see it.

    Returns:
        An ``<svg>`` element, or None where no value is a number.
    """
    known = ~np.isnan(values)
    values, flagged = values[known], flagged[known]
    if not np.isfinite(values).any():
        return None
    if threshold is not None and not np.isfinite(threshold):
        threshold = None
    edges = _edges(values, threshold)
    inside = np.clip(values, edges[0], edges[-1])

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), facecolor="none")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_axes((0.085, 0.22, 0.9, 0.6), facecolor="none", yscale="log")
        top = 1.0
        for rows, colour, name in (
            (inside, _REST, f"all {noun}"),
            (inside[flagged], _FLAGGED, "flagged"),
        ):
            counts, _ = np.histogram(rows, edges)
            top = max(top, float(counts.max()))
            axes.bar(
                edges[:-1], np.maximum(counts - _FLOOR, 0), np.diff(edges), bottom=_FLOOR,
                align="edge", color=colour, label=name, linewidth=0, clip_on=False,
            )  # fmt: skip
        axes.set_ylim(_FLOOR, top * 3)  # headroom for the threshold's label
        axes.set_xlim(edges[0], edges[-1])
        if threshold is not None:
            _mark(axes, threshold, edges)
        _dress(axes, axis)
        buffer = StringIO()
        canvas.print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _inline(buffer.getvalue(), description)


def _edges(values: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return bin edges over the bulk of the values and the threshold, ``(bins + 1,)``."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [1, 99])
    reach = 3 * (high - low)
    low, high = max(low - reach, finite.min()), min(high + reach, finite.max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    pad = (high - low) * 0.02 or max(abs(high), 1.0) * 0.05
    edges = np.linspace(low - pad, high + pad, _BINS + 1)
    if threshold is not None:
        # A bar that straddles the line would show rows on the wrong side of it.
        edges += threshold - edges[np.abs(edges - threshold).argmin()]
    return edges


def _mark(axes: mpl.axes.Axes, threshold: float, edges: np.ndarray) -> None:
    axes.axvline(threshold, color=_INK, linewidth=1.2, linestyle=(0, (4, 2)), clip_on=False)
    left_half = threshold < (edges[0] + edges[-1]) / 2
    axes.annotate(
        f"threshold {threshold:.3g}".replace("-", "\N{MINUS SIGN}"),
        (threshold, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4 if left_half else -4, -2),
        textcoords="offset points",
        ha="left" if left_half else "right",
        va="top",
        color=_INK,
        weight="bold",
    )


def _dress(axes: mpl.axes.Axes, axis: str) -> None:
    """Quiet axes: a base line, faint labels, and the legend above the drawing."""
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.set_xlabel(axis, color=_MUTED)
    axes.tick_params(colors=_MUTED, bottom=False, left=False)
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.02), ncols=2, frameon=False,
        labelcolor=_MUTED, borderpad=0, handlelength=0.9, handleheight=0.8,
    )  # fmt: skip
    axes.text(
        1, 1.06, "counts, log scale", transform=axes.transAxes, ha="right", va="bottom",
        color=_MUTED,
    )  # fmt: skip


def _inline(svg: str, description: str) -> Markup:
    """Make a whole SVG file into an element of the page: no prologue, ids, fonts or fixed size."""
    svg = svg[svg.index("<svg") + len("<svg") :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(id|version|xmlns(:\w+)?|clip-path)="[^"]*"', "", svg)
    svg = re.sub(r'\s(width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font-family: [^;\"]*(; )?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Markup('<svg role="img" aria-label="{}"').format(description) + Markup(svg)  # noqa: S704
