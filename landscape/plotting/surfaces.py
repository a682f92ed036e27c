"""Surfaces of one network or several: in 3-D or as contours, all on one scale."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from . import interactive, paper
from .captions import axis_label, caption, hover, label, notes, short
from .contours import Panel, add_map, draw_map, level_lines
from .levels import Levels, check_levels, shared_levels
from .reliefs import draw_relief
from .style import HIGHLIGHT, ONE_COLUMN, TWO_COLUMNS, at, laid_out, numbered
from .values import Kind, Scale, SurfaceLike, check_option, columns_of, is_empty, limits, missing

DRAWN = {"kind": "contour"}  # in print, where nothing turns


@dataclass(frozen=True)
class Surfaces:
    """A panel for each network side by side, all in one range of heights and colours.

    Attributes:
        surfaces: name → surface.
        values: name → what is drawn, NaN where there is a gap.
        value: what it is.
        log: whether heights are log10 of the values.
        kind: ``"3d"`` or ``"contour"``.
        levels: of the contours, where they were chosen.
        apart: whether each panel has a range of its own, in plotly's picture.
    """

    surfaces: Mapping[str, SurfaceLike]
    values: Mapping[str, np.ndarray]
    value: str
    log: bool
    kind: Kind
    levels: list[float] | None
    apart: bool = False

    @property
    def heights(self) -> dict[str, np.ndarray]:
        """In the units of the vertical axis."""
        return {name: np.log10(array) if self.log else array for name, array in self.values.items()}

    def titles(self, alone: bool) -> list[list[str]]:
        """Name both directions of each panel: in a word at the outer ones, in 3-D and where they differ at each."""
        surfaces = list(self.surfaces.values())
        if alone:  # else the caption says the units
            return [[axis_label(surfaces, number) for number in (1, 2)]]
        _, wide = laid_out(len(surfaces))
        names = [[short(surface, number) for number in (1, 2)] for surface in surfaces]
        differ = [self.kind == "3d" or len({*both}) > 1 for both in zip(*names, strict=True)]
        titles = []
        for index, (x, y) in enumerate(names):
            below, left = index + wide >= len(names), index % wide == 0
            titles.append([x * (below or differ[0]), y * (left or differ[1])])
        return titles


def describe_surfaces(
    surfaces: Mapping[str, SurfaceLike],
    *,
    value: str = "loss",
    scale: Scale = "auto",
    kind: Kind = "3d",
    levels: Sequence[float] | None = None,
) -> Surfaces:
    """Describe a panel for each network side by side, all in one range of heights and colours.

    In print a single surface without a name, or with ``ax``, is a map of its own; in all others the names are titles.

    Args:
        surfaces: name → surface.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        scale: ``"linear"``, ``"log"`` (heights are log10 of the value; values ≤ 0 are gaps then, as NaN and inf
            always are) or ``"auto"``: see `values.is_log`.
        kind: ``"3d"`` or ``"contour"``.
        levels: of the contours, increasing; default twelve at even distances of the heights, in print round numbers
            around all panels, at distances that the scale decides.
    """
    check_option("kind", kind, Kind)
    values, log = columns_of(surfaces, value, scale)
    return Surfaces(surfaces, values, value, log, kind, None if levels is None else check_levels(levels, log))


def plot(given: Surfaces, title: str | None = None) -> go.Figure:
    """Draw surfaces with plotly; a title replaces the default one."""
    deep, count, titles = given.kind == "3d", len(given.surfaces), given.titles(len(given.surfaces) == 1)
    figure = _empty_panels(missing(given.surfaces, given.values, given.log), given.kind)
    default = f"{label(given.value)} {'surface' if deep else 'contours'}" + " (log scale)" * given.log
    interactive.finish(figure, title or default, [caption(given.surfaces, given.value)])
    for index, name in enumerate(given.surfaces):
        where, scene = at(index, count), numbered("scene", index)
        panel = _panel(given, name, numbered("coloraxis", index * given.apart))
        ticks = interactive.height_ticks(panel.low, panel.high, given.log, given.levels)
        colours = interactive.colour_axis(given.value, panel.low, panel.high, ticks)
        figure.layout[panel.colours] = colours | {"showscale": count == 1 or not given.apart}
        if deep:
            _add_sheet(figure, panel, **where)
            axes = _scene(given, panel, titles[index], ticks)
            figure.layout[scene] = axes | {"domain": figure.layout[scene].domain}  # update_scenes is ten times slower
        else:
            add_map(figure, panel, index, titles[index], **where)
    if is_empty(given.values.values()):
        interactive.say_empty(figure, given.value)
    return figure


def draw(given: Surfaces, ax: Axes | None = None, title: str | None = None) -> Figure:
    """Draw surfaces for print: a panel for each network at the same levels with one colour bar; return the figure.

    Args:
        given: the surfaces; one alone, without a name, is a map of its own whose contours are labelled.
        ax: axes to draw one surface into (3-D axes for ``kind="3d"``); labels that they have stay.
        title: stands above what was measured.

    Raises:
        ValueError: ``ax`` for several surfaces, or flat axes for ``kind="3d"``.
    """
    surfaces, deep = given.surfaces, given.kind == "3d"
    if ax is not None and len(surfaces) > 1:
        raise ValueError(f"ax must be None for several surfaces, which get panels of their own; got {len(surfaces)}")
    if ax is not None and deep != (ax.name == "3d"):
        kinds = f"got {ax.name} for {given.kind!r}"
        raise ValueError(f'ax must have projection="3d" for kind="3d" and not otherwise, {kinds}')
    levels = shared_levels(list(given.values.values()), given.value, given.log, given.levels)
    alone = ax is not None or (not deep and list(surfaces) == [""])
    with paper.style():
        axes = [ax or paper.new_axes(3.0, box_aspect=1)] if alone else _panels(list(surfaces), given.kind)
        for panel, surface, array in zip(axes, surfaces.values(), given.values.values(), strict=True):
            if deep:
                _relief(panel, surface, array, levels, alone)  # else the colour bar tells heights
            else:
                draw_map(panel, surface, array, levels)
            if is_empty([array]):
                paper.say_empty(panel, given.value)
        below = [caption(surfaces, given.value), *notes(surfaces, given.values, given.log)]
        figure = paper.figure_of(axes[0])
        if alone:
            paper.label_axes(axes[0], *given.titles(True)[0])
            paper.entitle(axes[0], title, *below)
            return figure
        for panel, (x, y) in zip(axes, given.titles(False), strict=True):
            pad: Any = {"labelpad": -4} if deep else {}
            panel.set_xlabel(x, **pad)
            panel.set_ylabel(y, **pad)
        if title:
            figure.suptitle(title, fontsize=8)
        paper.caption_below(figure, *below)
        _colour_bar(axes, levels, given.value, given.kind)
        if deep:
            _place_tick_labels(figure)
    return figure


def _panel(given: Surfaces, name: str, colours: str) -> Panel:
    """Return a surface in the range of heights that all share, or in its own."""
    heights, lines = given.heights, None
    low, high = limits([heights[name]] if given.apart else heights.values(), given.value)
    if given.levels is not None:
        lines = [float(np.log10(level)) if given.log else level for level in given.levels]
        low, high = min(low, lines[0]), max(high, lines[-1])
    return Panel(given.surfaces[name], heights[name], low, high, lines, colours)


def _empty_panels(gaps: Mapping[str, str], kind: Kind) -> go.Figure:
    """Return scenes or axes side by side, titled with the networks' names as they are, and what is missing."""
    (rows, wide), deep = laid_out(len(gaps)), kind == "3d"
    cells = [{"type": "scene" if deep else "xy"} if index < len(gaps) else None for index in range(rows * wide)]
    names = {name: f"<b>{html.escape(name, quote=False)}</b>" for name in gaps}
    figure = make_subplots(
        rows,
        wide,
        figure=interactive.empty_figure(),
        specs=[cells[row * wide : (row + 1) * wide] for row in range(rows)],
        subplot_titles=[names[name] + f"<br><sup>{gap}</sup>" * bool(gap) for name, gap in gaps.items()],
        horizontal_spacing=0.01 if deep else 0.06,
        vertical_spacing=0.08 if deep else 0.25 / rows,
    )
    figure.layout.height = 130 + rows * ((460, 370, 260) if deep else (430, 360, 270))[wide - 1]
    return figure


