"""Spectra of an operator: its trace probe by probe or by layer, its top eigenvalues, the density of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import interactive, paper
from .captions import caption, quantity
from .layers import draw_bars, plot_layers
from .levels import asinh_ticks
from .pairing import paired
from .style import COLOURS, DOUBTFUL, HIGHLIGHT
from .values import Scale, check_option, is_log

_COLOUR = COLOURS[0]
_RUNNING, _PROBES = "mean so far ± one standard error", "each probe"


@paired
def plot_trace(trace: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw a bar per layer where the layers were measured, else what each probe gave and the mean so far.

    Args:
        trace: the estimate.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
        title: replaces the default one.
    """
    name, about = quantity("Trace", trace.about), caption({"": trace})
    if trace.layer_samples:
        figure = plot_layers(trace.layers, quantity=name, scale=scale, title=title)
        figure.layout.title.subtitle.text = "<br>".join(filter(None, [about, figure.layout.title.subtitle.text]))
        return figure
    probes, samples, mean, error = _running(trace)
    figure = interactive.empty_figure()
    figure.add_trace(interactive.band(probes, (mean - error, mean + error), _COLOUR, 0.2, showlegend=False))
    figure.add_scatter(x=probes, y=samples, mode="markers", marker={"color": DOUBTFUL, "size": 6}, name=_PROBES)
    figure.add_scatter(x=probes, y=mean, mode="lines", line={"color": _COLOUR, "width": 2}, name=_RUNNING)
    figure.update_xaxes(title="Probes", zeroline=False)
    log = is_log(scale, [samples, mean - error])
    interactive.value_axis(figure, name, log, [samples])
    interactive.finish(figure, title or f"{name}: {_estimate(trace)}", [about])
    figure.update_layout(height=400)
    return figure


def draw_trace(trace: Any, ax: Axes | None = None, *, scale: Scale = "auto", title: str | None = None) -> Figure:
    """Draw for print what `plot_trace` draws; return the figure.

    Args:
        trace: the estimate.
        ax: axes to draw into, new ones by default; labels that they have stay.
        scale: see `plot_trace`.
        title: stands above what was measured.
    """
    name, about = quantity("Trace", trace.about), caption({"": trace})
    with paper.style():
        if trace.layer_samples:
            ax = ax or paper.new_axes(2.4, width=paper.TWO_COLUMNS)
            paper.entitle(ax, title, about, draw_bars(ax, trace.layers, quantity=name, scale=scale))
            return paper.figure_of(ax)
        probes, samples, mean, error = _running(trace)
        ax = ax or paper.new_axes(2.3)
        ax.plot(probes, samples, ".", color="0.6", label=_PROBES)
        ax.fill_between(probes, mean - error, mean + error, color=_COLOUR, alpha=0.2, linewidth=0)
        ax.plot(probes, mean, color=_COLOUR, label=_RUNNING)
        if is_log(scale, [samples, mean - error]):
            ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        paper.label_axes(ax, "Probes", name)
        paper.entitle(ax, title, _estimate(trace), about)
        ax.legend(frameon=False)
    return paper.figure_of(ax)


