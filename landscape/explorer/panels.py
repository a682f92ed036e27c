"""The explorer's pictures: each is described whole by what is to be seen, never by what was seen before."""

from __future__ import annotations

import functools
import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import plotly
import plotly.graph_objects as go
import traitlets as t
from plotly.io.json import to_json_plotly

from ..plotting import Kind, Scale, plot_together
from ..plotting.captions import axis, caption
from ..plotting.style import laid_out, numbered
from ..plotting.surfaces import describe_surfaces, plot
from ..plotting.values import columns_of, drawable
from ..surfaces import Line, Surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cuts = Mapping[str, tuple[Line, float]]
_HERE = Path(__file__).parent


@functools.cache
def library() -> bytes:
    """Return plotly.js, packed: a third of its size on the way to the browser."""
    return gzip.compress((Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes(), 5)


class Picture(anywidget.AnyWidget):  # type: ignore[misc]
    """Plotly figures in a notebook; what the browser draws is what the traits say, whatever they said before.

    plotly's own FigureWidget is patched from change to change, and does not survive being hidden and shown again.

    Attributes:
        figures: kind of picture → a figure as JSON; what is not there is hidden.
        cuts: name → the traces that lie on a figure and change more often, and the whole slice, as JSON.
        cameras: scene → camera, "all" where they are linked; empty for the figures' own.
        busy: what is being computed while the figures are still those of before, which are dimmed.
    """

    _esm = (_HERE / "picture.js").read_text()
    _css = (_HERE / "explorer.css").read_text()
    library = t.Bytes().tag(sync=True)
    figures = t.Dict().tag(sync=True)
    cuts = t.Dict().tag(sync=True)
    cameras = t.Dict().tag(sync=True)
    linked = t.Bool(True).tag(sync=True)
    busy = t.Unicode().tag(sync=True)


def surfaces_figure(
    surfaces: Mapping[str, Surface], kind: Kind, note: str, own_scales: bool, value: str, scale: Scale
) -> str:
    """Describe surfaces, on one scale or each on its own; ``note`` goes before the caption."""
    described = describe_surfaces(surfaces, value=value, scale=scale, kind=kind)
    rows, wide = laid_out(len(surfaces))
    text = " · ".join(filter(None, [note, caption(surfaces, value)]))
    return _described(plot(replace(described, apart=own_scales)), caption=text, columns=wide, rows=rows)


def resolved(surfaces: Mapping[str, Surface], value: str, scale: Scale) -> dict[str, Any]:
    """Return what is drawn, and on which scale: a slice is drawn on that of the surfaces that it is cut from."""
    return {"value": value, "scale": "log" if columns_of(surfaces, value, scale)[1] else "linear"}


def slice_figure(cuts: Cuts, along: int, value: str, scale: Scale) -> str:
    """Describe the lines along which surfaces are cut, in one plot."""
    lines = {name: line for name, (line, _) in cuts.items()}
    name = axis(next(iter(lines.values())))[0].replace("the direction", f"direction {along + 1}")
    steps = sorted({f"{where:.3g}".replace("-", "−") for _, where in cuts.values()})
    title = f"Slice along {name}, at {' and '.join(steps)} of direction {2 - along}"
    figure = plot_together(lines, value=value, scale=scale, title=title)
    figure.layout.margin = {"l": 60, "r": 10, "t": 26 if len(lines) > 1 else 6, "b": 38}
    figure.layout.legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "tracegroupgap": 0}
    return _described(figure)


def cut_traces(cuts: Cuts, kind: Kind, along: int, value: str, scale: Scale) -> str:
    """Describe the lines that show on the surfaces where they are cut."""
    traces = []
    for index, (line, where) in enumerate(cuts.values()):
        x, y, z = points_of(line, where, along, value, scale == "log")
        common = {"meta": "cut", "mode": "lines", "hoverinfo": "skip", "showlegend": False, "x": x, "y": y}
        if kind == "3d":
            own = {"type": "scatter3d", "z": z, "line": {"width": 6}, "scene": numbered("scene", index)}
        else:
            axes = {f"{letter}axis": numbered(letter, index) for letter in "xy"}
            own = {"type": "scatter", "line": {"width": 2.5}, **axes}
        traces.append(common | own)
    return str(to_json_plotly(traces))


def points_of(line: Line, where: float, along: int, value: str, log: bool) -> Sequence[np.ndarray]:
    """Return x, y and height of the line along which a surface is cut; heights are log10 of the value if asked."""
    steps, across = line.alphas.numpy(), np.full(len(line.alphas), where)
    heights = drawable(line, value, log)
    x, y = (steps, across) if along == 0 else (across, steps)
    return x, y, np.log10(heights) if log else heights


def draw_on(
    figure: Figure, cuts: Cuts, kind: Kind, along: int, cameras: Mapping[str, Any], value: str, scale: Scale
) -> None:
    """Draw into the panels of a matplotlib figure what a hand has done: the lines of the slice, and the turning."""
    for index, (line, where) in enumerate(cuts.values()):
        ax: Any = figure.axes[index]
        x, y, z = points_of(line, where, along, value, scale == "log")
        ax.plot(x, y, *[z] * (kind == "3d"), color="black", linewidth=1.2, zorder=4)
        camera = cameras.get(numbered("scene", index), cameras.get("all"))
        if kind == "3d" and camera:
            dx, dy, dz = (camera["eye"][c] - camera.get("center", {}).get(c, 0) for c in "xyz")
            ax.view_init(math.degrees(math.atan2(dz, math.hypot(dx, dy))), math.degrees(math.atan2(dy, dx)))


def _described(figure: go.Figure, **more: Any) -> str:
    """Return a figure as JSON; its title and caption become text of the page, which fits any width."""
    title = figure.layout.title.text
    figure.layout.title = None
    figure.layout.height = None
    margin = figure.layout.margin
    margin.t = min(margin.t, 26)
    return str(to_json_plotly(figure.to_dict() | {"title": title, "caption": ""} | more))