def _add_sheet(figure: go.Figure, panel: Panel, **cell: int) -> None:
    """Draw a sheet into a scene, its contours on the floor, and the centre with its plumb line."""
    surface, heights, silent = panel.surface, panel.heights, {"showlegend": False, "hoverinfo": "skip"}
    there, edge = surface.centre is not None, {"color": "white", "width": 1}
    x, z = [0.0, 0.0] * there, [heights[surface.centre], panel.floor] if there else []
    look = {"line": {"color": HIGHLIGHT, "width": 3}, "marker": {"size": 5, "color": HIGHLIGHT, "line": edge}}
    figure.add_scatter3d(x=x, y=x, z=z, mode="lines+markers", **look, **silent, **cell)
    if is_empty([heights]):  # the browser fails on a sheet without a single point
        return
    shown = {"show": True, "usecolormap": True, "width": 2, "project": {"z": True}, **panel.steps}
    contours = {"z": shown if panel.lines is None else {"show": False}}
    template, data = hover(surface)  # the data are looked up by [x, y], and not as heights are
    figure.add_surface(**panel.grid, customdata=data, hovertemplate=template, contours=contours, **cell)
    if panel.lines is not None:
        x, y, z = level_lines(surface, heights, panel.lines)
        line = {"width": 3, "color": z, "coloraxis": panel.colours}
        above = np.full(len(z), panel.floor + 0.01 * panel.height)  # or the floor would hide parts of them
        figure.add_scatter3d(x=x, y=y, z=above, mode="lines", line=line, **silent, **cell)


