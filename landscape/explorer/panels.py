"""Surfaces with the line along which they are cut, slices, and figures that change in place: the explorer's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ..plotting import Kind, Scale
from ..plotting.lines import plot_lines
from ..plotting.style import at
from ..plotting.surfaces import plot_surfaces
from ..plotting.values import columns_of, drawable
from ..surfaces import Line, Surface

Cuts = Mapping[str, tuple[Line, float]]
_WIDTH, _SLICE = 960, 490  # pixels: a FigureWidget does not find out how much room it has
_CUT = {"color": "#111111", "width": 3}


def with_cuts(
    surfaces: Mapping[str, Surface], kind: Kind, cuts: Cuts, axis: int, value: str = "loss", scale: Scale = "auto"
) -> go.Figure:
    """Draw surfaces, ``kind`` "3d" or "contour", and on each the line along which it is cut.

    Args:
        surfaces: name → surface.
        kind: of picture.
        cuts: name → line through the surface, and where it lies on the other axis.
        axis: along which the lines run, 0 or 1.
        value, scale: see `plotting.surfaces.plot_surfaces`.
    """
    _, log = columns_of(surfaces, value, scale)
    figure = plot_surfaces(surfaces, value=value, scale=scale, kind=kind)
    figure.layout.width = _WIDTH
    # a subtitle of its own lands on the title where the figure is made before it has a place on the page
    text = f"{figure.layout.title.text}<br><span style='font-size: 12px; color: #666666'>"
    figure.layout.title.text = f"{text}{figure.layout.title.subtitle.text}</span>"
    figure.layout.title.subtitle.text = ""
    for index, name in enumerate(surfaces):
        line, where = cuts[name]
        cell: dict[str, Any] = at(index, len(surfaces))
        along, across = line.alphas.numpy(), np.full(len(line.alphas), where)
        x, y = (along, across) if axis == 0 else (across, along)
        style: dict[str, Any] = {"mode": "lines", "line": _CUT, "hoverinfo": "skip", "showlegend": False}
        if kind == "3d":
            heights = drawable(line, value, log)
            heights = np.log10(heights) if log else heights
            figure.add_scatter3d(x=x, y=y, z=heights, **style | {"line": _CUT | {"width": 6}}, **cell)
        else:
            figure.add_scatter(x=x, y=y, **style, **cell)
    return figure


def slices(cuts: Cuts, axis: int, value: str = "loss", scale: Scale = "auto") -> go.Figure:
    """Draw the lines along which surfaces are cut into one plot; see `with_cuts`."""
    lines = {name: line for name, (line, _) in cuts.items()}
    steps = sorted({f"{where:.3g}" for _, where in cuts.values()})
    title = f"Slice along direction {axis + 1}, at {' and '.join(steps)} of direction {2 - axis}"
    figure = plot_lines(lines, value=value, scale=scale, title=title)
    layout = figure.layout
    layout.width, layout.height, layout.margin = _SLICE, 330, {"l": 60, "r": 10, "t": 44, "b": 50}
    layout.title.subtitle.text, layout.title.font.size = "", 15
    layout.legend = {"x": 0.99, "y": 0.99, "xanchor": "right", "yanchor": "top", "tracegroupgap": 0}
    return figure


def updated(widget: Any, figure: go.Figure, on_turn: Callable[[str, Any], None] | None = None) -> Any:
    """Return a FigureWidget that shows a figure: the same one, updated in place, where both have the same traces.

    Cameras stay where they are.

    Args:
        widget: the last one, or None.
        figure: what it is to show.
        on_turn: called with the scene and its new camera whenever a scene of a new widget is turned.
    """
    kinds = [trace.type for trace in figure.data]
    notes = len(figure.layout.annotations)
    if widget is None or [t.type for t in widget.data] != kinds or len(widget.layout.annotations) != notes:
        widget = go.FigureWidget(figure)
        if on_turn is not None:
            for scene in (name for name in figure.layout if name.startswith("scene")):
                widget.layout[scene].on_change(partial(_on_camera, on_turn, scene), "camera")
        return widget
    with widget.batch_update():
        for old, new in zip(widget.data, figure.data, strict=True):
            _update(old, old.to_plotly_json(), new.to_plotly_json())
        layout = figure.layout.to_plotly_json()
        for scene in (part for name, part in layout.items() if name.startswith("scene")):
            scene.pop("camera", None)
        _update(widget.layout, widget.layout.to_plotly_json(), layout)
    return widget


def _update(part: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Set what differs and nothing else: plotly validates all that it is given, slowly, and sends it."""
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            _update(part[name], before, value)
        elif not _same(before, value):
            part[name] = value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return type(one) is type(other) and bool(one == other)


def _on_camera(on_turn: Callable[[str, Any], None], scene: str, _: Any, camera: Any) -> None:
    on_turn(scene, camera)


def turn(widget: Any, scene: str, camera: Any) -> None:
    """Give all other scenes the camera of one."""
    view = camera.to_plotly_json()
    with widget.batch_update():
        for other in (name for name in widget.layout if name.startswith("scene") and name != scene):
            widget.layout[other].camera = view
