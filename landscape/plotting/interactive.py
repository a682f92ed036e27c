"""What plotly figures share: how they show, their look, titles and captions, bands, error bars, colours and ticks."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.io import renderers, templates

from .captions import label, short, wrapped
from .levels import linear_levels, log_levels
from .paper import png
from .values import LineLike, SurfaceLike, column, finite_of, measured

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
# the wheel scrolls the page; "home" is where the camera was, not plotly's own place
CONFIG = {"scrollZoom": False, "displaylogo": False, "modeBarButtonsToRemove": ["resetCameraDefault3d"]}
_KINDS = ("bar", "contour", "scatter", "scatter3d", "surface")
# read on white and in a dark theme alike: figures have no ground of their own
INK, GRID, GRID_3D = "#75797f", "rgba(128, 128, 128, 0.2)", "#b0b3b8"  # WebGL would mix with white
_CLEAR = "rgba(0, 0, 0, 0)"


class Picture(go.Figure):
    """A plotly figure beside which stands a picture by matplotlib where no front end asked: on GitHub, in nbconvert."""

    _print: Callable[[], Figure] | None = None

    def show(self, *args: Any, **kwargs: Any) -> Any:
        """Show it as `plotly.io.show` does."""
        return super().show(*args, **{"config": CONFIG} | kwargs)

    def to_html(self, config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Return it as `plotly.io.to_html` does."""
        return super().to_html(config or CONFIG, **kwargs)

    def write_html(self, file: Any, config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Write it as `plotly.io.write_html` does."""
        return super().write_html(file, config or CONFIG, **kwargs)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(include, exclude, **{"config": CONFIG} | kwargs)
        if self._print is not None and not asked():
            bundle["image/png"] = base64.b64encode(png(self._print())).decode()
        return bundle

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if renderers.default == "plotly_mimetype" and not asked():
            display(self._repr_mimebundle_(), raw=True)
        elif renderers.render_on_display and renderers.default:
            self.show()
        else:
            print(repr(self))


def asked() -> bool:
    """Return whether a notebook's front end asked for what runs: it names the cell."""
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    return kernel is not None and "cellId" in kernel.get_parent("shell").get("metadata", {})


@cache
def _template() -> go.layout.Template:
    """Return plotly's white template for what is drawn here: the whole of it takes most of the time of a redraw."""
    white = templates["plotly_white"]
    template = go.layout.Template(layout=white.layout, data={kind: white.data[kind] for kind in _KINDS})
    lines = {"gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID}
    template.data.bar[0].update(error_y_color=INK, marker_line_width=0)
    clear = {"paper_bgcolor": _CLEAR, "plot_bgcolor": _CLEAR, "font_color": INK, "title_font_color": INK}
    template.layout.update(clear | {"xaxis": lines, "yaxis": lines})
    return template


def empty_figure() -> go.Figure:
    """Return a figure in the common look, without content."""
    return Picture(layout={"template": _template()})


def finish(figure: go.Figure, title: str, notes: Sequence[str]) -> None:
    """Set title, notes below it, and margins."""
    notes = [line for note in notes if note for line in wrapped(note, 110).split("\n")]
    below = {"text": "<br>".join(notes), "font": {"size": 12}}
    # set one by one: update_layout takes several times as long
    figure.layout.title = {"text": title, "subtitle": below, "x": 0.01, "y": 1, "yanchor": "top", "pad": {"t": 16}}
    panels = 24 * bool(figure.layout.annotations)  # for their titles
    figure.layout.margin = {"l": 10, "r": 10, "t": 56 + 17 * len(notes) + panels, "b": 10}


def say_if_empty(figure: go.Figure, values: Mapping[str, np.ndarray], value: str) -> None:
    """Write into the figure that there is no finite value, if so."""
    if not finite_of(values.values()).size:
        where = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
        figure.add_annotation(text=f"no {value} can be drawn: none is finite", font={"size": 16}, **where)


def value_axis(
    figure: go.Figure, title: str, log: bool, arrays: Sequence[np.ndarray] = (), across: bool = False, **where: Any
) -> None:
    """Title the axis of the values, vertical or across; on a logarithmic scale its ticks are round numbers."""
    update = figure.update_xaxes if across else figure.update_yaxes
    update(title=title + " (log scale)" * log, type="log" if log else "linear", **where)
    positive = finite_of(arrays)
    positive = positive[positive > 0]
    if log and positive.size:
        levels = log_levels(float(positive.min()), float(positive.max()), 5)
        update(tickvals=levels, ticktext=[f"{level:g}" for level in levels], **where)


def band(x: np.ndarray, edges: Sequence[np.ndarray], colour: str, opacity: float = 0.3, **style: Any) -> go.Scatter:
    """Return the area between two curves, interrupted where one has a gap."""
    low, high = edges
    whole = np.isfinite(low) & np.isfinite(high)
    runs = np.split(np.arange(len(x)), np.flatnonzero(np.diff(whole)) + 1)
    around = [
        np.array([[*x[run], *x[run][::-1], np.nan], [*high[run], *low[run][::-1], np.nan]])
        for run in runs
        if whole[run[0]]
    ]
    outline = np.concatenate([np.empty((2, 0)), *around], 1)
    fill = {"fill": "toself", "fillcolor": f"rgba{(*bytes.fromhex(colour[1:]), opacity)}", "hoverinfo": "skip"}
    return go.Scatter(x=outline[0], y=outline[1], mode="lines", line={"width": 0}, **fill, **style)


def error_bars(errors: np.ndarray, **style: Any) -> dict[str, Any]:
    """Return plotly's settings for error bars, none where an error is not known."""
    return {"type": "data", "array": np.nan_to_num(errors), "thickness": 1.2, "width": 4} | style


def hover_place(surface: SurfaceLike) -> str:
    """Return what hovering says of where a point lies."""
    return f"{short(surface, 1)} %{{x:.4g}}<br>{short(surface, 2)} %{{y:.4g}}"


def hover_data(result: LineLike | SurfaceLike, between: str) -> dict[str, Any]:
    """Return what hovering shows: everything measured at the point."""
    names = measured(result)
    text = between.join(f"{name} %{{customdata[{index}]:.4g}}" for index, name in enumerate(names))
    return {"customdata": np.stack([column(result, name) for name in names], -1), "hovertemplate": text}


def colour_axis(value: str, low: float, high: float, ticks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the colours and their bar."""
    bar = {"title": {"text": label(value), "side": "right"}, "thickness": 14, "len": 0.75, **ticks}
    return {"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": bar}


def height_ticks(low: float, high: float, log: bool, levels: Sequence[float] | None = None) -> dict[str, Any]:
    """Return ticks at the levels given, or at round values, between two heights, which are log10 of values if asked."""
    if levels is None:
        levels = log_levels(10**low, 10**high, 5) if log else linear_levels(low, high)
        levels = levels if log or len(levels) < 8 else levels[::2]
    heights = np.log10(levels) if log else np.array(levels)
    inside = (heights >= low) & (heights <= high)
    return {"tickvals": heights[inside], "ticktext": [f"{level:g}" for level in np.array(levels)[inside]]}
