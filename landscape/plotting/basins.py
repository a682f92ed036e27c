"""The basin of a network: the plane with its rim, the lines to other networks, and what each layer's rounding takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from . import interactive, paper, surfaces
from .captions import caption
from .charts import Axis, Chart, Curve, Level
from .contours import level_lines
from .lines import describe_lines
from .style import DOUBTFUL, HIGHLIGHT, colour_of
from .values import Scale, check_option, is_log

View = Literal["auto", "plane", "lines", "layers"]


class Plane(NamedTuple):
    """The plane of a basin, and whether its losses are drawn as logarithms."""

    basin: Any
    log: bool

    @property
    def surface(self) -> Any:
        """The surface over the plane."""
        return self.basin.surfaces[""]

    @property
    def map(self) -> surfaces.Surfaces:
        """The plane as a map."""
        return surfaces.describe_surfaces({"": self.surface}, scale="log" if self.log else "linear", kind="contour")

    @property
    def rim(self) -> np.ndarray:
        """Where it runs: x and y along the line at which the loss exceeds that of the model by the margin."""
        surface = self.surface
        level = float(surface.loss[surface.centre]) + self.basin.margin
        return level_lines(surface, surface.loss.numpy(), [level])[:2]

    @property
    def told(self) -> str:
        """What the rim is."""
        return f"the model's loss + {self.basin.margin:.3g}"

    @property
    def networks(self) -> list[tuple[str, float, float]]:
        """Name, x and y of the model and of both networks."""
        names = [row["network"] for row in self.basin.rows]
        return [(name, *place) for name, place in zip(names, [[0.0, 0.0], *self.basin.about["places"]], strict=True)]


def describe_basin(basin: Any, *, view: View = "auto", scale: Scale = "auto") -> Plane | Chart:
    """Describe the plane with the rim of the basin, the lines to the networks, or the layers.

    Args:
        basin: what to draw.
        view: ``"plane"`` (two networks), ``"lines"``, ``"layers"`` (length of each weight's way over the width of the
            basin along it), or ``"auto"``: the plane where there is one, else the lines.
        scale: of the loss; ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.

    Raises:
        ValueError: ``"plane"`` of a basin without.
    """
    check_option("view", view, View)
    if view == "plane" and not basin.surfaces:
        raise ValueError(f"view must be 'lines' or 'layers' where there is no plane: of {len(basin.lines)} networks")
    if view == "layers":
        return _layers(basin)
    if view == "plane" or (view == "auto" and basin.surfaces):
        return Plane(basin, is_log(scale, [basin.surfaces[""].loss.numpy()]))
    return _lines(basin, scale)


def _lines(basin: Any, scale: Scale) -> Chart:
    own = np.array([row["loss"] for row in basin.rows])
    log = is_log(scale, [own, *(line.loss.numpy() for line in basin.lines.values())])
    chart = describe_lines(basin.lines, scale="log" if log else "linear")
    line = next(iter(basin.lines.values()))
    rim = Level(float(line.loss[line.centre]) + basin.margin, f"the model's + {basin.margin:.3g}", "dash", DOUBTFUL)
    places = np.array([0.0] + [1.0] * len(basin.lines))
    ends = Curve(places, own, "each network's own loss", "#000000", 1, joined=False, hollow=True)
    x, y = Axis("Share of the way to the network", zero=True), replace(chart.y, values=[*chart.y.values, own])
    return replace(chart, parts=[*chart.parts, rim, ends], x=x, y=y, title="Loss on the ways to networks", legend=True)


def _layers(basin: Any) -> Chart:
    known, curves = {row["layer"] for row in basin.layers if row["ratio"]}, list[Curve]()
    layers = [layer for layer in dict.fromkeys(row["layer"] for row in basin.layers) if layer in known]
    for index, name in enumerate(basin.lines):
        own = {row["layer"]: row for row in basin.layers if row["network"] == name and row["ratio"]}
        columns = [[own.get(layer, {}).get(key, np.nan) for layer in layers] for key in ("ratio", "ratio_stderr")]
        values, errors = np.array(columns)
        style: dict[str, Any] = {"joined": False, "hover": "%{y}: %{x:.3g} ± %{customdata:.2g}<extra></extra>"}
        curves.append(Curve(range(len(layers)), values, str(name), colour_of(index), index, errors=errors, **style))
    far = sum(not row["ratio"] for row in basin.layers)
    return Chart(
        [Level(1.0, "the rim", "dash", HIGHLIGHT), *curves],
        Axis("", names=[layer.removesuffix(".weight") for layer in layers]),
        Axis("Way of each layer alone, in widths of the basin", True, values=[curve.y for curve in curves]),
        title="Which layers step over the rim",
        notes=[caption({"": basin}), *[f"{far} without a rim within 8 ways, not drawn"] * bool(far)],
        empty="ratio" if not layers else "",
        rows=True,
    )


def plot(given: Plane | Chart, title: str | None = None) -> go.Figure:
    """Draw the plane, or a chart, with plotly."""
    if isinstance(given, Chart):
        return interactive.plot(given, title)
    title = title or "The basin, and where the networks lie" + " (log scale)" * given.log
    figure = surfaces.plot(given.map, title)
    x, y = given.rim
    line = {"color": HIGHLIGHT, "width": 3}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", name=given.told, showlegend=True)
    figure.layout.legend.update(x=0.01, y=0.99, bgcolor="rgba(255, 255, 255, 0.7)", font_color="black")
    names, *places = zip(*given.networks, strict=True)
    marker = {"size": 10, "color": "white", "line": {"color": "black", "width": 2}}
    font = {"color": "black", "size": 13, "shadow": "0 0 3px white, 0 0 3px white, 0 0 3px white"}
    words = {"text": names, "textposition": "top center", "textfont": font, "hovertemplate": "%{text}<extra></extra>"}
    figure.add_scatter(x=places[0], y=places[1], mode="markers+text", marker=marker, showlegend=False, **words)
    return figure


def draw(given: Plane | Chart, ax: Axes | None = None, title: str | None = None) -> Figure:
    """Draw the plane, or a chart, for print."""
    if isinstance(given, Chart):
        return paper.draw(given, ax, title)
    with paper.style():
        ax = ax or paper.new_axes(3.0, box_aspect=1)
        surfaces.draw(given.map, ax, title)
        ax.plot(*given.rim, color=HIGHLIGHT, linewidth=1.6, zorder=3, label=given.told)
        ax.legend(loc="upper left", framealpha=0.7, edgecolor="none", fontsize=6, borderpad=0.2)
        for index, (name, x, y) in enumerate(given.networks):
            if index:  # a cross marks the model
                ax.plot(x, y, "o", color="white", markeredgecolor="black", markersize=4.5, zorder=4)
            halo = [withStroke(linewidth=2, foreground="white")]
            ax.annotate(name, (x, y), (0, 5), textcoords="offset points", ha="center", path_effects=halo, zorder=5)
    return paper.figure_of(ax)
