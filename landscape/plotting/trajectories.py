"""The path of training over a surface."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from . import paper, surfaces
from .captions import axis_label, caption, notes
from .contours import draw_map
from .levels import shared_levels
from .style import HIGHLIGHT
from .values import Scale, SurfaceLike, drawable, is_empty, is_log


class Path(NamedTuple):
    """The path, the surface over its plane, its losses there, and whether these are drawn as logarithms."""

    path: Any
    surface: SurfaceLike
    log: bool

    @property
    def share(self) -> str:
        """How much of the path lies in the plane."""
        return f"{100 * float(self.path.explained.sum()):.3g} % of the squared distance lies in the plane"


def describe_trajectory(path: Any, *, surface: SurfaceLike, scale: Scale = "auto") -> Path:
    """Describe the path of training over a surface.

    Args:
        path: the trajectory.
        surface: over its plane, measured with ``directions=`` the trajectory.
        scale: see `surfaces.describe_surfaces`.
    """
    path.check(surface)
    return Path(path, surface, is_log(scale, [surface.loss.numpy(), path.loss.numpy(), path.plane_loss.numpy()]))


def plot(given: Path, title: str | None = None) -> go.Figure:
    """Draw the path in 3-D over a surface: at the checkpoints' own losses, and as a shadow on the sheet."""
    path, surface, log = given
    losses, plane = path.loss.numpy(), path.plane_loss.numpy()
    title = title or "Optimization on the loss surface" + " (log scale)" * log
    figure = surfaces.plot(surfaces.describe_surfaces({"": surface}, scale="log" if log else "linear"), title)
    figure.update_traces(line_color="black", selector={"type": "scatter3d"})  # the plumb line is no part of the path
    heights, shadow = (np.log10(losses), np.log10(plane)) if log else (losses, plane)
    along = {"x": path.coordinates[:, 0].numpy(), "y": path.coordinates[:, 1].numpy()}
    hover = (
        "checkpoint %{pointNumber}<br>its own loss %{customdata[0]:.4g}<br>the plane's %{customdata[1]:.4g}"
        "<br>off the plane by %{customdata[2]:.3g} of %{customdata[3]:.3g}<extra></extra>"
    )
    columns = np.stack([path.loss, path.plane_loss, path.off_plane, path.distance], -1)
    lift = 0.01 if log else 0.01 * float(np.ptp(drawable(surface, "loss")[np.isfinite(surface.loss.numpy())]))
    edge, points = {"color": HIGHLIGHT, "width": 2}, along | {"customdata": columns, "hovertemplate": hover}
    own = {"line": {"color": HIGHLIGHT, "width": 5}, "marker": {"size": 4, "color": "white", "line": edge}}
    dotted = {"line": {"color": "black", "width": 3, "dash": "dot"}, "marker": {"size": 2.5, "color": "black"}}
    curves = ("checkpoints, their own loss", heights, own), ("the same on the plane", shadow + lift, dotted)
    for name, z, look in curves:
        figure.add_scatter3d(**points, z=z, mode="lines+markers", name=name, **look)
    low, high = figure.layout.scene.zaxis.range
    finite = heights[np.isfinite(heights)]
    figure.update_scenes(zaxis_range=[min(low, *finite), max(high, *finite)])
    figure.update_layout(showlegend=True, legend={"x": 0.01, "y": 0.02, "yanchor": "bottom"})
    figure.layout.title.subtitle.text += f"<br>{given.share}"
    figure.update_layout(margin_t=figure.layout.margin.t + 20)
    return figure


def draw(given: Path, ax: Axes | None = None, title: str | None = None) -> Figure:
    """Draw the path over the surface's contours; a marker's colour is the checkpoint's own loss on the same scale.

    Args:
        given: the path.
        ax: axes to draw into, new ones by default; a title that they have stays.
        title: stands above what was measured.
    """
    path, surface, log = given
    losses = path.loss.numpy()
    values = drawable(surface, "loss", log)
    levels = shared_levels([values, losses[(losses > 0) | (not log)]], "loss", log)
    with paper.style():
        ax = ax or paper.new_axes(3.0)
        draw_map(ax, surface, values, levels)
        x, y = path.coordinates.T.numpy()
        halo = [withStroke(linewidth=3, foreground="white")]
        ax.plot(x, y, color="black", linewidth=1.2, path_effects=halo, zorder=3)
        colours: Any = levels.steps()
        ax.scatter(x, y, 22, losses, norm=colours.norm, cmap=colours.cmap, edgecolors="black", linewidths=0.8, zorder=4)
        near: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "path_effects": halo, "zorder": 5}
        inwards = 1 if x[0] < sum(surface.alphas[[0, -1]].tolist()) / 2 else -1
        ax.annotate("start", (x[0], y[0]), (6 * inwards, 5), ha="left" if inwards > 0 else "right", **near)
        bar = ax.figure.colorbar(colours, cax=ax.inset_axes((1.04, 0, 0.05, 1)), label="Loss", format="%g")
        bar.minorticks_off()
        paper.label_axes(ax, axis_label([surface], 1), axis_label([surface], 2))
        about = [caption({"": surface}, "loss"), *notes({"": surface}, {"": values}, log)]
        paper.entitle(ax, title, given.share, "markers: each checkpoint's own loss", *about)
        if is_empty([values]):
            paper.say_empty(ax, "loss")
    return paper.figure_of(ax)
