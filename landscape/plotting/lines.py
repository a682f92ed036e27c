"""Curves along a direction, one for each network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import interactive, paper
from .captions import BAND, axis_label, caption, label, notes
from .pairing import paired
from .style import COLOURS
from .values import LineLike, Scale, band, columns_of


@paired
def plot_lines(
    lines: Mapping[str, LineLike], *, value: str = "loss", scale: Scale = "auto", title: str | None = None
) -> go.Figure:
    """Draw curves into one interactive plot, a colour for each network in the order of the mapping.

    Args:
        lines: name → line.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        scale: ``"linear"``, ``"log"`` (values ≤ 0 are gaps then, as NaN and inf always are) or ``"auto"``: see
            `values.is_log`.
        title: replaces the default one.
    """
    values, log = columns_of(lines, value, scale)
    figure = interactive.empty_figure()
    figure.add_vline(0, line={"color": "#bbbbbb", "width": 1}, layer="below")
    bands = {name: band(line, values[name], value, log) for name, line in lines.items()}
    for index, (name, line) in enumerate(lines.items()):
        figure.add_traces(_traces(index, name, line, values[name]))
        if (edges := bands[name]) is not None:
            style: dict[str, Any] = {"legendgroup": name, "showlegend": False, "name": f"{name} ± 1 standard error"}
            colour = COLOURS[index % len(COLOURS)]
            figure.add_trace(interactive.band(line.alphas.numpy(), edges, colour, 0.18, **style))
    figure.update_xaxes(title=axis_label(lines.values()), zeroline=False, hoverformat=".4g")
    interactive.value_axis(figure, label(value), log, list(values.values()))
    if value == "accuracy":
        figure.update_yaxes(range=[-0.02, 1.02])
    below = notes(lines, values, log)
    if any(edges is not None for edges in bands.values()):
        below.append(BAND)
    interactive.finish(figure, title or f"{label(value)} along a direction", [caption(lines, value), *below])
    figure.update_layout(height=420 + 16 * len(below), showlegend=len(lines) > 1, hovermode="x unified")
    figure.update_layout(legend_tracegroupgap=0)
    interactive.say_if_empty(figure, values, value)
    return figure


def draw_lines(
    lines: Mapping[str, LineLike],
    ax: Axes | None = None,
    *,
    value: str = "loss",
    scale: Scale = "auto",
    title: str | None = None,
) -> Figure:
    """Draw curves for print, a colour, dash and marker for each network; return the figure.

    Args:
        lines: name → line, in the order of the colours.
        ax: axes to draw into, new ones by default; labels that they have stay.
        value, scale: see `plot_lines`.
        title: stands above what was measured.
    """
    values, log = columns_of(lines, value, scale)
    with paper.style():
        ax = ax or paper.new_axes(2.3)
        ax.axvline(0, color="0.8", linewidth=0.6, zorder=0)
        ax.locator_params(axis="x", nbins=5)
        bands = {name: band(line, values[name], value, log) for name, line in lines.items()}
        for index, (name, line) in enumerate(lines.items()):
            _curve(ax, index, name, line, values[name], bands[name])
        if log:
            ax.set_yscale("log")
        if value == "accuracy":
            ax.set_ylim(-0.02, 1.02)
        paper.label_axes(ax, axis_label(lines.values()), label(value))
        if all(np.isnan(array).all() for array in values.values()):
            ax.set(xticks=[], yticks=[])
        if len(lines) > 1:
            ax.legend(frameon=False)
        below = notes(lines, values, log)
        if any(edges is not None for edges in bands.values()):
            below.append(BAND)
        paper.entitle(ax, title, caption(lines, value), *below)
        paper.say_if_empty(ax, list(values.values()), value)
    return paper.figure_of(ax)


def _traces(index: int, name: str, line: LineLike, values: np.ndarray) -> list[go.Scatter]:
    """Return the curve and, as a trace of its own, the marked centre."""
    colour, symbol = COLOURS[index % len(COLOURS)], interactive.SYMBOLS[index % len(interactive.SYMBOLS)]
    alphas, middle = line.alphas.numpy(), [] if line.centre is None else [line.centre]
    curve = go.Scatter(
        x=alphas,
        y=values,
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"symbol": symbol, "size": 6},
        **interactive.hover_data(line, ", "),
        legendgroup=name,
        connectgaps=False,
    )
    marker = {"symbol": symbol, "size": 12, "color": colour, "line": {"color": "white", "width": 1.5}}
    silent = {"showlegend": False, "hoverinfo": "skip", "legendgroup": name}
    return [curve, go.Scatter(x=alphas[middle], y=values[middle], mode="markers", marker=marker, **silent)]


def _curve(ax: Axes, index: int, name: str, line: LineLike, values: np.ndarray, edges: Any) -> None:
    """Draw a curve with about eight markers, one on every point between two gaps, and a larger one at the centre."""
    alphas, style = line.alphas.numpy(), paper.curve_style(index)
    dash = style.pop("linestyle")
    missing = np.isnan(np.pad(values, 1, constant_values=np.nan))
    every = -(-len(values) // 8)
    marked = (np.arange(len(values)) % every == index * every // 6 % every) | (missing[:-2] & missing[2:])
    ax.plot(alphas, values, label=name or None, linestyle=dash, markevery=list(np.flatnonzero(marked)), **style)
    if edges is not None:
        ax.fill_between(alphas, *edges, color=style["color"], alpha=0.18, linewidth=0, zorder=1)
    if line.centre is not None:
        centre = [line.centre]
        ax.plot(alphas[centre], values[centre], markersize=6, markeredgecolor="white", linestyle="none", **style)
