"""The path of training over a surface: `plot` with plotly, `draw` with matplotlib, each imported where it is used."""

from __future__ import annotations

from typing import Any

import numpy as np

from .captions import axis_label, caption, notes, wrapped
from .values import SurfaceLike, drawable

_PATH = "#D55E00"


def plot(path: Any, surface: SurfaceLike) -> Any:
    """Draw the path in 3-D over the surface: at its own losses, and as a shadow on the sheet; heights are log10."""
    import plotly.graph_objects as go

    from . import interactive

    path.check(surface)
    log = bool((surface.loss[surface.loss.isfinite()] > 0).all() and (path.loss > 0).all())
    figure = interactive.surfaces(
        {"": surface}, log=log, title="Optimization on the loss surface" + " (log scale)" * log
    )
    figure.update_traces(line_color="black", selector={"type": "scatter3d"})  # the plumb line is no part of the path
    place = np.log10 if log else np.asarray
    heights, shadow = place(path.loss.numpy()), place(path.plane_loss.numpy())
    along = {"x": path.coordinates[:, 0].numpy(), "y": path.coordinates[:, 1].numpy()}
    told = np.stack([path.loss, path.plane_loss, path.off_plane, path.distance], -1)
    hover = (
        "checkpoint %{pointNumber}<br>its own loss %{customdata[0]:.4g}<br>the plane's %{customdata[1]:.4g}"
        "<br>off the plane by %{customdata[2]:.3g} of %{customdata[3]:.3g}<extra></extra>"
    )
    style: dict[str, Any] = {"mode": "lines+markers", "customdata": told, "hovertemplate": hover}
    lift = 0.01 * float(np.ptp(drawable(surface, "loss")[np.isfinite(surface.loss.numpy())])) if not log else 0.01
    figure.add_trace(
        go.Scatter3d(
            **along,
            **style,
            z=heights,
            name="checkpoints, their own loss",
            line={"color": _PATH, "width": 5},
            marker={"size": 4, "color": "white", "line": {"color": _PATH, "width": 2}},
        )
    )
    figure.add_trace(
        go.Scatter3d(
            **along,
            **style,
            z=shadow + lift,
            name="the same on the plane",
            line={"color": "black", "width": 3, "dash": "dot"},
            marker={"size": 2.5, "color": "black"},
        )
    )
    low, high = figure.layout.scene.zaxis.range
    finite = heights[np.isfinite(heights)]
    figure.update_scenes(zaxis_range=[min(low, *finite), max(high, *finite)])
    figure.update_layout(showlegend=True, legend={"x": 0.01, "y": 0.02, "yanchor": "bottom"})
    figure.layout.title.subtitle.text += f"<br>{share(path)}"
    figure.update_layout(margin_t=figure.layout.margin.t + 20)
    return figure


def draw(path: Any, surface: SurfaceLike, ax: Any = None) -> Any:
    """Draw the path over the surface's contours; a marker's colour is the checkpoint's own loss on the same scale."""
    import matplotlib.pyplot as plt
    from matplotlib.patheffects import withStroke

    from . import paper

    path.check(surface)
    values, own = drawable(surface, "loss"), path.loss.numpy()
    scale = paper._scale([values, np.where(np.isfinite(own), own, np.nan)], "loss", None)
    with plt.rc_context(paper._RC):
        ax = ax or paper._new_axes(3.0)
        titled = bool(ax.get_title())
        paper.contours(surface, ax, levels=scale.levels)
        x, y = path.coordinates.T.numpy()
        halo = [withStroke(linewidth=3, foreground="white")]
        ax.plot(x, y, color="black", linewidth=1.2, path_effects=halo, zorder=3)
        colours = scale.steps()
        ax.scatter(x, y, 22, own, norm=colours.norm, cmap=colours.cmap, edgecolors="black", linewidths=0.8, zorder=4)
        near = {"textcoords": "offset points", "fontsize": 7, "path_effects": halo, "zorder": 5}
        inwards = 1 if x[0] < sum(surface.alphas[[0, -1]].tolist()) / 2 else -1
        ax.annotate("start", (x[0], y[0]), (6 * inwards, 5), ha="left" if inwards > 0 else "right", **near)
        bar = ax.figure.colorbar(colours, cax=ax.inset_axes((1.04, 0, 0.05, 1)), label="Loss", format="%g")
        bar.minorticks_off()
        ax.set(xlabel=axis_label(surface, 1), ylabel=axis_label(surface, 2))
        if not titled:
            about = [caption({"": surface}, "loss"), *notes({"": surface}, {"": values})]
            told = [share(path), "markers: each checkpoint's own loss", wrapped(" · ".join(about), 54)]
            ax.set_title("\n".join(told), fontsize=7, color="0.4")
    return ax


def share(path: Any) -> str:
    """Say how much of the path lies in the plane."""
    return f"{100 * float(path.explained.sum()):.3g} % of the squared distance lies in the plane"
