"""What depends on how far the weights move: curvature at a radius, and the increase of the loss, with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import interactive, paper
from .captions import caption, quantity
from .pairing import paired
from .style import COLOURS, DOUBTFUL, HIGHLIGHT
from .values import WIDE, Scale, check_option, finite_of, is_log

_BY = {"Radius": "radius", "Weights rounded to": "rounding", "": "measure"}
_RADIUS = "Length of the step ε, in norms of the weights"


class Series(NamedTuple):
    """Loss increases with error bars against a radius or a name; NaN where an error is not known."""

    name: str
    x: Sequence[Any]
    values: np.ndarray
    errors: np.ndarray


@paired
def plot_increases(sharpness: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw loss increases with their standard errors: by radius, by bits, or a row for every measure of a table.

    Args:
        sharpness: what to draw.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
        title: replaces the default one.
    """
    series, x_title = _series(sharpness)
    rows = not x_title  # the names of measures are long: they stand at the vertical axis
    hover = "%{y}: %{x:.4g} ± %{customdata:.2g}" if rows else "%{x}: %{y:.4g} ± %{customdata:.2g}"
    figure = interactive.empty_figure()
    for index, one in enumerate(series):
        points = {"x": one.values, "y": one.x} if rows else {"x": one.x, "y": one.values}
        figure.add_scatter(
            **points,
            **{"error_x" if rows else "error_y": interactive.error_bars(one.errors)},
            customdata=one.errors,
            mode="markers" if rows else "lines+markers",
            line={"color": COLOURS[index], "width": 2},
            marker={"color": COLOURS[index], "symbol": interactive.SYMBOLS[index], "size": 8},
            hovertemplate=hover + "<extra></extra>",
            name=one.name,
        )
    values = [one.values for one in series]
    log = is_log(scale, values)
    interactive.value_axis(figure, "Loss increase", log, values, across=rows)
    if rows:
        figure.update_xaxes(zeroline=not log)
        figure.update_yaxes(autorange="reversed", automargin=True)
    else:
        figure.update_xaxes(title=x_title, zeroline=False, type="log" if _is_wide(series[0].x) else None)
    interactive.finish(figure, title or f"Loss increase by {_BY[x_title]}", _notes(sharpness))
    figure.update_layout(height=140 + 32 * len(series[0].x) if rows else 400, showlegend=len(series) > 1)
    return figure


def draw_increases(
    sharpness: Any, ax: Axes | None = None, *, scale: Scale = "auto", title: str | None = None
) -> Figure:
    """Draw for print what `plot_increases` draws; return the figure.

    Args:
        sharpness: what to draw.
        ax: axes to draw into, new ones by default; labels that they have stay.
        scale: see `plot_increases`.
        title: stands above what was measured.
    """
    series, x_title = _series(sharpness)
    rows = not x_title
    with paper.style():
        height, width = (0.8 + 0.2 * len(series[0].x), 1.4) if rows else (2.3, 1)
        ax = ax or paper.new_axes(height, width=width * paper.ONE_COLUMN)
        for index, one in enumerate(series):
            points = {"x": one.values, "y": range(len(one.x))} if rows else {"x": one.x, "y": one.values}
            bars: dict[str, Any] = {"xerr" if rows else "yerr": one.errors, "capsize": 2, "elinewidth": 0.8}
            style = paper.curve_style(index) | ({"linestyle": "none"} if rows else {})
            ax.errorbar(**points, **bars, **style, label=one.name)
        if is_log(scale, [one.values for one in series]):
            (ax.set_xscale if rows else ax.set_yscale)("log")
        else:
            (ax.axvline if rows else ax.axhline)(0, color="0.7", linewidth=0.6, zorder=0.6)
        if rows:
            ax.set_yticks(range(len(series[0].x)), series[0].x)
            ax.invert_yaxis()
        elif _is_wide(series[0].x):
            ax.set_xscale("log")
        paper.label_axes(ax, *(("Loss increase", "") if rows else (x_title, "Loss increase")))
        if len(series) > 1:
            ax.legend(frameon=False)
        paper.entitle(ax, title, *_notes(sharpness))
    return paper.figure_of(ax)


