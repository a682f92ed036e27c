"""Curves along a direction, one for each network."""

from __future__ import annotations

from collections.abc import Mapping

from .captions import BAND, axis_label, caption, hover, label, notes
from .charts import Axis, Band, Chart, Curve
from .style import colour_of
from .values import LineLike, Scale, band, columns_of, is_empty


def describe_lines(lines: Mapping[str, LineLike], *, value: str = "loss", scale: Scale = "auto") -> Chart:
    """Describe curves in one chart, a colour for each network in the order of the mapping.

    Args:
        lines: name → line.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        scale: ``"linear"``, ``"log"`` (values ≤ 0 are gaps then, as NaN and inf always are) or ``"auto"``: see
            `values.is_log`.
    """
    values, log = columns_of(lines, value, scale)
    bands = {name: edges for name in lines if (edges := band(lines[name], values[name], value, log)) is not None}
    parts: list[Curve | Band] = []
    for index, (name, line) in enumerate(lines.items()):
        alphas, colour, (template, data) = line.alphas.numpy(), colour_of(index), hover(line)
        centre = [] if line.centre is None else [line.centre]
        parts.append(Curve(alphas, values[name], name, colour, index, centre=centre, hover=template, data=data))
        if name in bands:
            parts.append(Band(alphas, *bands[name], opacity=0.18, colour=colour, curve=name))
    ends = (-0.02, 1.02) if value == "accuracy" else (None, None)
    return Chart(
        parts,
        Axis(axis_label(lines.values()), zero=True),
        Axis(label(value), log, ends=ends, values=list(values.values())),
        title=f"{label(value)} along a direction",
        notes=[caption(lines, value), *notes(lines, values, log), *[BAND] * bool(bands)],
        legend=len(lines) > 1,
        empty=value if is_empty(values.values()) else "",
        compared=True,
    )
