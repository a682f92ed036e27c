"""Surfaces of one network or several: in 3-D or as contours, all on one scale."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from . import interactive, paper
from .captions import axis_label, caption, hover, label, notes, short
from .contours import add_maps, draw_map, level_lines
from .levels import Levels, check_levels, shared_levels
from .pairing import paired
from .reliefs import draw_relief
from .style import HIGHLIGHT, ONE_COLUMN, TWO_COLUMNS, at, columns
from .values import Kind, Scale, SurfaceLike, check_option, columns_of, is_empty, limits, missing


@paired
def plot_surfaces(
    surfaces: Mapping[str, SurfaceLike],
    *,
    value: str = "loss",
    scale: Scale = "auto",
    kind: Kind = "3d",
    levels: Sequence[float] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Draw a panel for each network side by side, all in one range of heights and colours.

    Args:
        surfaces: name → surface.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        scale: ``"linear"``, ``"log"`` (heights are log10 of the value; values ≤ 0 are gaps then, as NaN and inf
            always are) or ``"auto"``: see `values.is_log`.
        kind: ``"3d"`` or ``"contour"``.
        levels: of the contours, increasing; default twelve at even distances of the heights.
        title: replaces the default one.
    """
    check_option("kind", kind, Kind)
    values, log = columns_of(surfaces, value, scale)
    heights = {name: np.log10(array) if log else array for name, array in values.items()}
    low, high = limits(heights.values(), value)
    lines = None
    if levels is not None:
        levels = check_levels(levels, log)
        lines = [float(np.log10(level)) for level in levels] if log else levels
        low, high = min(low, lines[0]), max(high, lines[-1])
    ticks = interactive.height_ticks(low, high, log, levels)
    gaps = missing(surfaces, values, log)
    figure = _empty_panels(gaps, kind)
    if kind == "3d":
        _add_sheets(figure, surfaces, heights, (low, high), lines)
        floor = low - 0.3 * (high - low)  # below the lowest point, so that the contours on it are seen
        for index in range(len(surfaces)):
            name = f"scene{index + 1 if index else ''}"
            scene = _scene(list(surfaces.values()), index, value, (floor, high + 0.02 * (high - low)), ticks)
            figure.layout[name] = scene | {"domain": figure.layout[name].domain}  # update_scenes is ten times slower
    default = f"{label(value)} {'surface' if kind == '3d' else 'contours'}" + " (log scale)" * log
    interactive.finish(figure, title or default, [caption(surfaces, value)])
    if kind == "contour":
        add_maps(figure, surfaces, heights, (low, high), lines)
    figure.layout.coloraxis = interactive.colour_axis(value, low, high, ticks)
    if is_empty(values.values()):
        interactive.say_empty(figure, value)
    return figure