@paired
def plot_curvature(curvature: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw the curvature against the radius, with its errors and the derivative.

    The picture holds zero, the derivative and the radii that can be trusted; the others are hollow and grey, and where
    they lie outside of it the caption says so. Random directions are drawn as the trace that they imply.

    Args:
        curvature: what to draw.
        scale: of the curvature; ``"auto"`` is ``"linear"``.
        title: replaces the default one.
    """
    radii, values, errors, trusted, derivative, window, notes = _curvature(curvature, scale)
    figure = interactive.empty_figure()
    for part, name, mode, colour, symbol in (
        (trusted, "at a radius ± one error", "lines+markers", COLOURS[0], "circle"),
        (np.isfinite(values) & ~trusted, "not to be trusted", "markers", DOUBTFUL, "circle-open"),
    ):
        if not part.any():
            continue
        figure.add_scatter(
            x=radii[part],
            y=values[part],
            error_y=interactive.error_bars(errors[part], thickness=1),
            customdata=errors[part],
            mode=mode,
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 8, "color": colour},
            hovertemplate="%{y:.4g} ± %{customdata:.2g} at %{x:g}‖w‖<extra></extra>",
            name=name,
        )
    if len(curvature.derivatives):
        line = {"color": HIGHLIGHT, "width": 2, "dash": "dash"}
        name = f"{curvature.about['derivative']} {derivative:.4g}"
        figure.add_hline(derivative, line=line, name=name, showlegend=True)
    what, log = "Trace" if curvature.is_random else "Curvature", scale == "log"
    figure.update_xaxes(title=_RADIUS, type="log", exponentformat="power", dtick=1)
    interactive.value_axis(figure, quantity(what, curvature.about), log)
    figure.update_yaxes(range=np.log10(window) if log else window)
    title = title or f"{what} at a radius, along {curvature.about['directions']}"
    interactive.finish(figure, title, [caption({"": curvature}), *notes])
    figure.update_layout(height=440)
    return figure


def draw_curvature(
    curvature: Any, ax: Axes | None = None, *, scale: Scale = "auto", title: str | None = None
) -> Figure:
    """Draw for print what `plot_curvature` draws; return the figure.

    Args:
        curvature: what to draw.
        ax: axes to draw into, new ones by default; labels that they have stay.
        scale: see `plot_curvature`.
        title: stands above what was measured.
    """
    radii, values, errors, trusted, derivative, window, notes = _curvature(curvature, scale)
    with paper.style():
        ax = ax or paper.new_axes(2.3)
        ax.set(xscale="log", xlim=(radii.min() / 1.5, radii.max() * 1.5))
        if scale == "log":
            ax.set_yscale("log")
        else:
            ax.axhline(0, color="0.7", linewidth=0.6, zorder=0.6)
        if trusted.any():
            sure: dict[str, Any] = {"color": COLOURS[0], "elinewidth": 1, "label": "at a radius ± one error"}
            ax.errorbar(radii, np.where(trusted, values, np.nan), errors, fmt="o-", **sure)
        doubtful = np.isfinite(values) & ~trusted
        if doubtful.any():
            dots: dict[str, Any] = {"fmt": "o", "elinewidth": 0.6, "label": "not to be trusted", "color": "0.5"}
            ax.errorbar(radii[doubtful], values[doubtful], errors[doubtful], markerfacecolor="white", zorder=3, **dots)
        if len(curvature.derivatives):
            dashed: dict[str, Any] = {"color": HIGHLIGHT, "linestyle": (0, (4, 1.5))}
            ax.axhline(derivative, label=curvature.about["derivative"], **dashed)
        ax.set_ylim(window)
        paper.label_axes(ax, _RADIUS, quantity("Trace" if curvature.is_random else "Curvature", curvature.about))
        paper.entitle(ax, title, caption({"": curvature}), *notes)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(framealpha=0.85, edgecolor="none")  # error bars may pass behind
    return paper.figure_of(ax)


def _curvature(curvature: Any, scale: Scale) -> tuple[Any, ...]:
    """Return radii, values, errors, which are trusted, the derivative, the limits of the picture, and notes."""
    check_option("scale", scale, Scale)
    unit = curvature.numel if curvature.is_random else 1
    radii, trusted = curvature.radii.numpy(), curvature.trusted.numpy()
    values, errors = unit * curvature.curvature.numpy(), unit * curvature.error.numpy()
    trusted = trusted & np.isfinite(values)
    derivative = unit * curvature.derivative
    bounds = np.where(np.isfinite(values), np.abs(values) + errors, np.inf)
    known = trusted if trusted.any() else bounds == bounds.min()  # else the radius that says most
    seen = finite_of([values[known] - errors[known], values[known] + errors[known], np.array([derivative])])
    if scale == "log":
        seen = seen[seen > 0]
        window = (float(seen.min(initial=1.0)) / 1.5, float(seen.max(initial=1.0)) * 1.5)
    else:
        low, high = float(seen.min(initial=0.0)), float(seen.max(initial=0.0))
        margin = 0.12 * (high - low) or 1.0
        window = (low - margin, high + margin)
    outside = int((np.isfinite(values) & ((values < window[0]) | (values > window[1]))).sum())
    notes = [] if trusted.any() else ["no radius can be trusted"]
    notes += [f"{outside} of {len(radii)} radii lie outside of the picture"] if outside else []
    return radii, values, errors, trusted, derivative, window, notes


def _series(sharpness: Any) -> tuple[list[Series], str]:
    """Return what to draw, and what it is drawn against; empty for the measures of a table."""
    if hasattr(sharpness, "rows"):
        names = [f"{row['measure']}, {row['setting']}" for row in sharpness.rows]
        keys = ("value", "stderr", "stderr_data")
        values, draws, data = (np.array([row[key] for row in sharpness.rows], float) for key in keys)
        return [Series("", names, values, _joined(draws, data))], ""
    values, errors = sharpness.delta_loss.numpy(), _joined(sharpness.stderr, sharpness.stderr_data)
    if hasattr(sharpness, "radii"):
        return [Series("", sharpness.radii.tolist(), values, errors)], "Radius"
    names = [f"{bits} bits" if bits else "its own steps" for bits in sharpness.bits]
    rounded = Series("rounding", names, sharpness.rounded.numpy(), _joined(sharpness.rounded_stderr_data))
    return [Series("noise of ± half a step", names, values, errors), rounded], "Weights rounded to"


def _notes(sharpness: Any) -> list[str]:
    measure = sharpness.about.get("measure", "") if hasattr(sharpness, "radii") else ""
    return [note for note in (measure, caption({"": sharpness})) if note]


def _is_wide(x: Sequence[Any]) -> bool:
    return not isinstance(x[0], str) and max(x) > WIDE * min(x)


def _joined(*errors: Any) -> np.ndarray:
    """Add independent errors up in quadrature, those that are known; NaN without any."""
    parts = np.stack([np.asarray(error, dtype=float) for error in errors])
    known = np.isfinite(parts)
    return np.where(known.any(0), np.linalg.norm(np.where(known, parts, 0), axis=0), np.nan)
