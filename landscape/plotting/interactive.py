"""Curves and 3-D surfaces to turn, zoom and hover over, in a notebook or a web page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.io import templates
from plotly.subplots import make_subplots

from .captions import BAND, axis_label, caption, label, notes, short, units, wrapped
from .style import COLOURS, columns
from .values import (
    LineLike,
    SurfaceLike,
    band,
    bent_ticks,
    beyond,
    check,
    column,
    drawable,
    even_levels,
    limits,
    measured,
    missing,
    round_levels,
)

MARK = "#D55E00"
_KINDS = ("contour", "scatter", "scatter3d", "surface")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")


def lines(
    lines: Mapping[str, LineLike], *, value: str = "loss", log: bool = False, title: str | None = None
) -> go.Figure:
    """Draw curves into one plot, a colour for each network in the order of the mapping.

    Args:
        lines: name → line.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        log: logarithmic axis; values ≤ 0 are gaps then, as NaN and inf always are.
        title: replaces the default one.
    """
    check(lines, value, log)
    values = {name: drawable(line, value, log) for name, line in lines.items()}
    figure = empty_figure()
    figure.add_vline(0, line={"color": "#bbbbbb", "width": 1}, layer="below")
    bands = {name: band(line, values[name], value, log) for name, line in lines.items()}
    for number, (name, line) in enumerate(lines.items()):
        figure.add_traces(_curve(number, name, line, values[name]))
        if (edges := bands[name]) is not None:
            style: dict[str, Any] = {"legendgroup": name, "showlegend": False, "name": f"{name} ± 1 standard error"}
            figure.add_trace(_band(line.alphas.numpy(), edges, COLOURS[number % len(COLOURS)], 0.18, **style))
    figure.update_xaxes(title=axis_label(next(iter(lines.values()))), zeroline=False, hoverformat=".4g")
    figure.update_yaxes(title=label(value) + " (log scale)" * log, type="log" if log else "linear")
    if value == "accuracy":
        figure.update_yaxes(range=[-0.02, 1.02])
    if log and any(np.isfinite(array).any() for array in values.values()):
        levels = round_levels(*limits(values.values(), value), 5)
        figure.update_yaxes(tickvals=levels, ticktext=[f"{level:g}" for level in levels])
    told = notes(lines, values, log)
    if any(edges is not None for edges in bands.values()):
        told.append(BAND)
    finish(figure, title or f"{label(value)} along a direction", [caption(lines, value), *told])
    figure.update_layout(height=420 + 16 * len(told), showlegend=len(lines) > 1, hovermode="x unified")
    figure.update_layout(legend_tracegroupgap=0)
    say_if_empty(figure, values, value)
    return figure


def surfaces(
    surfaces: Mapping[str, SurfaceLike], *, value: str = "loss", log: bool = False, title: str | None = None
) -> go.Figure:
    """Draw a 3-D scene for each network side by side, all in one range of heights and colours.

    Args:
        surfaces: name → surface.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        log: heights are log10 of the value, for steep surfaces; values ≤ 0 are gaps then, as NaN and inf always are.
        title: replaces the default one.
    """
    check(surfaces, value, log)
    values = {name: drawable(surface, value, log) for name, surface in surfaces.items()}
    heights = {name: np.log10(array) if log else array for name, array in values.items()}
    low, high = limits(heights.values(), value)
    floor = low - 0.3 * (high - low)  # below the lowest point, so that the contours on it are seen
    figure = _panels(missing(surfaces, values, log))
    wide = columns(len(surfaces))
    for number, (name, surface) in enumerate(surfaces.items()):
        cell = {"row": number // wide + 1, "col": number % wide + 1}
        figure.add_trace(_centre(surface, heights[name], floor), **cell)
        if np.isfinite(heights[name]).any():  # the browser fails on a sheet without a single point
            figure.add_trace(_sheet(surface, heights[name], low, high), **cell)
    ticks = axis_ticks(low, high, log)
    scene = _scene(list(surfaces.values()), value, (floor, high + 0.02 * (high - low)), ticks)
    for part in [part for part in figure.layout if part.startswith("scene")]:
        figure.layout[part] = scene | {"domain": figure.layout[part].domain}  # update_scenes takes ten times as long
    figure.layout.coloraxis = colour_axis(value, low, high, ticks)
    told = [caption(surfaces, value), units(next(iter(surfaces.values()))) if len(surfaces) > 1 else ""]
    title = title or f"{label(value)} surface" + " (log scale)" * log
    finish(figure, title, [" · ".join(filter(None, told))])
    say_if_empty(figure, values, value)
    return figure


def density(density: Any) -> go.Figure:
    """Draw a density of eigenvalues with its band, and the atoms as stems.

    The vertical axis is logarithmic and ends at a third of what one eigenvalue alone would reach: less means nothing.
    The horizontal one is bent (asinh) where the atoms lie far outside of the bulk.

    Args:
        density: what to draw.
    """
    one, colour = density.one_eigenvalue, COLOURS[0]
    grid, values, low, high = (getattr(density, name).numpy() for name in ("grid", "density", "low", "high"))
    atoms, bulk = density.atoms.numpy(), float(np.abs(grid).max())
    bent = bool((np.abs(atoms) > 4 * bulk).any())
    place = (lambda x: np.arcsinh(3 * np.asarray(x) / bulk)) if bent else np.asarray
    floor, top = one / 3, 3 * max(float(values.max()), one)
    figure = empty_figure()
    dotted = {"color": "#999999", "width": 1, "dash": "dot"}
    figure.add_hline(one, line=dotted, name="one eigenvalue", showlegend=True)
    if np.isfinite(low).all():
        figure.add_trace(
            _band(place(grid), (np.maximum(low, floor), np.maximum(high, floor)), colour, name="95 % band")
        )
    hover = "eigenvalue %{customdata:.4g}<br>density %{y:.4g}<extra></extra>"
    line = {"color": colour, "width": 2}
    figure.add_scatter(x=place(grid), y=values, customdata=grid, line=line, hovertemplate=hover, name="bulk")
    if len(atoms):
        stems = {"type": "data", "symmetric": False, "array": 0 * atoms, "arrayminus": 0 * atoms + one - floor}
        figure.add_scatter(
            x=place(atoms),
            y=0 * atoms + one,
            customdata=atoms,
            mode="markers",
            marker={"color": MARK, "size": 8},
            error_y=stems | {"width": 0, "thickness": 1.5},
            hovertemplate="eigenvalue %{customdata:.6g}<extra></extra>",
            name=f"{len(atoms)} outliers",
        )
    figure.update_xaxes(title="Eigenvalue" + " (asinh scale)" * bent, zeroline=False)
    if bent:
        ends = [float(f(np.append(grid, atoms))) for f in (np.min, np.max)]
        ticks = bent_ticks(bulk, *ends)
        figure.update_xaxes(tickvals=place(ticks), ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title="Density (log scale)", type="log", range=np.log10([floor, top]), exponentformat="power")
    value, error = density.implied_trace()
    note = f"{density.size:,} eigenvalues · trace {value:.4g} ± {error:.2g} · smoothed over {density.width:.2g}"
    finish(figure, "Density of eigenvalues", [note, caption({"": density})])
    figure.update_layout(height=440)
    return figure


def scales(found: Any) -> go.Figure:
    """Draw the curvature against the radius, with its errors and the derivative.

    Rungs that are not to be trusted are hollow and grey, triangles at the edge where they lie above or below the
    picture. Random directions are drawn as the trace that they imply.

    Args:
        found: what to draw.
    """
    unit = found.numel if found.is_random else 1
    radii, trusted = found.radii.numpy(), found.trusted.numpy()
    values, errors = unit * found.curvature.numpy(), unit * found.error.numpy()
    low, high = (unit * end for end in found.window())
    figure = empty_figure()
    hover = "%{customdata[0]:.4g} ± %{customdata[1]:.2g} at %{x:g}‖w‖<extra></extra>"
    out = beyond(values, (low, high))
    doubtful = "not to be trusted"
    for seen, name, mode, colour, symbol in (
        (trusted, "at a scale ± one error", "lines+markers", COLOURS[0], "circle"),
        ((values > low) & (values < high) & ~trusted, doubtful, "markers", "#888888", "circle-open"),
        (out["above"], f"{doubtful}, above", "markers", "#888888", "triangle-up-open"),
        (out["below"], f"{doubtful}, below", "markers", "#888888", "triangle-down-open"),
    ):
        if not seen.any():
            continue
        figure.add_scatter(
            x=radii[seen],
            y=values[seen].clip(low, high),
            error_y={"array": errors[seen], "thickness": 1, "visible": "triangle" not in symbol},
            customdata=np.stack([values, errors], -1)[seen],
            mode=mode,
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 8, "color": colour},
            hovertemplate=hover,
            name=name,
            cliponaxis="triangle" not in symbol,
        )
    if len(found.derivatives):
        text = f"{found.about['derivative']} {unit * found.derivative:.4g}"
        line = {"color": MARK, "width": 2, "dash": "dash"}
        figure.add_hline(unit * found.derivative, line=line, name=text, showlegend=True)
    what, notes = "Trace" if found.is_random else "Curvature", [caption({"": found})]
    notes += [] if trusted.any() else ["no rung is trustworthy"]
    figure.update_xaxes(
        title="Length of the step ε, in norms of the weights", type="log", exponentformat="power", dtick=1
    )
    figure.update_yaxes(title=f"{what}, {found.about['units']} units", range=[low, high])
    finish(figure, f"{what} at a scale, along {found.about['directions']}", notes)
    figure.update_layout(height=440)
    return figure


def _curve(number: int, name: str, line: LineLike, values: np.ndarray) -> list[go.Scatter]:
    """Return the curve and, as a trace of its own, the marked centre."""
    colour, symbol = COLOURS[number % len(COLOURS)], _SYMBOLS[number % len(_SYMBOLS)]
    alphas, middle = line.alphas.numpy(), [] if line.centre is None else [line.centre]
    curve = go.Scatter(
        x=alphas,
        y=values,
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"symbol": symbol, "size": 6},
        **hover_data(line, ", "),
        legendgroup=name,
        connectgaps=False,
    )
    marker = {"symbol": symbol, "size": 12, "color": colour, "line": {"color": "white", "width": 1.5}}
    quiet = {"showlegend": False, "hoverinfo": "skip", "legendgroup": name}
    return [curve, go.Scatter(x=alphas[middle], y=values[middle], mode="markers", marker=marker, **quiet)]


def _band(x: np.ndarray, edges: Sequence[np.ndarray], colour: str, opacity: float = 0.3, **style: Any) -> go.Scatter:
    """Return the area between two curves, interrupted where one has a gap."""
    low, high = edges
    whole = np.isfinite(low) & np.isfinite(high)
    runs = np.split(np.arange(len(x)), np.flatnonzero(np.diff(whole)) + 1)
    around = [
        np.array([[*x[run], *x[run][::-1], np.nan], [*high[run], *low[run][::-1], np.nan]])
        for run in runs
        if whole[run[0]]
    ]
    outline = np.concatenate(around, 1)
    fill = {"fill": "toself", "fillcolor": f"rgba{(*bytes.fromhex(colour[1:]), opacity)}", "hoverinfo": "skip"}
    return go.Scatter(x=outline[0], y=outline[1], mode="lines", line={"width": 0}, **fill, **style)


def hover_data(result: LineLike | SurfaceLike, between: str) -> dict[str, Any]:
    """Return what hovering tells: everything measured at the point."""
    names = measured(result)
    text = between.join(f"{name} %{{customdata[{number}]:.4g}}" for number, name in enumerate(names))
    return {"customdata": np.stack([column(result, name) for name in names], -1), "hovertemplate": text}


def _panels(notes: Mapping[str, str]) -> go.Figure:
    """Return empty scenes side by side, titled with the networks' names and what is missing."""
    wide = columns(len(notes))
    rows = -(-len(notes) // wide)
    cells = [{"type": "scene"} if number < len(notes) else None for number in range(rows * wide)]
    figure = make_subplots(
        rows,
        wide,
        figure=empty_figure(),
        specs=[cells[row * wide : (row + 1) * wide] for row in range(rows)],
        subplot_titles=[f"<b>{name}</b><br><sup>{note}</sup>" for name, note in notes.items()],
        horizontal_spacing=0.01,
        vertical_spacing=0.08,
    )
    figure.update_layout(height=110 + rows * (500, 420, 310)[wide - 1])
    return figure


def _sheet(surface: SurfaceLike, heights: np.ndarray, low: float, high: float) -> go.Surface:
    step = (high - low) / 12
    told = hover_data(surface, "<br>")
    levels = {"show": True, "start": low + step / 2, "end": high, "size": step}
    return go.Surface(
        x=surface.alphas.numpy(),
        y=surface.betas.numpy(),
        z=heights.T,  # plotly has x along columns
        coloraxis="coloraxis",
        contours={"z": levels | {"usecolormap": True, "width": 2, "project": {"z": True}}},
        customdata=told["customdata"],  # but looks this up by [x, y]
        hovertemplate=f"alpha %{{x:.4g}}<br>beta %{{y:.4g}}<br>{told['hovertemplate']}<extra></extra>",
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
        line={"color": MARK, "width": 3},
        marker={"size": 5, "color": MARK, "line": {"color": "white", "width": 1}},
        showlegend=False,
        hoverinfo="skip",
    )


def _scene(
    surfaces: Sequence[SurfaceLike], value: str, heights: tuple[float, float], ticks: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the axes and the camera that all scenes share."""
    plain = {"title_font_size": 11, "tickfont_size": 11, "backgroundcolor": "white", "gridcolor": "#dddddd"}
    away = (1.0, 1.1, 1.55)[columns(len(surfaces)) - 1]  # narrow panels need room for the labels
    scene: dict[str, Any] = {
        "zaxis": plain | {"title_text": label(value) * (len(surfaces) == 1), "range": heights, **ticks},
        "zaxis_showticklabels": len(surfaces) == 1,  # the colour bar has them
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.8},
        "camera": {"eye": {"x": 1.25 * away, "y": -1.25 * away, "z": 1.05 * away}, "center": {"z": -0.28}},
    }
    for number, steps in ((1, [surface.alphas for surface in surfaces]), (2, [surface.betas for surface in surfaces])):
        # several scenes side by side have no room for the whole of it: the caption says the unit
        scene["xyz"[number - 1] + "axis"] = plain | {
            "title_text": short(surfaces[0], number).capitalize()
            if len(surfaces) > 1
            else axis_label(surfaces[0], number).replace(", ", "<br>"),
            "range": [min(float(ends[0]) for ends in steps), max(float(ends[-1]) for ends in steps)],
            "nticks": 5,
        }
    return scene


def colour_axis(value: str, low: float, high: float, ticks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the colours and their bar."""
    bar = {"title": {"text": label(value), "side": "right"}, "thickness": 14, "len": 0.75, **ticks}
    return {"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": bar}


def axis_ticks(low: float, high: float, log: bool) -> dict[str, Any]:
    """Return ticks at round values between low and high, which are log10 of the values if asked."""
    levels = round_levels(10**low, 10**high, 5) if log else even_levels(low, high)
    levels = levels if log or len(levels) < 8 else levels[::2]
    heights = np.log10(levels) if log else np.array(levels)
    inside = (heights >= low) & (heights <= high)
    return {"tickvals": heights[inside], "ticktext": [f"{level:g}" for level in np.array(levels)[inside]]}


@cache
def _template() -> go.layout.Template:
    """Return plotly's white template for what is drawn here: the whole of it takes most of the time of a redraw."""
    white = templates["plotly_white"]
    return go.layout.Template(layout=white.layout, data={kind: white.data[kind] for kind in _KINDS})


def empty_figure() -> go.Figure:
    """Return a figure in the common look, without content."""
    return go.Figure(layout={"template": _template()})


def finish(figure: go.Figure, title: str, notes: list[str]) -> None:
    """Set title, notes below it, and margins."""
    notes = [text for note in notes for text in wrapped(note, 110).split("\n")]
    below = {"text": "<br>".join(notes), "font": {"size": 12, "color": "#666666"}}
    # set one by one: update_layout takes several times as long
    figure.layout.title = {"text": title, "subtitle": below, "x": 0.01, "y": 1, "yanchor": "top", "pad": {"t": 16}}
    figure.layout.margin = {"l": 10, "r": 10, "t": 70 + 20 * len(notes), "b": 10}


def say_if_empty(figure: go.Figure, values: Mapping[str, np.ndarray], value: str) -> None:
    """Write into the figure that there is no finite value, if so."""
    if all(np.isnan(array).all() for array in values.values()):
        where = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
        figure.add_annotation(text=f"no {value} can be drawn: none is finite", font={"size": 16}, **where)
