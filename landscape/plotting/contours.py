"""Surfaces as maps: contours over colours, one panel or more of a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from .captions import axis_label, hover, short
from .levels import Levels
from .style import HIGHLIGHT, at, columns
from .values import SurfaceLike


def add_maps(
    figure: go.Figure,
    surfaces: Mapping[str, SurfaceLike],
    heights: Mapping[str, np.ndarray],
    ends: tuple[float, float],
    levels: Sequence[float] | None,
) -> None:
    """Draw a map into each panel, its levels (in units of the heights) shared by all, and label the outer axes."""
    for index, (name, surface) in enumerate(surfaces.items()):
        cell = at(index, len(surfaces))
        figure.add_trace(_map(surface, heights[name], *ends, lines=levels is None), **cell)
        if levels is not None:
            x, y, _ = level_lines(surface, heights[name], levels)
            line = {"width": 0.9, "color": "rgba(255, 255, 255, 0.8)"}
            figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False, **cell)
        there = [0.0] if surface.centre else []
        marker = {"symbol": "cross-thin", "size": 11, "line": {"color": HIGHLIGHT, "width": 2.5}}
        figure.add_scatter(x=there, y=there, mode="markers", marker=marker, hoverinfo="skip", showlegend=False, **cell)
    _set_axes(figure, list(surfaces.values()))


def level_lines(surface: SurfaceLike, heights: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Return x, y and height along the contours at some levels, (3, points), with NaN between two lines."""
    generator = contour_generator(surface.alphas.numpy(), surface.betas.numpy(), np.ma.masked_invalid(heights.T))
    gap = np.full((1, 3), np.nan)
    parts: list[Any] = [np.empty((0, 3))]
    for level in levels:
        for line in generator.lines(level):
            parts += [np.column_stack([np.asarray(line), np.full(len(line), level)]), gap]
    return np.concatenate(parts).T


def _map(surface: SurfaceLike, heights: np.ndarray, low: float, high: float, lines: bool) -> go.Contour:
    (template, data), step = hover(surface), (high - low) / 12
    levels = {"start": low + step / 2, "end": high, "size": step} if lines else {"coloring": "heatmap"}
    return go.Contour(
        x=surface.alphas.numpy(),
        y=surface.betas.numpy(),
        z=heights.T,  # plotly has x along columns
        coloraxis="coloraxis",
        autocontour=False,
        contours=levels | {"showlines": lines},
        line={"width": 0.7, "color": "rgba(255, 255, 255, 0.6)"},
        customdata=data.transpose(1, 0, 2),
        hovertemplate=template,
        connectgaps=False,
    )


def _set_axes(figure: go.Figure, surfaces: Sequence[SurfaceLike]) -> None:
    """Label the outer axes, and let each end where its surface does."""
    plain = {"showgrid": False, "zeroline": False, "nticks": 6, "ticks": "outside", "title_standoff": 6}
    wide = columns(len(surfaces))
    alike = [len({short(surface, axis) for surface in surfaces}) == 1 for axis in (1, 2)]
    for index, surface in enumerate(surfaces):
        outer = (index >= len(surfaces) - wide, index % wide == 0)
        texts = [(axis_label([surface], n) if len(surfaces) == 1 else short(surface, n)) for n in (1, 2)]
        for axis, (letter, steps) in enumerate((("x", surface.alphas), ("y", surface.betas))):
            name = f"{letter}axis{index + 1 if index else ''}"
            position = {key: figure.layout[name][key] for key in ("domain", "anchor")}
            title = texts[axis] if outer[axis] or not alike[axis] else None
            ends = {"range": [float(steps[0]), float(steps[-1])], "title_text": title}
            figure.layout[name] = plain | position | ends  # update_xaxes takes ten times as long
    figure.layout.margin.l, figure.layout.margin.b = 60, 50


def draw_map(ax: Axes, surface: SurfaceLike, values: np.ndarray, levels: Levels) -> None:
    """Draw labelled contours over pale colours into axes; gaps stay white."""
    alphas, betas = surface.alphas.numpy(), surface.betas.numpy()
    shown = np.ma.masked_invalid(values.T)  # matplotlib has x along columns
    ax.update_datalim([(alphas[0], betas[0]), (alphas[-1], betas[-1])])  # also where nothing is finite
    ax.margins(0)
    if shown.count():
        colours: Any = levels.steps()
        ax.contourf(alphas, betas, shown, levels.values, norm=colours.norm, cmap=colours.cmap, extend=levels.extend)
    crossed = [level for level in levels.values if shown.count() and shown.min() < level < shown.max()]
    if crossed:  # matplotlib warns of levels that nothing reaches
        drawn = ax.contour(alphas, betas, shown, crossed, colors="white", linewidths=0.6, alpha=0.8)
        _thin_out(ax, ax.clabel(drawn, fmt="%g", fontsize=7, colors="black", inline=False))
    if surface.centre is not None:
        ax.plot(0, 0, "+", color=HIGHLIGHT, markersize=8, markeredgewidth=1.5)


def _thin_out(ax: Axes, labels: Sequence[Text]) -> None:
    """Keep the labels of contours that stand clear of each other and of the centre, the outer ones first."""
    points = ax.transData.transform([text.get_position() for text in labels]) * 72 / ax.figure.dpi
    widths = np.array([4.5 * len(text.get_text()) for text in labels])
    centre = ax.transAxes.transform((0.5, 0.5)) * 72 / ax.figure.dpi
    half = (ax.transAxes.transform((1, 1)) * 72 / ax.figure.dpi) - centre
    kept: list[tuple[np.ndarray, float]] = [(centre, 8.0)]
    for index in np.argsort(-np.abs(points - centre).max(1)):
        apart = [np.abs(points[index] - point) > ((widths[index] + width) / 2 + 2, 10) for point, width in kept]
        inside = (np.abs(points[index] - centre) < half - (widths[index] / 2 + 2, 6)).all()
        if inside and all(one.any() for one in apart):
            kept.append((points[index], widths[index]))
            labels[index].set_path_effects([withStroke(linewidth=1.6, foreground="white")])
        else:
            labels[index].remove()