def _scene(given: Surfaces, panel: Panel, titles: Sequence[str], ticks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the axes of one scene, and the camera that all share."""
    surfaces, alone = given.surfaces.values(), len(given.surfaces) == 1
    heights = {"range": (panel.floor, panel.high + 0.02 * panel.height), **ticks}
    named = {"title_text": label(given.value) * alone, "showticklabels": alone or given.apart}  # or by the colour bar
    plain = {"title_font_size": 11, "tickfont_size": 11, "showbackground": False, "gridcolor": interactive.GRID_3D}
    away = (1.0, 1.05, 1.1)[laid_out(len(surfaces))[1] - 1]  # narrow panels need room for the labels
    scene: dict[str, Any] = {
        "zaxis": plain | heights | named,
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.8},
        "camera": {"eye": {"x": 1.25 * away, "y": -1.25 * away, "z": 1.05 * away}, "center": {"z": -0.22}},
    }
    steps = [each.alphas for each in surfaces], [each.betas for each in surfaces]
    for axis, title, along in zip(("xaxis", "yaxis"), titles, steps, strict=True):
        ends = [min(float(each[0]) for each in along), max(float(each[-1]) for each in along)]
        scene[axis] = plain | {"title_text": title.replace(", ", "<br>"), "range": ends, "nticks": 5}
    return scene


def _panels(names: Sequence[str], kind: Kind) -> list[Axes]:
    """Return the axes of a new figure, titled, with labels at the outer ones' ticks, in 3-D at all."""
    rows, wide = laid_out(len(names))
    width = ONE_COLUMN if len(names) == 1 else TWO_COLUMNS
    figure = plt.figure(figsize=(width, 0.4 + rows * ((width - 1.4) / wide + 0.25)), layout="constrained")
    axes: list[Axes] = []
    for index, name in enumerate(names):
        if kind == "3d":
            axes.append(figure.add_subplot(rows, wide, index + 1, projection="3d", computed_zorder=False))
        else:
            first = axes[0] if axes else None
            axes.append(figure.add_subplot(rows, wide, index + 1, sharex=first, sharey=first, box_aspect=1))
            axes[-1].tick_params(labelbottom=index + wide >= len(names), labelleft=index % wide == 0)
        axes[-1].set_title(name)
        axes[-1].locator_params(nbins=2 if kind == "3d" else 5)
        if wide == 3 and kind == "contour":
            axes[-1].locator_params(axis="x", nbins=3)  # more would touch each other
    return axes


def _relief(ax: Any, surface: SurfaceLike, values: np.ndarray, levels: Levels, alone: bool) -> None:
    """Draw a surface in 3-D over its contours; heights are logarithms where the levels are."""
    heights = np.log10(values) if levels.log else values
    lines = np.log10(levels.values) if levels.log else np.array(levels.values)
    draw_relief(ax, surface.alphas.numpy(), surface.betas.numpy(), heights, list(lines), (lines[0], lines[-1]))
    if surface.centre is not None:
        ax.plot([0], [0], [heights[surface.centre]], marker="o", color=HIGHLIGHT, markersize=3, zorder=4)
    labelled = np.arange(len(lines))[:: -(-len(lines) // 5)]
    ax.set_zticks(lines[labelled], [f"{levels.values[index]:g}" for index in labelled] if alone else [])
    ax.tick_params(pad=-1.5)
    ax.tick_params(axis="z", pad=1)
    plt.setp(ax.get_xticklabels(), horizontalalignment="right")  # the last one would touch the other axis's first
    ax.set_box_aspect((1, 1, 0.8), zoom=0.85 if alone else 1.0)


def _colour_bar(axes: Sequence[Axes], levels: Levels, value: str, kind: Kind) -> None:
    ticks = levels.values[:: -(-len(levels.values) // 12)]
    colours, thin = levels.smooth() if kind == "3d" else levels.steps(), 24 * laid_out(len(axes))[0]
    bar = axes[0].figure.colorbar(colours, ax=axes, label=label(value), ticks=ticks, format="%g", aspect=thin)
    bar.minorticks_off()


def _place_tick_labels(figure: Figure) -> None:
    """Draw once without a layout: matplotlib before 3.11.2 lays 3-D axes out by where labels were drawn last."""
    engine = figure.get_layout_engine()
    figure.set_layout_engine("none")
    figure.draw_without_rendering()
    figure.set_layout_engine(engine)
