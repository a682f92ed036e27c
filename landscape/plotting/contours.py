"""Surfaces as maps: contours over colours, one panel or more of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from .captions import hover
from .levels import Levels
from .style import HIGHLIGHT, numbered
from .values import SurfaceLike


@dataclass(frozen=True)
class Panel:
    """One surface as plotly draws it: its heights, the range of heights and colours, chosen contours, the colours."""

    surface: SurfaceLike
    heights: np.ndarray
    low: float
    high: float
    lines: Sequence[float] | None
    colours: str

    @property
    def height(self) -> float:
        """Of the range."""
        return self.high - self.low

    @property
    def floor(self) -> float:
        """Below the lowest point, so that the contours on it are seen."""
        return self.low - 0.3 * self.height

    @property
    def steps(self) -> dict[str, float]:
        """Contours at even distances."""
        step = self.height / 12
        return {"start": self.low + step / 2, "end": self.high, "size": step}

    @property
    def grid(self) -> dict[str, Any]:
        """Points and heights, which plotly has x along the columns of."""
        x, y = self.surface.alphas.numpy(), self.surface.betas.numpy()
        return {"x": x, "y": y, "z": self.heights.T, "coloraxis": self.colours, "connectgaps": False}


def add_map(figure: go.Figure, panel: Panel, index: int, titles: Sequence[str], **cell: int) -> None:
    """Draw a map with its contours and its centre, and title its axes, which end where the surface does."""
    surface, silent, (template, data) = panel.surface, {"hoverinfo": "skip", "showlegend": False}, hover(panel.surface)
    levels = panel.steps if panel.lines is None else {"coloring": "heatmap"}
    figure.add_contour(
        **panel.grid,
        customdata=data.transpose(1, 0, 2),
        hovertemplate=template,
        autocontour=False,
        contours=levels | {"showlines": panel.lines is None},
        line={"width": 0.7, "color": "rgba(255, 255, 255, 0.6)"},
        **cell,
    )
    if panel.lines is not None:
        x, y, _ = level_lines(surface, panel.heights, panel.lines)
        line = {"width": 0.9, "color": "rgba(255, 255, 255, 0.8)"}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, **silent, **cell)
    there = [0.0] if surface.centre else []
    marker = {"symbol": "cross-thin", "size": 11, "line": {"color": HIGHLIGHT, "width": 2.5}}
    figure.add_scatter(x=there, y=there, mode="markers", marker=marker, **silent, **cell)
    plain = {"showgrid": False, "zeroline": False, "nticks": 6, "ticks": "outside", "title_standoff": 6}
    for axis, steps, title in zip(("xaxis", "yaxis"), (surface.alphas, surface.betas), titles, strict=True):
        name = numbered(axis, index)
        position = {key: figure.layout[name][key] for key in ("domain", "anchor")}
        ends = {"range": [float(steps[0]), float(steps[-1])], "title_text": title or None}
        figure.layout[name] = plain | position | ends  # update_xaxes takes ten times as long
    figure.layout.margin.l, figure.layout.margin.b = 60, 50


def level_lines(surface: SurfaceLike, heights: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Return x, y and height along the contours at some levels, (3, points), with NaN between two lines."""
    generator = contour_generator(surface.alphas.numpy(), surface.betas.numpy(), np.ma.masked_invalid(heights.T))
    gap = np.full((1, 3), np.nan)
    parts: list[Any] = [np.empty((0, 3))]
    for level in levels:
        for line in generator.lines(level):
            parts += [np.column_stack([np.asarray(line), np.full(len(line), level)]), gap]
    return np.concatenate(parts).T


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