@paired
def plot_eigenvalues(eigenvalues: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw the eigenvalues as stems with their standard errors over the data; those not converged are hollow.

    Args:
        eigenvalues: what to draw.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
        title: replaces the default one.
    """
    index, values, errors, converged = _pairs(eigenvalues)
    log = is_log(scale, [values, values - np.nan_to_num(errors)])
    floor = values[values > 0].min(initial=np.inf) / 2 if log else 0.0
    figure = interactive.empty_figure()
    stems = np.stack([np.full(len(values), floor), values, np.full(len(values), np.nan)], 1).ravel()
    line = {"color": _COLOUR, "width": 1.5}
    figure.add_scatter(x=np.repeat(index, 3), y=stems, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    for part, name, symbol in ((converged, "converged", "circle"), (~converged, "not converged", "circle-open")):
        if part.any():
            figure.add_scatter(
                x=index[part],
                y=values[part],
                error_y=interactive.error_bars(errors[part]),
                customdata=errors[part],
                mode="markers",
                marker={"color": _COLOUR, "size": 8, "symbol": symbol},
                hovertemplate="λ%{x}: %{y:.5g} ± %{customdata:.2g}<extra></extra>",
                name=name,
            )
    figure.update_xaxes(title="Index", zeroline=False, tickvals=index if len(index) <= 20 else None)
    interactive.value_axis(figure, quantity("Eigenvalue", eigenvalues.about), log, [values])
    interactive.finish(figure, title or "Top eigenvalues", [_about_pairs(eigenvalues, errors)])
    figure.update_layout(height=400, showlegend=not converged.all())
    return figure


def draw_eigenvalues(
    eigenvalues: Any, ax: Axes | None = None, *, scale: Scale = "auto", title: str | None = None
) -> Figure:
    """Draw for print what `plot_eigenvalues` draws; return the figure.

    Args:
        eigenvalues: what to draw.
        ax: axes to draw into, new ones by default; labels that they have stay.
        scale: see `plot_eigenvalues`.
        title: stands above what was measured.
    """
    index, values, errors, converged = _pairs(eigenvalues)
    with paper.style():
        ax = ax or paper.new_axes(2.3)
        log = is_log(scale, [values, values - np.nan_to_num(errors)])
        floor = values[values > 0].min(initial=np.inf) / 2 if log else 0.0
        ax.vlines(index, floor, values, color=_COLOUR, linewidth=1)
        for part, name, fill in ((converged, "converged", _COLOUR), (~converged, "not converged", "white")):
            if part.any():
                style: dict[str, Any] = {"fmt": "o", "capsize": 2, "elinewidth": 0.8, "markerfacecolor": fill}
                ax.errorbar(index[part], values[part], errors[part], color=_COLOUR, ecolor="0.25", label=name, **style)
        if log:
            ax.set_yscale("log")
            ax.set_ylim(bottom=floor)
        else:
            ax.axhline(0, color="0.7", linewidth=0.6, zorder=0.6)
        ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        ax.set_xlim(0.4, len(values) + 0.6)
        paper.label_axes(ax, "Index", quantity("Eigenvalue", eigenvalues.about))
        paper.entitle(ax, title, _about_pairs(eigenvalues, errors))
        if not converged.all():
            ax.legend(frameon=False)
    return paper.figure_of(ax)


@paired
def plot_density(density: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw a density of eigenvalues with its band, and the eigenvalues known exactly as stems.

    The vertical axis ends at a third of what one eigenvalue alone would reach: less means nothing. The horizontal one
    is linear near zero and logarithmic far from it (asinh) where outliers lie far outside of the bulk.

    Args:
        density: what to draw.
        scale: of the density; ``"auto"`` is ``"log"``.
        title: replaces the default one.
    """
    grid, values, low, high, atoms, one = _curves(density)
    log = _is_log_density(scale)
    asinh = _is_asinh(grid, atoms)
    bulk, floor, top = float(np.abs(grid).max()), one / 3 * log, 3 * max(float(values.max()), one)
    stretch = (lambda x: np.arcsinh(3 * np.asarray(x) / bulk)) if asinh else np.asarray
    figure = interactive.empty_figure()
    dotted = {"color": "#999999", "width": 1, "dash": "dot"}
    figure.add_hline(one, line=dotted, name="one eigenvalue", showlegend=True)
    if np.isfinite(low).all():
        edges = (np.maximum(low, floor), np.maximum(high, floor))
        figure.add_trace(interactive.band(stretch(grid), edges, _COLOUR, name="95 % band"))
    hover = "eigenvalue %{customdata:.4g}<br>density %{y:.4g}<extra></extra>"
    line = {"color": _COLOUR, "width": 2}
    figure.add_scatter(x=stretch(grid), y=values, customdata=grid, line=line, hovertemplate=hover, name="bulk")
    if len(atoms):
        stems = {"type": "data", "symmetric": False, "array": 0 * atoms, "arrayminus": 0 * atoms + one - floor}
        figure.add_scatter(
            x=stretch(atoms),
            y=0 * atoms + one,
            customdata=atoms,
            mode="markers",
            marker={"color": HIGHLIGHT, "size": 8},
            error_y=stems | {"width": 0, "thickness": 1.5},
            hovertemplate="eigenvalue %{customdata:.6g}<extra></extra>",
            name=f"{len(atoms)} outliers",
        )
    figure.update_xaxes(title="Eigenvalue" + " (asinh scale)" * asinh, zeroline=False)
    if asinh:
        ends = [float(end(np.append(grid, atoms))) for end in (np.min, np.max)]
        ticks = asinh_ticks(bulk / 3, *ends)
        figure.update_xaxes(tickvals=stretch(ticks), ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_yaxes(title="Density" + " (log scale)" * log, type="log" if log else "linear")
    if log:
        figure.update_yaxes(range=np.log10([floor, top]), exponentformat="power", dtick=1)
    else:
        figure.update_yaxes(range=[0, top / 2.8])
    value, error = density.implied_trace()
    note = f"{density.size:,} eigenvalues · trace {value:.4g} ± {error:.2g} · smoothed over {density.width:.2g}"
    interactive.finish(figure, title or "Density of eigenvalues", [note, caption({"": density})])
    figure.update_layout(height=440)
    return figure


def draw_density(density: Any, ax: Axes | None = None, *, scale: Scale = "auto", title: str | None = None) -> Figure:
    """Draw for print what `plot_density` draws; return the figure.

    Args:
        density: what to draw.
        ax: axes to draw into, new ones by default; labels that they have stay.
        scale: see `plot_density`.
        title: stands above what was measured.
    """
    grid, values, low, high, atoms, one = _curves(density)
    log = _is_log_density(scale)
    floor, top = one / 3 * log, 3 * max(float(values.max()), one)
    with paper.style():
        ax = ax or paper.new_axes(2.3)
        ax.set_yscale("log" if log else "linear")
        ax.set_ylim(floor, top if log else top / 2.8)
        ax.axhline(one, color="0.6", linewidth=0.6, linestyle=":", label="one eigenvalue", zorder=1)
        ax.fill_between(grid, floor, np.maximum(values, floor), color=_COLOUR, alpha=0.15, linewidth=0)
        if np.isfinite(low).all():
            edges = np.maximum([low, high], floor)
            ax.fill_between(grid, *edges, color=_COLOUR, alpha=0.4, linewidth=0, label="95 % band")
        ax.plot(grid, values, color=_COLOUR, linewidth=1, label="bulk")
        if len(atoms):
            ax.vlines(atoms, floor, one, color=HIGHLIGHT, linewidth=1)
            ax.plot(atoms, np.full(len(atoms), one), "o", color=HIGHLIGHT, label=f"{len(atoms)} outliers")
        if asinh := _is_asinh(grid, atoms):
            width = float(np.abs(grid).max()) / 3
            ax.set_xscale("asinh", linear_width=width)
            ticks = asinh_ticks(width, *ax.get_xlim())
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        paper.label_axes(ax, "Eigenvalue" + " (asinh scale)" * asinh, "Density")
        paper.entitle(ax, title, caption({"": density}))
        ax.legend(frameon=False)
    return paper.figure_of(ax)


def _running(trace: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the probes' numbers, what each gave, the mean of the first ones and its standard error."""
    samples = trace.samples.numpy().astype(float)
    counts = np.arange(1, len(samples) + 1)
    mean = np.cumsum(samples) / counts
    deviations = [samples[:count].std(ddof=1) if count > 1 else np.nan for count in counts]
    return counts, samples, mean, np.array(deviations) / np.sqrt(counts)


def _estimate(trace: Any) -> str:
    return f"{trace.value:.4g} ± {trace.stderr:.2g}, {len(trace.samples)} probes"


def _pairs(eigenvalues: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    values, errors = (part.numpy().astype(float) for part in (eigenvalues.values, eigenvalues.stderr_data))
    return np.arange(1, len(values) + 1), values, errors, eigenvalues.converged.numpy().astype(bool)


def _about_pairs(eigenvalues: Any, errors: np.ndarray) -> str:
    bars = f"bars: ± 1 stderr over the data, {len(eigenvalues.fold_weights)} folds" if np.isfinite(errors).any() else ""
    return " · ".join(filter(None, [caption({"": eigenvalues}), bars]))


def _curves(density: Any) -> tuple[Any, ...]:
    names = ("grid", "density", "low", "high", "atoms")
    return *(getattr(density, name).numpy() for name in names), density.one_eigenvalue


def _is_log_density(scale: Scale) -> bool:
    check_option("scale", scale, Scale)
    return scale != "linear"


def _is_asinh(grid: np.ndarray, atoms: np.ndarray) -> bool:
    """Return whether outliers lie so far outside of the bulk that a linear axis would hide it."""
    return bool((np.abs(atoms) > 4 * np.abs(grid).max()).any())
