"""What all matplotlib figures share: fonts and widths for print, axes, captions, curves, and saving."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .captions import wrapped
from .charts import Band, Bars, Chart, Curve, Level
from .levels import asinh_ticks
from .style import COLOURS, ONE_COLUMN, TWO_COLUMNS

_RC: dict[Any, Any] = {
    "figure.dpi": 120,  # in notebooks, where type is then as large as the text around
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "figure.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    "grid.color": "0.85",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    **dict.fromkeys(("pdf.fonttype", "ps.fonttype"), 42),
}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 1.5)), (0, (4, 1, 1, 1, 1, 1)))
_DENSITY, _CAPTION = 19, {"fontsize": 7, "color": "0.4"}  # characters per inch
_ZERO: dict[str, Any] = {"color": "0.7", "linewidth": 0.6, "zorder": 0.6}
_own: WeakSet[Figure] = WeakSet()  # figures that are not the caller's, which captions may make higher
_MARKERS = ("o", "s", "D", "^", "X", "P")
# The backend comes with the first figure, and in a notebook turns interactive mode on. Inside of rc_context that would
# be undone at its end, and no later figure would show: so it comes now.
plt.draw_if_interactive()


def style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib figures have the look for print."""
    return plt.rc_context(_RC)


def new_axes(height: float, *, width: float = ONE_COLUMN, box_aspect: float | None = None) -> Axes:
    """Return the axes of a new figure."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    _own.add(figure)
    return figure.add_subplot(box_aspect=box_aspect)


def figure_of(ax: Axes) -> Figure:
    """Return the whole figure that axes stand in, also where they are in a part of it."""
    figure: Figure = ax.figure.figure  # type: ignore[assignment]
    return figure


def label_axes(ax: Axes, x: str, y: str) -> None:
    """Label the axes, unless they have labels."""
    ax.set_xlabel(ax.get_xlabel() or x)
    ax.set_ylabel(ax.get_ylabel() or y)


def entitle(ax: Axes, title: str | None, *phrases: str) -> None:
    """Set the title, and say below the axes what was measured, unless they have a title already."""
    if ax.get_title():
        return
    ax.set_title(title or "")
    if (figure := figure_of(ax)) in _own:
        caption_below(figure, *phrases)
        return
    width = max(40, round(_DENSITY * figure.get_figwidth() * ax.get_position().width))
    text = wrapped(" · ".join(filter(None, phrases)), width)
    below: Any = ("axes fraction", ax if ax.name == "3d" else ax.xaxis.label)
    style: dict[str, Any] = _CAPTION | {"ha": "center", "va": "top", "annotation_clip": False}
    ax.annotate(text, (0.5, 0), (0, -4), xycoords=below, textcoords="offset points", **style)


def caption_below(figure: Figure, *phrases: str) -> None:
    """Say below all axes of a figure what was measured, in a strip that is added to it, or the axes would shrink."""
    text = wrapped(" · ".join(filter(None, phrases)), round(_DENSITY * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.125 * (1 + text.count("\n")))
    figure.supxlabel(text, **_CAPTION)


def draw(chart: Chart, ax: Axes | None = None, title: str | None = None) -> Figure:
    """Draw a chart; return its figure.

    Args:
        chart: what to draw.
        ax: axes to draw into, new ones by default; labels that they have stay.
        title: stands above what was measured.
    """
    named = (0.8 + 0.2 * len(chart.x.names), 1.4 * ONE_COLUMN) if chart.rows else (2.4, TWO_COLUMNS)
    height, width = named if chart.x.names else (2.3, ONE_COLUMN)
    with style():
        ax = ax or new_axes(height, width=width)
        add_chart(ax, chart)
        entitle(ax, title, chart.summary, *chart.notes)
        if chart.empty:
            say_empty(ax, chart.empty)
            ax.set(xticks=[], yticks=[])
    return figure_of(ax)


def add_chart(ax: Axes, chart: Chart) -> None:
    """Draw the parts, the axes and the legend of a chart into axes."""
    x, y, rows = chart.x, chart.y, chart.rows
    if x.zero:
        ax.axvline(0, **_ZERO)
        ax.locator_params(axis="x", nbins=5)
    if y.zero and not y.log:
        (ax.axvline if rows else ax.axhline)(0, **_ZERO)
    for axis, sideways in ((x, not rows), (y, rows)):
        if axis.log:
            (ax.set_xscale if sideways else ax.set_yscale)("log")
    if x.asinh:
        ax.set_xscale("asinh", linear_width=x.asinh)
    if x.ends != (None, None):
        ax.set_xlim(*x.ends)
    for part in chart.parts:
        _ADD[type(part)](ax, part, rows)
    if x.asinh:
        ticks = asinh_ticks(x.asinh, *ax.get_xlim())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if x.whole:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if y.ends != (None, None):
        ax.set_ylim(*y.ends)
    _name(ax, x.names, rows)
    label_axes(ax, *((y.title, "") if rows else (x.title, y.title)))
    if isinstance(chart.legend, str):
        ax.legend(title=chart.legend, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif chart.legend and ax.get_legend_handles_labels()[0]:
        bars = any(isinstance(part, Curve) and part.errors is not None for part in chart.parts)
        ax.legend(framealpha=0.85 * bars, edgecolor="none")  # error bars may pass behind


def _name(ax: Axes, names: Sequence[str], rows: bool) -> None:
    """Write the names of rows, or turned ones of bars."""
    if rows:
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    elif names:
        ax.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.7, len(names) - 0.3)
        ax.margins(y=0.12)
        ax.grid(axis="y")
        ax.set_axisbelow(True)


def _curve(ax: Axes, curve: Curve, rows: bool) -> None:
    """Draw a curve; with a centre, that has a larger mark, and about eight more points, or those between two gaps."""
    if curve.floor is not None:
        ax.vlines(curve.x, curve.floor, curve.y, color=curve.colour, linewidth=1)
    look = curve.look or 0
    dash = "none" if not curve.joined else "--" if curve.dashed else _DASHES[look % len(_DASHES)]
    mark = _MARKERS[look % len(_MARKERS)] if curve.look is not None else "" if curve.joined else "."
    style: Any = {"color": curve.colour, "marker": mark}
    more: Any = {"linestyle": dash, "label": curve.name or None}
    if curve.hollow:
        more["markerfacecolor"] = "white"
    points = (curve.y, curve.x) if rows else (curve.x, curve.y)
    if curve.errors is not None:
        bars: Any = {"xerr" if rows else "yerr": curve.errors, "capsize": 2, "elinewidth": 0.8}
        ax.errorbar(*points, **bars | style | more)
        return
    if curve.centre is not None:
        missing = np.isnan(np.pad(curve.y, 1, constant_values=np.nan))
        every = -(-len(curve.y) // 8)
        marked = (np.arange(len(curve.y)) % every == look * every // 6 % every) | (missing[:-2] & missing[2:])
        more["markevery"] = list(np.flatnonzero(marked))
    ax.plot(*points, **style, **more)
    if curve.centre is not None:
        centre = curve.x[curve.centre], curve.y[curve.centre]
        ax.plot(*centre, markersize=6, markeredgecolor="white", linestyle="none", **style)


def _band(ax: Axes, band: Band, _: bool) -> None:
    area: dict[str, Any] = {"color": band.colour, "alpha": band.opacity, "linewidth": 0, "label": band.name}
    ax.fill_between(band.x, band.low, band.high, **area)


def _level(ax: Axes, level: Level, rows: bool) -> None:
    dash: Any = {"linestyle": _DASHES[1]} if level.dash == "dash" else {"linestyle": ":", "linewidth": 0.6}
    (ax.axvline if rows else ax.axhline)(level.y, color=level.colour, label=level.name, **dash)


def _bars(ax: Axes, bars: Bars, _: bool) -> None:
    """Draw bars, their texts above them."""
    heights, errors = np.where(np.isfinite(bars.y), bars.y, np.nan), np.nan_to_num(bars.errors)
    whiskers = {"elinewidth": 0.7, "capsize": 1.5, "ecolor": "0.25"}
    yerr = errors if errors.any() else None
    ax.bar(bars.x, heights, 0.8, color=bars.colour, label=bars.name, yerr=yerr, error_kw=whiskers)
    above: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 6}
    for place, height, error, text in zip(bars.x, heights, errors, bars.texts, strict=True):
        if text and np.isfinite(height):
            ax.annotate(text.replace("W", "").replace("A", "/"), (place, max(height, 0) + error), **above)


_ADD: dict[type, Callable[..., None]] = {Curve: _curve, Band: _band, Level: _level, Bars: _bars}


def say_empty(ax: Any, value: str) -> None:
    """Write into the axes that there is no finite value."""
    where = {"transform": ax.transAxes, "horizontalalignment": "center"}
    (ax.text2D if hasattr(ax, "text2D") else ax.text)(0.5, 0.6, f"no finite {value}", **where)


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a PDF with embedded fonts and a PNG of 300 dpi beside it, without timestamps; return both paths."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".pdf", ".png") else path
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [stem.with_name(stem.name + suffix) for suffix in (".pdf", ".png")]
    with style():
        figure.savefig(written[0], metadata={"CreationDate": None})
        figure.savefig(written[1], dpi=300)
    return written


def png(figure: Figure, cut: bool = True) -> bytes:
    """Return a figure as PNG, cut to what is drawn if asked, and close it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight" if cut else None, metadata={"Software": None})
    plt.close(figure)
    return content.getvalue()


def thumbnail(draw: Callable[[Axes], Any]) -> bytes:
    """Return a small PNG of what a function draws into axes, without labels; no figure of the caller's is touched."""
    figure = Figure(figsize=(2, 1.5), dpi=100, layout="constrained")
    ax = figure.add_subplot()
    draw(ax)
    ax.set(title="", xlabel="", ylabel="", xticks=[], yticks=[])
    ax.minorticks_off()
    for text in list(ax.texts):
        text.remove()
    if (legend := ax.get_legend()) is not None:
        legend.remove()
    return png(figure, cut=False)
