"""What plotly figures share: how they show, their look, titles and captions, bands, error bars, colours and ticks."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.io import renderers, templates

from .captions import label, wrapped
from .charts import Axis, Band, Bars, Chart, Curve, Level
from .levels import asinh_ticks, linear_levels, log_levels
from .paper import png
from .values import finite_of

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

        if "plotly_mimetype" in renderers.default.split("+") and not asked():
            bundle = self._repr_mimebundle_()
            bundle.pop("text/html", None)  # plotly before 6.1 adds a page that needs its script
            display(bundle, raw=True)
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


def say_empty(figure: go.Figure, value: str) -> None:
    """Write into the figure that there is no finite value."""
    where = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
    figure.add_annotation(text=f"no {value} can be drawn: none is finite", font={"size": 16}, **where)


def plot(chart: Chart, title: str | None = None) -> go.Figure:
    """Draw a chart; a title replaces its own."""
    figure = empty_figure()
    add_chart(figure, chart)
    finish(figure, title or ": ".join(filter(None, [chart.title, chart.summary])), chart.notes)
    layout = figure.layout
    layout.margin.b += 70 * bool(chart.x.names and not chart.rows)  # the names are turned
    rows = max(140 + 32 * len(chart.x.names), 290)  # no lower than a legend
    layout.height = rows if chart.rows else 337 + layout.margin.t + layout.margin.b
    layout.showlegend, layout.legend.tracegroupgap, layout.barmode = bool(chart.legend), 0, "overlay"
    if isinstance(chart.legend, str):
        layout.legend.title.text = chart.legend
    if chart.compared:
        layout.hovermode = "x unified"
    if chart.empty:
        say_empty(figure, chart.empty)
    return figure


def add_chart(figure: go.Figure, chart: Chart, **where: int) -> None:
    """Draw the parts and the axes of a chart, where a row and a column say."""
    if chart.x.zero:
        figure.add_vline(0, line={"color": "#bbbbbb", "width": 1}, layer="below", **where)
    for part in chart.parts:
        if isinstance(part, Level):
            line = {"color": part.colour, "width": 2 if part.dash == "dash" else 1, "dash": part.dash}
            add_line = figure.add_vline if chart.rows else figure.add_hline
            add_line(part.y, line=line, name=part.name, showlegend=True, **where)
            continue
        for trace in _TRACES[type(part)](part, _placed(part.x, chart.x), chart.rows):
            listed = {other.name for other in figure.data if other.showlegend}
            trace.update(showlegend=bool(trace.name) and trace.name not in listed)
            figure.add_trace(trace, **where)
    along = [part.x for part in chart.parts if isinstance(part, Curve)]
    settings = [{"title": chart.x.title} | _axis(chart.x, along), _axis(chart.y)]
    settings[1] |= {"title": chart.y.title + " (log scale)" * chart.y.log, "type": "log" if chart.y.log else "linear"}
    if chart.rows:
        settings[0] |= {"autorange": "reversed", "automargin": True}
    elif chart.x.names:
        settings[0] |= {"categoryorder": "array", "categoryarray": chart.x.names, "tickangle": -60}
    else:
        settings[0] |= {"zeroline": False} | ({"hoverformat": ".4g"} if chart.compared else {})
    x, y = reversed(settings) if chart.rows else settings
    figure.update_xaxes(**x, **where)
    figure.update_yaxes(**y, **where)


def _axis(axis: Axis, along: Sequence[Any] = ()) -> dict[str, Any]:
    """Return the ends and ticks of an axis along which something lies."""
    settings: dict[str, Any] = {"type": "log"} if axis.log else {}
    if axis.ends != (None, None):
        settings["range"] = [np.log10(end) if axis.log and end is not None else end for end in axis.ends]
    positive = finite_of(axis.values)
    positive = positive[positive > 0]
    if axis.log and positive.size:
        settings["tickvals"] = log_levels(float(positive.min()), float(positive.max()), 5)
        settings["ticktext"] = [f"{level:g}" for level in settings["tickvals"]]
    elif axis.log:
        settings |= {"exponentformat": "power", "dtick": 1}
    if axis.asinh:
        ticks = asinh_ticks(axis.asinh, min(map(min, along)), max(map(max, along)))
        settings |= {"tickvals": _placed(ticks, axis), "ticktext": [f"{tick:g}" for tick in ticks]}
    if axis.whole and len(places := np.unique(np.concatenate(along))) <= 10:
        settings["tickvals"] = places
    return settings


def _placed(x: Any, axis: Axis) -> Any:
    """Return where points stand along an axis."""
    if axis.names:
        return [axis.names[place] for place in x]
    return np.arcsinh(np.asarray(x) / axis.asinh) if axis.asinh else x


def _curve(curve: Curve, x: Any, rows: bool) -> Iterator[go.Scatter]:
    """Give the stems, the points, and the marked centre, each as a trace."""
    if curve.floor is not None:
        stems = np.stack([np.full(len(curve.y), curve.floor), curve.y, np.full(len(curve.y), np.nan)], 1).ravel()
        line = {"color": curve.colour, "width": 1.5}
        yield go.Scatter(x=np.repeat(x, 3), y=stems, mode="lines", line=line, hoverinfo="skip")
    symbol = SYMBOLS[(curve.look or 0) % len(SYMBOLS)]
    small = curve.centre is not None or curve.look is None
    marked = curve.look is not None or not curve.joined
    more: dict[str, Any] = {"customdata": curve.errors if curve.data is None else curve.data}
    if marked:
        more["marker"] = {"color": curve.colour, "symbol": symbol + "-open" * curve.hollow, "size": 6 if small else 8}
    if curve.errors is not None:
        bars = {"type": "data", "array": np.nan_to_num(curve.errors), "thickness": 1.2, "width": 4}
        more["error_x" if rows else "error_y"] = bars
    yield go.Scatter(
        {"x": curve.y, "y": x} if rows else {"x": x, "y": curve.y},
        name=curve.name,
        legendgroup=curve.name,
        mode="+".join(["lines"] * curve.joined + ["markers"] * marked),
        line={"color": curve.colour, "width": 2, "dash": "dash" if curve.dashed else None},
        hovertemplate=curve.hover,
        connectgaps=False,
        **more,
    )
    if curve.centre is not None:
        marker = {"symbol": symbol, "size": 12, "color": curve.colour, "line": {"color": "white", "width": 1.5}}
        silent = {"hoverinfo": "skip", "legendgroup": curve.name, "mode": "markers"}
        yield go.Scatter(x=x[curve.centre], y=curve.y[curve.centre], marker=marker, **silent)


def _band(band: Band, x: np.ndarray, _: bool) -> Iterator[go.Scatter]:
    """Give the area between two curves, interrupted where one has a gap."""
    whole = np.isfinite(band.low) & np.isfinite(band.high)
    runs = np.split(np.arange(len(x)), np.flatnonzero(np.diff(whole)) + 1)
    around = [
        np.array([[*x[run], *x[run][::-1], np.nan], [*band.high[run], *band.low[run][::-1], np.nan]])
        for run in runs
        if whole[run[0]]
    ]
    outline = np.concatenate([np.empty((2, 0)), *around], 1)
    fill = {"fill": "toself", "fillcolor": f"rgba{(*bytes.fromhex(band.colour[1:]), band.opacity)}"}
    named = {"name": band.name, "legendgroup": band.curve or band.name, "hoverinfo": "skip"}
    yield go.Scatter(x=outline[0], y=outline[1], mode="lines", line={"width": 0}, **fill, **named)


def _bars(bars: Bars, x: Any, _: bool) -> Iterator[go.Bar]:
    whiskers = {"type": "data", "array": bars.errors, "thickness": 1.2, "width": 3}
    words = {"text": bars.texts, "textposition": "none", "name": bars.name}
    hover = "%{x}<br>%{y:.4g}<br>%{text}<extra></extra>"
    yield go.Bar(x=x, y=bars.y, error_y=whiskers, marker_color=bars.colour, hovertemplate=hover, **words)


_TRACES: dict[type, Callable[..., Iterator[Any]]] = {Curve: _curve, Band: _band, Bars: _bars}


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
