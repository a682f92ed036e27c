"""Contours of surfaces to hover over, slices through them, and figures that change where they stand: the explorer's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..plotting import interactive
from ..plotting.captions import axis_label, caption, label, short, units
from ..plotting.interactive import MARK, axis_ticks, colour_axis, empty_figure, finish, hover_data, say_if_empty
from ..plotting.style import columns
from ..plotting.values import check, drawable, limits, missing
from ..surfaces import Line, Surface

Cuts = Mapping[str, tuple[Line, float]]
_WIDTH, _SLICE = 960, 490  # pixels: a FigureWidget does not find out how much room it has
_CUT = {"color": "#111111", "width": 3}


def contours(surfaces: Mapping[str, Surface], *, value: str = "loss", log: bool = False) -> go.Figure:
    """Draw contours for each network side by side, all at the same levels.

    Args:
        surfaces: name → surface.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        log: levels are at equal distances of log10 of the value; values ≤ 0 are gaps then.
    """
    check(surfaces, value, log)
    values = {name: drawable(surface, value, log) for name, surface in surfaces.items()}
    heights = {name: np.log10(array) if log else array for name, array in values.items()}
    low, high = limits(heights.values(), value)
    wide = columns(len(surfaces))
    figure = _panels(missing(surfaces, values, log), wide)
    for number, (name, surface) in enumerate(surfaces.items()):
        cell = {"row": number // wide + 1, "col": number % wide + 1}
        figure.add_trace(_map(surface, heights[name], low, high), **cell)
        there = [0.0] if surface.centre else []
        marker = {"symbol": "cross-thin", "size": 11, "line": {"color": MARK, "width": 2.5}}
        figure.add_scatter(x=there, y=there, mode="markers", marker=marker, hoverinfo="skip", showlegend=False, **cell)
    _set_axes(figure, list(surfaces.values()), wide)
    figure.layout.coloraxis = colour_axis(value, low, high, axis_ticks(low, high, log))
    told = [caption(surfaces, value), units(next(iter(surfaces.values()))) if len(surfaces) > 1 else ""]
    title = f"{label(value)} contours" + " (log scale)" * log
    finish(figure, title, [" · ".join(filter(None, told))])
    figure.layout.margin.l, figure.layout.margin.b = 60, 50
    say_if_empty(figure, values, value)
    return figure


def _panels(notes: Mapping[str, str], wide: int) -> go.Figure:
    rows = -(-len(notes) // wide)
    titles = [f"<b>{name}</b><br><sup>{note}</sup>" if note else f"<b>{name}</b>" for name, note in notes.items()]
    gaps = {"horizontal_spacing": 0.06, "vertical_spacing": 0.25 / rows}
    figure = make_subplots(rows, wide, subplot_titles=titles, figure=empty_figure(), **gaps)
    figure.layout.height = 150 + rows * (430, 360, 270)[wide - 1]
    return figure


def _map(surface: Surface, heights: np.ndarray, low: float, high: float) -> go.Contour:
    told, step = hover_data(surface, "<br>"), (high - low) / 12
    return go.Contour(
        x=surface.alphas.numpy(),
        y=surface.betas.numpy(),
        z=heights.T,  # plotly has x along columns
        coloraxis="coloraxis",
        autocontour=False,
        contours={"start": low + step / 2, "end": high, "size": step},
        line={"width": 0.7, "color": "rgba(255, 255, 255, 0.6)"},
        customdata=told["customdata"].transpose(1, 0, 2),
        hovertemplate=f"alpha %{{x:.4g}}<br>beta %{{y:.4g}}<br>{told['hovertemplate']}<extra></extra>",
        connectgaps=False,
    )


def _set_axes(figure: go.Figure, surfaces: list[Surface], wide: int) -> None:
    """Label the outer axes, and let each end where its surface does."""
    plain = {"showgrid": False, "zeroline": False, "nticks": 6, "ticks": "outside", "title_standoff": 6}
    texts = [(axis_label if len(surfaces) == 1 else short)(surfaces[0], axis) for axis in (1, 2)]
    for number, surface in enumerate(surfaces):
        labelled = (number >= len(surfaces) - wide, number % wide == 0)
        for axis, (letter, steps) in enumerate((("x", surface.alphas), ("y", surface.betas))):
            name = f"{letter}axis{number + 1 if number else ''}"
            place = {key: figure.layout[name][key] for key in ("domain", "anchor")}
            title = texts[axis][:1].upper() + texts[axis][1:] if labelled[axis] else None
            ends = {"range": [float(steps[0]), float(steps[-1])], "title_text": title}
            figure.layout[name] = plain | place | ends  # update_xaxes takes ten times as long


def with_cuts(
    surfaces: Mapping[str, Surface], kind: str, cuts: Cuts, axis: int, value: str = "loss", log: bool = False
) -> go.Figure:
    """Draw surfaces, ``kind`` "3d" or "contour", and on each the line along which it is cut.

    Args:
        surfaces: name → surface.
        kind: of picture.
        cuts: name → line through the surface, and where it lies on the other axis.
        axis: along which the lines run, 0 or 1.
        value, log: see `contours`.
    """
    figure = (interactive.surfaces if kind == "3d" else contours)(surfaces, value=value, log=log)
    figure.layout.width = _WIDTH
    # a subtitle of its own lands on the title where the figure is made before it has a place on the page
    text = f"{figure.layout.title.text}<br><span style='font-size: 12px; color: #666666'>"
    figure.layout.title.text = f"{text}{figure.layout.title.subtitle.text}</span>"
    figure.layout.title.subtitle.text = ""
    wide = columns(len(surfaces))
    for number, name in enumerate(surfaces):
        line, at = cuts[name]
        cell: dict[str, Any] = {"row": number // wide + 1, "col": number % wide + 1}
        along, across = line.alphas.numpy(), np.full(len(line.alphas), at)
        x, y = (along, across) if axis == 0 else (across, along)
        style: dict[str, Any] = {"mode": "lines", "line": _CUT, "hoverinfo": "skip", "showlegend": False}
        if kind == "3d":
            heights = drawable(line, value, log)
            heights = np.log10(heights) if log else heights
            figure.add_scatter3d(x=x, y=y, z=heights, **style | {"line": _CUT | {"width": 6}}, **cell)
        else:
            figure.add_scatter(x=x, y=y, **style, **cell)
    return figure


def slices(cuts: Cuts, axis: int, value: str = "loss", log: bool = False) -> go.Figure:
    """Draw the lines along which surfaces are cut into one plot; see `with_cuts`."""
    lines = {name: line for name, (line, _) in cuts.items()}
    places = sorted({f"{at:.3g}" for _, at in cuts.values()})
    title = f"Slice along direction {axis + 1}, at {' and '.join(places)} of direction {2 - axis}"
    figure = interactive.lines(lines, value=value, log=log, title=title)
    layout = figure.layout
    layout.width, layout.height, layout.margin = _SLICE, 330, {"l": 60, "r": 10, "t": 44, "b": 50}
    layout.title.subtitle.text, layout.title.font.size = "", 15
    layout.legend = {"x": 0.99, "y": 0.99, "xanchor": "right", "yanchor": "top", "tracegroupgap": 0}
    return figure


def shown(widget: Any, figure: go.Figure, turned: Callable[[str, Any], None] | None = None) -> Any:
    """Bring a FigureWidget to a figure, in place where both have the same traces; otherwise return a new one.

    Cameras stay where they are.

    Args:
        widget: what there is, or None.
        figure: what it is to become.
        turned: told the scene and its new camera whenever a scene of a new widget is turned.
    """
    kinds = [trace.type for trace in figure.data]
    notes = len(figure.layout.annotations)
    if widget is None or [t.type for t in widget.data] != kinds or len(widget.layout.annotations) != notes:
        widget = go.FigureWidget(figure)
        if turned is not None:
            for scene in (name for name in figure.layout if name.startswith("scene")):
                widget.layout[scene].on_change(partial(_tell, turned, scene), "camera")
        return widget
    with widget.batch_update():
        for old, new in zip(widget.data, figure.data, strict=True):
            _bring(old, old.to_plotly_json(), new.to_plotly_json())
        layout = figure.layout.to_plotly_json()
        for scene in (part for name, part in layout.items() if name.startswith("scene")):
            scene.pop("camera", None)
        _bring(widget.layout, widget.layout.to_plotly_json(), layout)
    return widget


def _bring(part: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Set what differs and nothing else: plotly checks all that it is given, slowly, and sends it."""
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            _bring(part[name], before, value)
        elif not _same(before, value):
            part[name] = value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return type(one) is type(other) and bool(one == other)


def _tell(turned: Callable[[str, Any], None], name: str, _: Any, camera: Any) -> None:
    turned(name, camera)


def turn(widget: Any, scene: str, camera: Any) -> None:
    """Give all other scenes the camera of one."""
    view = camera.to_plotly_json()
    with widget.batch_update():
        for other in (name for name in widget.layout if name.startswith("scene") and name != scene):
            widget.layout[other].camera = view
