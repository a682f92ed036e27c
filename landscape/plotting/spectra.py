"""Spectra of an operator: its trace probe by probe or by layer, its top eigenvalues, the density of all of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from .captions import caption, quantity
from .charts import Axis, Band, Chart, Curve, Level
from .layers import describe_layers
from .style import DOUBTFUL, HIGHLIGHT
from .values import Scale, check_option, is_log


def describe_trace(trace: Any, *, scale: Scale = "auto") -> Chart:
    """Describe a bar per layer where the layers were measured, else what each probe gave and the mean so far.

    Args:
        trace: the estimate.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
    """
    name, about = quantity("Trace", trace.about), caption({"": trace})
    if trace.layer_samples:
        layers = describe_layers(trace.layers, quantity=name, scale=scale)
        return replace(layers, notes=[about, *layers.notes])
    samples = trace.samples.numpy().astype(float)
    probes = np.arange(1, len(samples) + 1)
    mean = np.cumsum(samples) / probes
    error = np.array([samples[:count].std(ddof=1) if count > 1 else np.nan for count in probes]) / np.sqrt(probes)
    return Chart(
        [
            Band(probes, mean - error, mean + error),
            Curve(probes, samples, "each probe", DOUBTFUL, look=None, joined=False),
            Curve(probes, mean, "mean so far ± one standard error", look=None),
        ],
        Axis("Probes", whole=True),
        Axis(name, is_log(scale, [samples, mean - error]), values=[samples]),
        title=name,
        summary=f"{trace.value:.4g} ± {trace.stderr:.2g}, {len(samples)} probes",
        notes=[about],
    )


def describe_eigenvalues(eigenvalues: Any, *, scale: Scale = "auto") -> Chart:
    """Describe the eigenvalues as stems with their standard errors over the data; those not converged are hollow.

    Args:
        eigenvalues: what to draw.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
    """
    values, errors = (part.numpy().astype(float) for part in (eigenvalues.values, eigenvalues.stderr_data))
    index, converged = np.arange(1, len(values) + 1), eigenvalues.converged.numpy().astype(bool)
    log = is_log(scale, [values, values - np.nan_to_num(errors)])
    floor = values[values > 0].min(initial=np.inf) / 2 if log else 0.0
    ends = (floor if log else None, None)
    hover = "λ%{x}: %{y:.5g} ± %{customdata:.2g}<extra></extra>"
    style: dict[str, Any] = {"joined": False, "floor": floor, "hover": hover}
    stems = [
        Curve(index[part], values[part], name, hollow=hollow, errors=errors[part], **style)
        for part, name, hollow in ((converged, "converged", False), (~converged, "not converged", True))
        if part.any()
    ]
    bars = f"bars: ± 1 stderr over the data, {len(eigenvalues.fold_weights)} folds" if np.isfinite(errors).any() else ""
    return Chart(
        stems,
        Axis("Index", ends=(0.4, len(values) + 0.6), whole=True),
        Axis(quantity("Eigenvalue", eigenvalues.about), log, ends=ends, values=[values], zero=True),
        title="Top eigenvalues",
        notes=[" · ".join(filter(None, [caption({"": eigenvalues}), bars]))],
        legend=not converged.all(),
    )


def describe_density(density: Any, *, scale: Scale = "auto") -> Chart:
    """Describe a density of eigenvalues with its band, and the eigenvalues known exactly as stems.

    The vertical axis ends at a third of what one eigenvalue alone would reach: less means nothing. The horizontal one
    is linear near zero and logarithmic far from it (asinh) where outliers lie far outside of the bulk, or a linear axis
    would hide it.

    Args:
        density: what to draw.
        scale: of the density; ``"auto"`` is ``"log"``.
    """
    check_option("scale", scale, Scale)
    names = ("grid", "density", "low", "high", "atoms")
    grid, values, low, high, atoms = (getattr(density, name).numpy() for name in names)
    one, log, bulk = density.one_eigenvalue, scale != "linear", float(np.abs(grid).max())
    asinh = bool((np.abs(atoms) > 4 * bulk).any())
    floor, top = one / 3 * log, 3 * max(float(values.max()), one)
    parts: list[Any] = [
        Level(one, "one eigenvalue", "dot", "#999999"),
        Band(grid, np.full(len(grid), floor), np.maximum(values, floor), opacity=0.15),
    ]
    if np.isfinite(low).all():
        parts.append(Band(grid, np.maximum(low, floor), np.maximum(high, floor), opacity=0.3, name="95 % band"))
    hover = "eigenvalue %{customdata:.4g}<br>density %{y:.4g}<extra></extra>"
    parts.append(Curve(grid, values, "bulk", look=None, hover=hover, data=grid))
    if len(atoms):
        stems: dict[str, Any] = {"joined": False, "floor": floor, "data": atoms}
        stems["hover"] = "eigenvalue %{customdata:.6g}<extra></extra>"
        parts.append(Curve(atoms, 0 * atoms + one, f"{len(atoms)} outliers", HIGHLIGHT, **stems))
    value, error = density.implied_trace()
    known = f" ± {error:.2g}" * math.isfinite(error)
    note = f"{density.size:,} eigenvalues · trace {value:.4g}{known} · smoothed over {density.width:.2g}"
    return Chart(
        parts,
        Axis("Eigenvalue" + " (asinh scale)" * asinh, asinh=bulk / 3 * asinh),
        Axis("Density", log, ends=(floor, top if log else top / 2.8)),
        title="Density of eigenvalues",
        notes=[note, caption({"": density})],
    )
