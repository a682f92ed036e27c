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
from .style import COLOURS, DOUBTFUL, HIGHLIGHT
from .values import WIDE, Scale, check_option, finite_of, is_log

_INCREASE = "Loss increase"
_RADIUS = "Length of the step ε, in norms of the weights"


class Series(NamedTuple):
    """Values with error bars against a radius or a name; NaN where an error is not known."""

    name: str
    x: Sequence[Any]
    values: np.ndarray
    errors: np.ndarray


def plot_sharpness(sharpness: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw the increase of the loss against the radius with its standard errors.

    Args:
        sharpness: what to draw.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
        title: replaces the default one.
    """
    series, measure = _increases(sharpness)
    notes = [measure, caption({"": sharpness})]
    figure = _plot_series([series], "Radius", scale, title or f"{_INCREASE} by radius", notes)
    if len(series.x) > 1 and max(series.x) > WIDE * min(series.x):
        figure.update_xaxes(type="log")
    return figure


def draw_sharpness(
    sharpness: Any, ax: Axes | None = None, *, scale: Scale = "auto", title: str | None = None
) -> Figure:
    """Draw for print what `plot_sharpness` draws; return the figure.

    Args:
        sharpness: what to draw.
        ax: axes to draw into, new ones by default; labels that they have stay.
        scale: see `plot_sharpness`.
        title: stands above what was measured.
    """
    series, measure = _increases(sharpness)
    with paper.style():
        ax = _draw_series([series], ax, "Radius", scale)
        if len(series.x) > 1 and max(series.x) > WIDE * min(series.x):
            ax.set_xscale("log")
        paper.entitle(ax, title, measure, caption({"": sharpness}))
    return paper.figure_of(ax)


def plot_rounding(rounding: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw the increase of the loss under rounding noise, and under rounding, for each number of bits.

    Args:
        rounding: what to draw.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
        title: replaces the default one.
    """
    notes = [caption({"": rounding})]
    return _plot_series(_by_bits(rounding), "Weights rounded to", scale, title or f"{_INCREASE} by rounding", notes)


def draw_rounding(rounding: Any, ax: Axes | None = None, *, scale: Scale = "auto", title: str | None = None) -> Figure:
    """Draw for print what `plot_rounding` draws; return the figure.

    Args:
        rounding: what to draw.
        ax: axes to draw into, new ones by default; labels that they have stay.
        scale: see `plot_rounding`.
        title: stands above what was measured.
    """
    with paper.style():
        ax = _draw_series(_by_bits(rounding), ax, "Weights rounded to", scale)
        paper.entitle(ax, title, caption({"": rounding}))
    return paper.figure_of(ax)


def plot_measures(table: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw the increase of the loss by measure and setting, a row each, with its standard errors.

    Args:
        table: a table of sharpness measures.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
        title: replaces the default one.
    """
    names, values, errors = _by_measure(table)
    figure = interactive.empty_figure()
    figure.add_scatter(
        x=values,
        y=names,
        error_x=interactive.error_bars(errors),
        customdata=errors,
        mode="markers",
        marker={"color": COLOURS[0], "size": 8},
        hovertemplate="%{y}: %{x:.4g} ± %{customdata:.2g}<extra></extra>",
    )
    log = is_log(scale, [values])
    figure.update_xaxes(title=_INCREASE + " (log scale)" * log, type="log" if log else "linear", zeroline=not log)
    figure.update_yaxes(autorange="reversed", automargin=True)
    interactive.finish(figure, title or "Sharpness by measure", [caption({"": table})])
    figure.update_layout(height=140 + 32 * len(names), showlegend=False)
    return figure


def draw_measures(table: Any, ax: Axes | None = None, *, scale: Scale = "auto", title: str | None = None) -> Figure:
    """Draw for print what `plot_measures` draws; return the figure.

    Args:
        table: a table of sharpness measures.
        ax: axes to draw into, new ones by default; labels that they have stay.
        scale: see `plot_measures`.
        title: stands above what was measured.
    """
    names, values, errors = _by_measure(table)
    with paper.style():
        own, ax = ax is None, ax or paper.new_axes(0.8 + 0.2 * len(names), width=1.4 * paper.ONE_COLUMN)
        if is_log(scale, [values]):
            ax.set_xscale("log")
        else:
            ax.axvline(0, color="0.7", linewidth=0.6, zorder=0.6)
        rows = range(len(names))
        ax.errorbar(values, rows, xerr=errors, fmt="o", color=COLOURS[0], ecolor="0.25", elinewidth=0.8, capsize=2)
        ax.set_yticks(rows, names)
        ax.invert_yaxis()
        paper.label_axes(ax, _INCREASE, "")
        if own:  # above all of it: the axes are narrow beside their labels
            text = "\n".join(filter(None, [title, caption({"": table})]))
            paper.figure_of(ax).suptitle(text, fontsize=7, color="0.4")
        else:
            paper.entitle(ax, title, caption({"": table}))
    return paper.figure_of(ax)


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


def _plot_series(series: Sequence[Series], x_title: str, scale: Scale, title: str, notes: Sequence[str]) -> go.Figure:
    figure = interactive.empty_figure()
    for index, one in enumerate(series):
        figure.add_scatter(
            x=one.x,
            y=one.values,
            error_y=interactive.error_bars(one.errors),
            customdata=one.errors,
            mode="lines+markers",
            line={"color": COLOURS[index], "width": 2},
            marker={"symbol": interactive.SYMBOLS[index], "size": 8},
            hovertemplate="%{y:.4g} ± %{customdata:.2g} at %{x}<extra></extra>",
            name=one.name,
        )
    values = [one.values for one in series]
    figure.update_xaxes(title=x_title, zeroline=False)
    interactive.value_axis(figure, _INCREASE, is_log(scale, values), values)
    interactive.finish(figure, title, notes)
    figure.update_layout(height=400, showlegend=len(series) > 1)
    return figure


def _draw_series(series: Sequence[Series], ax: Axes | None, x_title: str, scale: Scale) -> Axes:
    ax = ax or paper.new_axes(2.3)
    for index, one in enumerate(series):
        bars: dict[str, Any] = {"capsize": 2, "elinewidth": 0.8, "label": one.name}
        ax.errorbar(one.x, one.values, one.errors, **bars, **paper.curve_style(index))
    if is_log(scale, [one.values for one in series]):
        ax.set_yscale("log")
    else:
        ax.axhline(0, color="0.7", linewidth=0.6, zorder=0.6)
    paper.label_axes(ax, x_title, _INCREASE)
    if len(series) > 1:
        ax.legend(frameon=False)
    return ax


def _increases(sharpness: Any) -> tuple[Series, str]:
    errors = _joined(sharpness.stderr, sharpness.stderr_data)
    measure = sharpness.about.get("measure", "sharpness")
    return Series(measure, sharpness.radii.tolist(), sharpness.delta_loss.numpy(), errors), measure


def _by_bits(rounding: Any) -> list[Series]:
    names = [f"{bits} bits" if bits else "its own steps" for bits in rounding.bits]
    noise = _joined(rounding.stderr, rounding.stderr_data)
    return [
        Series("noise of ± half a step", names, rounding.delta_loss.numpy(), noise),
        Series("rounding", names, rounding.rounded.numpy(), _joined(rounding.rounded_stderr_data)),
    ]


def _by_measure(table: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    names = [f"{row['measure']}, {row['setting']}" for row in table.rows]
    values, *errors = (np.array([row[key] for row in table.rows], float) for key in ("value", "stderr", "stderr_data"))
    return names, values, _joined(*errors)


def _joined(*errors: Any) -> np.ndarray:
    """Add independent errors up in quadrature, those that are known; NaN without any."""
    parts = np.stack([np.asarray(error, dtype=float) for error in errors])
    known = np.isfinite(parts)
    return np.where(known.any(0), np.linalg.norm(np.where(known, parts, 0), axis=0), np.nan)
