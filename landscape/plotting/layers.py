"""One number per layer, and beside it the bits that each layer got: `plot` with plotly, `draw` with matplotlib."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from .pairing import paired
from .style import COLOURS
from .values import Scale, is_log

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Mapping[str, float | Sequence[float]]
Row = tuple[str, float, float, str]
_GREY = "#999999"
_NOTHING = 1e-6  # of the largest: a deflated estimate leaves rounding errors in blocks of zeros


@paired
def plot_layers(
    values: Values,
    *,
    bits: Mapping[str, str | int] | None = None,
    quantity: str = "Trace",
    scale: Scale = "auto",
    title: str | None = None,
) -> go.Figure:
    """Draw one bar per layer, coloured by the bits of its weights, to hover over.

    Args:
        values: layer → number, or (number, standard error) as in ``trace(model, per_layer=True).layers``; "conv1" and
            "conv1.weight" are one layer. Values that are not finite are gaps; those at zero beside others (biases that
            do not vary) are left out, and counted below the title.
        bits: layer → "W4A4" or a number, say a policy's ``.bits``; layers that are not in it are grey.
        quantity: what the numbers are.
        scale: ``"linear"``, ``"log"`` or ``"auto"``: logarithmic where all values are positive and the largest is more
            than 30 times the smallest.
        title: None takes the quantity.

    Returns:
        A plotly figure.

    Raises:
        ValueError: no values or two for one layer, bits of layers that have none, bits that do not look like "W4A4".

    Example:
        >>> import landscape
        >>> figure = landscape.plot_layers({"conv": (3.0, 0.5), "fc": 2.0}, bits={"conv": "W4A4"})
        >>> [bar.name for bar in figure.data]
        ['4 bits', 'not chosen']
    """
    from . import interactive

    rows, left_out = _rows(values, bits)
    figure = interactive.empty_figure()
    for label, colour, chosen in _groups(rows, bits is not None):
        figure.add_bar(
            x=[row[0] for row in chosen],
            y=[row[1] for row in chosen],
            error_y={"type": "data", "array": [row[2] for row in chosen], "thickness": 1.2, "width": 3},
            text=[row[3] for row in chosen],
            textposition="none",
            marker_color=colour,
            name=label,
            hovertemplate="%{x}<br>%{y:.4g}<br>%{text}<extra></extra>",
        )
    names, heights = [row[0] for row in rows], [np.array([row[1] for row in rows])]
    interactive.value_axis(figure, quantity, is_log(scale, heights), heights)
    figure.update_xaxes(categoryorder="array", categoryarray=names, tickangle=-60)
    interactive.finish(figure, title or f"{quantity} by layer", [left_out])
    figure.update_layout(barmode="overlay", showlegend=bits is not None, legend_title="weights", height=440)
    figure.layout.margin.b = 80
    return figure


def draw_layers(
    values: Values,
    ax: Axes | None = None,
    *,
    bits: Mapping[str, str | int] | None = None,
    quantity: str = "Trace",
    scale: Scale = "auto",
    title: str | None = None,
) -> Figure:
    """Draw for print what `plot_layers` draws, the bits above the bars; return the figure.

    Args:
        values: see `plot_layers`.
        ax: matplotlib axes to draw into; None makes a figure of two columns' width.
        bits, quantity, scale: see `plot_layers`.
        title: stands above the axes.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: as `plot_layers`.

    Example:
        >>> import landscape
        >>> figure = landscape.draw_layers({"conv": (3.0, 0.5), "fc": 2.0}, quantity="Trace, filter-relative")
        >>> figure.axes[0].get_ylabel()
        'Trace, filter-relative'
    """
    from . import paper

    with paper.style():
        ax = ax or paper.new_axes(2.4, width=paper.TWO_COLUMNS)
        paper.entitle(ax, title, draw_bars(ax, values, bits, quantity, scale))
    return paper.figure_of(ax)


def draw_bars(
    ax: Axes, values: Values, bits: Mapping[str, str | int] | None = None, quantity: str = "", scale: Scale = "auto"
) -> str:
    """Draw what `draw_layers` does into axes, and return what is left out."""
    rows, left_out = _rows(values, bits)
    positions = {row[0]: k for k, row in enumerate(rows)}
    for label, colour, chosen in _groups(rows, bits is not None):
        x = [positions[row[0]] for row in chosen]
        errors = np.nan_to_num([row[2] for row in chosen])
        heights = [row[1] if np.isfinite(row[1]) else np.nan for row in chosen]
        whiskers = {"elinewidth": 0.7, "capsize": 1.5, "ecolor": "0.25"}
        ax.bar(x, heights, 0.8, color=colour, label=label, yerr=errors if errors.any() else None, error_kw=whiskers)
    if is_log(scale, [np.array([row[1] for row in rows])]):
        ax.set_yscale("log")
    for name, height, error, text in rows:
        if text and np.isfinite(height):
            top = max(height, 0) + np.nan_to_num(error)
            short: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 6}
            ax.annotate(text.replace("W", "").replace("A", "/"), (positions[name], top), **short)
    ax.set_xticks(range(len(rows)), [row[0] for row in rows], rotation=60, ha="right", rotation_mode="anchor")
    ax.set(ylabel=quantity, xlim=(-0.7, len(rows) - 0.3))
    ax.margins(y=0.12)
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    if bits is not None:
        ax.legend(title="weights", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return left_out


def _rows(values: Values, bits: Mapping[str, str | int] | None) -> tuple[list[Row], str]:
    """Return (layer, value, standard error or NaN, label of its bits or "") in their order, and what is left out.

    A weight carries its layer's name, unless the layer has other tensors here, such as BatchNorm's or a bias.
    """
    if not values:
        raise ValueError("values must hold at least one layer, got none")
    labels = {n: f"W{b}A{b}" if isinstance(b, Integral) else str(b).upper() for n, b in (bits or {}).items()}
    for name, label in labels.items():
        if not re.fullmatch(r"W[1-9]\d*A[1-9]\d*", label):
            raise ValueError(f'bits must look like "W4A4" or be whole numbers, got {label!r} for {name}')
    rows: list[Row] = []
    shown: dict[str, str] = {}
    owners = Counter(name.rpartition(".")[0] for name in values)
    for name, value in values.items():
        layer = re.sub(r"\.(in_proj_)?weight$", "", name)
        if np.ndim(value) and (len(value) != 2 or value[1] < 0):  # type: ignore[arg-type, index]
            raise ValueError(f"values must be numbers or (number, standard error >= 0), got {value!r} for {name}")
        if any(row[0] == layer for row in rows):
            raise ValueError(f"values must have one number per layer, got two for {layer}: leave one out")
        number, error = (value, np.nan) if np.ndim(value) == 0 else value  # type: ignore[misc]
        rows.append((layer, float(number), float(error), labels.get(layer, "")))  # type: ignore[arg-type]
        shown[layer] = name if owners[name.rpartition(".")[0]] > 1 else layer
    unknown = set(labels) - {row[0] for row in rows}
    parts = {name for name in unknown if name.endswith(".products")}  # of attention: no weights of their own
    if unknown - parts:
        raise ValueError(f"values must have every layer that bits name, got none for {sorted(unknown - parts)[:3]}")
    largest = max((abs(row[1]) for row in rows if np.isfinite(row[1])), default=0.0)
    seen = [row for row in rows if row[3] or not abs(row[1]) + np.nan_to_num(row[2]) <= _NOTHING * largest] or rows
    missing = len(rows) - len(seen)
    return [(shown[row[0]], *row[1:]) for row in seen], f"{missing} tensors at zero are left out" * bool(missing)


def _groups(rows: list[Row], chosen: bool) -> list[tuple[str, str, list[Any]]]:
    """Return (legend, colour, rows) by the bits of the weights, the fewest and darkest first, the rest in grey."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    widths = sorted({_width(row[3]) for row in rows if row[3]})
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(widths), 2)))
    named = {width: (f"{width} bits", to_hex(shade)) for width, shade in zip(widths, shades, strict=False)}
    groups = [(*named[width], [row for row in rows if row[3] and _width(row[3]) == width]) for width in widths]
    rest = [row for row in rows if not row[3]]
    return groups + ([("not chosen", _GREY if chosen else COLOURS[0], rest)] if rest else [])


def _width(text: str) -> int:
    return int(text[1:].partition("A")[0])