def draw_surfaces(
    surfaces: Mapping[str, SurfaceLike],
    ax: Axes | None = None,
    *,
    value: str = "loss",
    scale: Scale = "auto",
    kind: Kind = "contour",
    levels: Sequence[float] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw for print: a panel for each network at the same levels with one colour bar; return the figure.

    A single surface without a name, or with ``ax``, is a map of its own whose contours are labelled.

    Args:
        surfaces: name → surface; the names become titles.
        ax: axes to draw one surface into (3-D axes for ``kind="3d"``); labels that they have stay.
        value, scale: see `plot_surfaces`.
        kind: ``"contour"`` or ``"3d"``.
        levels: increasing values; default round numbers around all panels, at distances that the scale decides.
        title: stands above what was measured.

    Raises:
        ValueError: ``ax`` for several surfaces, or flat axes for ``kind="3d"``.
    """
    check_option("kind", kind, Kind)
    values, log = columns_of(surfaces, value, scale)
    if ax is not None and len(surfaces) > 1:
        raise ValueError(f"ax must be None for several surfaces, which get panels of their own; got {len(surfaces)}")
    if ax is not None and (kind == "3d") != (ax.name == "3d"):
        raise ValueError(f'ax must have projection="3d" for kind="3d" and not otherwise, got {ax.name} for {kind!r}')
    shared = shared_levels(list(values.values()), value, log, levels)
    with paper.style():
        if ax is not None or (kind == "contour" and list(surfaces) == [""]):
            (surface,), (array,) = surfaces.values(), values.values()
            ax = ax or paper.new_axes(3.0, box_aspect=1)
            (_relief if kind == "3d" else draw_map)(ax, surface, array, shared)
            paper.label_axes(ax, axis_label([surface], 1), axis_label([surface], 2))
            paper.entitle(ax, title, caption(surfaces, value), *notes(surfaces, values, log))
            if is_empty([array]):
                paper.say_empty(ax, value)
            return paper.figure_of(ax)
        return _print_panels(surfaces, values, shared, value, kind, title)


def _print_panels(
    surfaces: Mapping[str, SurfaceLike],
    values: Mapping[str, np.ndarray],
    levels: Levels,
    value: str,
    kind: Kind,
    title: str | None,
) -> Figure:
    figure, axes = _panels(list(surfaces), kind)
    wide = columns(len(axes))
    for index, (ax, surface, array) in enumerate(zip(axes, surfaces.values(), values.values(), strict=True)):
        if kind == "3d":
            _relief(ax, surface, array, levels, alone=False)  # the colour bar tells heights
        else:
            draw_map(ax, surface, array, levels)
        below, left = index + wide >= len(axes), index % wide == 0
        ax.tick_params(labelbottom=below or kind == "3d", labelleft=left or kind == "3d")
        if is_empty([array]):
            paper.say_empty(ax, value)
    _label_panels(axes, list(surfaces.values()), kind)
    if title:
        figure.suptitle(title, fontsize=8)
    paper.caption_below(figure, caption(surfaces, value), *notes(surfaces, values, levels.log))
    _colour_bar(axes, levels, value, kind)
    if kind == "3d":
        _place_tick_labels(figure)
    return figure


def _place_tick_labels(figure: Figure) -> None:
    """Draw once without a layout: matplotlib before 3.11.2 lays 3-D axes out by where labels were drawn last."""
    engine = figure.get_layout_engine()
    figure.set_layout_engine("none")
    figure.draw_without_rendering()
    figure.set_layout_engine(engine)


def _empty_panels(gaps: Mapping[str, str], kind: Kind) -> go.Figure:
    """Return scenes or axes side by side, titled with the networks' names as they are, and what is missing."""
    wide = columns(len(gaps))
    rows = -(-len(gaps) // wide)
    cell = {"type": "scene" if kind == "3d" else "xy"}
    cells = [cell if index < len(gaps) else None for index in range(rows * wide)]
    figure = make_subplots(
        rows,
        wide,
        figure=interactive.empty_figure(),
        specs=[cells[row * wide : (row + 1) * wide] for row in range(rows)],
        subplot_titles=[
            f"<b>{html.escape(n, quote=False)}</b>" + f"<br><sup>{g}</sup>" * bool(g) for n, g in gaps.items()
        ],
        horizontal_spacing=0.01 if kind == "3d" else 0.06,
        vertical_spacing=0.08 if kind == "3d" else 0.25 / rows,
    )
    figure.layout.height = 130 + rows * ((460, 370, 260) if kind == "3d" else (430, 360, 270))[wide - 1]
    return figure


def _add_sheets(
    figure: go.Figure,
    surfaces: Mapping[str, SurfaceLike],
    heights: Mapping[str, np.ndarray],
    ends: tuple[float, float],
    levels: Sequence[float] | None,
) -> None:
    """Draw a sheet into each scene, its contours on the floor, and the centre with its plumb line."""
    floor = ends[0] - 0.3 * (ends[1] - ends[0])
    for index, (name, surface) in enumerate(surfaces.items()):
        cell = at(index, len(surfaces))
        figure.add_trace(_centre(surface, heights[name], floor), **cell)
        if not np.isfinite(heights[name]).any():  # the browser fails on a sheet without a single point
            continue
        figure.add_trace(_sheet(surface, heights[name], *ends, lines=levels is None), **cell)
        if levels is not None:
            x, y, z = level_lines(surface, heights[name], levels)
            line = {"width": 3, "color": z, "coloraxis": "coloraxis"}
            silent = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
            above = np.full(len(z), floor + 0.01 * (ends[1] - ends[0]))  # or the floor would hide parts of them
            figure.add_scatter3d(x=x, y=y, z=above, line=line, **silent, **cell)


def _sheet(surface: SurfaceLike, heights: np.ndarray, low: float, high: float, lines: bool) -> go.Surface:
    step = (high - low) / 12
    template, data = hover(surface)
    levels = {"show": True, "start": low + step / 2, "end": high, "size": step, "usecolormap": True, "width": 2}
    return go.Surface(
        x=surface.alphas.numpy(),
        y=surface.betas.numpy(),
        z=heights.T,  # plotly has x along columns
        coloraxis="coloraxis",
        contours={"z": levels | {"project": {"z": True}} if lines else {"show": False}},
        customdata=data,  # but looks this up by [x, y]
        hovertemplate=template,
        connectgaps=False,
    )


def _centre(surface: SurfaceLike, heights: np.ndarray, floor: float) -> go.Scatter3d:
    """Return a point on the sheet and the plumb line below it."""
    there = surface.centre is not None
    return go.Scatter3d(
        x=[0.0, 0.0] * there,
        y=[0.0, 0.0] * there,
        z=[heights[surface.centre], floor] if there else [],
        mode="lines+markers",
        line={"color": HIGHLIGHT, "width": 3},
        marker={"size": 5, "color": HIGHLIGHT, "line": {"color": "white", "width": 1}},
        showlegend=False,
        hoverinfo="skip",
    )


def _scene(
    surfaces: Sequence[SurfaceLike], index: int, value: str, heights: tuple[float, float], ticks: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the axes of one scene, and the camera that all share."""
    alone, surface = len(surfaces) == 1, surfaces[index]
    plain = {"title_font_size": 11, "tickfont_size": 11, "showbackground": False, "gridcolor": interactive.GRID_3D}
    away = (1.0, 1.05, 1.1)[columns(len(surfaces)) - 1]  # narrow panels need room for the labels
    scene: dict[str, Any] = {
        "zaxis": plain | {"title_text": label(value) * alone, "range": heights, **ticks},
        "zaxis_showticklabels": alone,  # the colour bar has them
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.8},
        "camera": {"eye": {"x": 1.25 * away, "y": -1.25 * away, "z": 1.05 * away}, "center": {"z": -0.22}},
    }
    for axis, steps in ((1, [each.alphas for each in surfaces]), (2, [each.betas for each in surfaces])):
        # several scenes side by side have no room for the units: the caption says them
        name = axis_label([surface], axis).replace(", ", "<br>") if alone else short(surface, axis)
        scene["xyz"[axis - 1] + "axis"] = plain | {
            "title_text": name,
            "range": [min(float(ends[0]) for ends in steps), max(float(ends[-1]) for ends in steps)],
            "nticks": 5,
        }
    return scene


def _panels(names: Sequence[str], kind: Kind) -> tuple[Figure, list[Axes]]:
    wide = columns(len(names))
    rows = -(-len(names) // wide)
    width = ONE_COLUMN if len(names) == 1 else TWO_COLUMNS
    figure = plt.figure(figsize=(width, 0.4 + rows * ((width - 1.4) / wide + 0.25)), layout="constrained")
    axes: list[Axes] = []
    for position, name in enumerate(names, start=1):
        if kind == "3d":
            axes.append(figure.add_subplot(rows, wide, position, projection="3d", computed_zorder=False))
        else:
            first = axes[0] if axes else None
            axes.append(figure.add_subplot(rows, wide, position, sharex=first, sharey=first, box_aspect=1))
        axes[-1].set_title(name)
        axes[-1].locator_params(nbins=2 if kind == "3d" else 5)
        if wide == 3 and kind == "contour":
            axes[-1].locator_params(axis="x", nbins=3)  # more would touch each other
    return figure, axes


def _label_panels(axes: Sequence[Axes], surfaces: Sequence[SurfaceLike], kind: Kind) -> None:
    """Name the directions at the outer panels, in 3-D and where they differ at all; the caption says the units."""
    wide = columns(len(axes))
    names = [[short(surface, number) for number in (1, 2)] for surface in surfaces]
    everywhere = kind == "3d" or names != names[:1] * len(names)
    for index, (ax, (x, y)) in enumerate(zip(axes, names, strict=True)):
        pad: Any = {"labelpad": -4} if kind == "3d" else {}
        ax.set_xlabel(x if everywhere or index + wide >= len(axes) else "", **pad)
        ax.set_ylabel(y if everywhere or index % wide == 0 else "", **pad)


def _relief(ax: Any, surface: SurfaceLike, values: np.ndarray, levels: Levels, alone: bool = True) -> None:
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
    thin = 24 * -(-len(axes) // columns(len(axes)))
    colours = levels.smooth() if kind == "3d" else levels.steps()
    bar = axes[0].figure.colorbar(colours, ax=axes, label=label(value), ticks=ticks, format="%g", aspect=thin)
    bar.minorticks_off()
