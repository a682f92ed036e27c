"""One number per layer, and beside it the bits that each layer got: `plot` with plotly, `draw` with matplotlib."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .charts import Axis, Bars, Chart
from .pairing import drawing_function
from .style import COLOURS
from .values import Scale, is_log

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Mapping[str, float | Sequence[float]]
_GREY = "#999999"
_NOTHING = 1e-6  # of the largest: a deflated estimate leaves rounding errors in blocks of zeros


class Row(NamedTuple):
    """One layer: its value, its standard error or NaN, and the label of its bits or ""."""

    layer: str
    value: float
    error: float
    bits: str

    @property
    def width(self) -> int:
        """Of the weights, 0 where it is not known."""
        return int(self.bits[1:].partition("A")[0] or 0)


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
    options = {"bits": bits, "quantity": quantity, "scale": scale, "title": title}
    return drawing_function("layers.layers", "plot")(values, **options)  # type: ignore[no-any-return]


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
    options = {"bits": bits, "quantity": quantity, "scale": scale, "title": title}
    return drawing_function("layers.layers", "draw")(values, ax, **options)  # type: ignore[no-any-return]


def describe_layers(
    values: Values, *, bits: Mapping[str, str | int] | None = None, quantity: str = "Trace", scale: Scale = "auto"
) -> Chart:
    """Describe a bar for each layer; see `plot_layers`."""
    rows, left_out = _rows(values, bits)
    drawn = [np.array([row.value for row in rows])]
    return Chart(
        _bars(rows, bits is not None),
        Axis("", names=[row.layer for row in rows]),
        Axis(quantity, is_log(scale, drawn), values=drawn),
        title=f"{quantity} by layer",
        notes=[left_out],
        legend="weights" if bits is not None else False,
    )


def _rows(values: Values, bits: Mapping[str, str | int] | None) -> tuple[list[Row], str]:
    """Return the layers in their order, and what is left out.

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
        if any(row.layer == layer for row in rows):
            raise ValueError(f"values must have one number per layer, got two for {layer}: leave one out")
        number, error = (value, np.nan) if np.ndim(value) == 0 else value  # type: ignore[misc]
        rows.append(Row(layer, float(number), float(error), labels.get(layer, "")))  # type: ignore[arg-type]
        shown[layer] = name if owners[name.rpartition(".")[0]] > 1 else layer
    unknown = set(labels) - {row.layer for row in rows}
    parts = {name for name in unknown if name.endswith(".products")}  # of attention: no weights of their own
    if unknown - parts:
        raise ValueError(f"values must have every layer that bits name, got none for {sorted(unknown - parts)[:3]}")
    largest = max((abs(row.value) for row in rows if np.isfinite(row.value)), default=0.0)
    kept = [row for row in rows if row.bits or not abs(row.value) + np.nan_to_num(row.error) <= _NOTHING * largest]
    kept, zeros = kept or rows, len(rows) - len(kept or rows)
    left_out = f"{zeros} tensors at zero are left out" * bool(zeros)
    return [row._replace(layer=shown[row.layer]) for row in kept], left_out


def _bars(rows: list[Row], chosen: bool) -> list[Bars]:
    """Return bars by the bits of the weights, the fewest and darkest first, the rest in grey."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    widths = sorted({row.width for row in rows if row.width})
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(widths), 2)))
    colours = {width: to_hex(shade) for width, shade in zip(widths, shades, strict=False)}
    bars = []
    for width in [*widths, 0]:
        places = [place for place, row in enumerate(rows) if row.width == width]
        _, heights, errors, texts = zip(*(rows[place] for place in places), strict=True) if places else [()] * 4
        name, colour = (f"{width} bits", colours[width]) if width else ("not chosen", _GREY if chosen else COLOURS[0])
        bars += [Bars(places, heights, errors, texts, name, colour)] * bool(places)
    return bars
