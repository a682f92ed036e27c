"""What depends on how far the weights move: curvature at a radius, and the increase of the loss, with error bars."""

from __future__ import annotations

from typing import Any

import numpy as np

from .captions import caption, quantity
from .charts import Axis, Chart, Curve, Level
from .style import DOUBTFUL, HIGHLIGHT, colour_of
from .values import WIDE, Scale, check_option, finite_of, is_log

_BY = {"Radius": "radius", "Weights rounded to": "rounding", "": "measure"}
_RADIUS = "Length of the step ε, in norms of the weights"


def describe_increases(sharpness: Any, *, scale: Scale = "auto") -> Chart:
    """Describe loss increases with their standard errors: by radius, by bits, or a row for every measure of a table.

    Args:
        sharpness: what to draw.
        scale: ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
    """
    rows, along = hasattr(sharpness, "rows"), ""
    names: list[str] = []
    series: list[tuple[str, Any, np.ndarray, np.ndarray]]
    if rows:  # the names of measures are long: they stand at the vertical axis
        names = [f"{row['measure']}, {row['setting']}" for row in sharpness.rows]
        keys = ("value", "stderr", "stderr_data")
        values, draws, data = (np.array([row[key] for row in sharpness.rows], float) for key in keys)
        series = [("", range(len(names)), values, _joined(draws, data))]
    else:
        values, errors = sharpness.delta_loss.numpy(), _joined(sharpness.stderr, sharpness.stderr_data)
        if hasattr(sharpness, "radii"):
            along, series = "Radius", [("", sharpness.radii.tolist(), values, errors)]
        else:
            along, bits = "Weights rounded to", [f"{b} bits" if b else "its own steps" for b in sharpness.bits]
            rounded = sharpness.rounded.numpy(), _joined(sharpness.rounded_stderr_data)
            series = [("noise of ± half a step", bits, values, errors), ("rounding", bits, *rounded)]
    hover = "%{y}: %{x:.4g} ± %{customdata:.2g}" if rows else "%{x}: %{y:.4g} ± %{customdata:.2g}"
    style: dict[str, Any] = {"joined": not rows, "hover": f"{hover}<extra></extra>"}
    drawn = [values for _, _, values, _ in series]
    x = series[0][1]
    wide = along == "Radius" and max(x) > WIDE * min(x)
    measure = sharpness.about.get("measure", "") if along == "Radius" else ""
    return Chart(
        [
            Curve(x, values, name, colour_of(i), i, errors=errors, **style)
            for i, (name, x, values, errors) in enumerate(series)
        ],
        Axis(along, log=wide, names=names),
        Axis("Loss increase", is_log(scale, drawn), values=drawn, zero=True),
        title=f"Loss increase by {_BY[along]}",
        notes=[measure, caption({"": sharpness})],
        legend=len(series) > 1,
        rows=rows,
    )


def describe_curvature(curvature: Any, *, scale: Scale = "auto") -> Chart:
    """Describe the curvature against the radius, with its errors and the derivative.

    The picture holds zero, the derivative and the radii that can be trusted; the others are hollow and grey, and where
    they lie outside of it the caption says so. Random directions are drawn as the trace that they imply.

    Args:
        curvature: what to draw.
        scale: of the curvature; ``"auto"`` is ``"linear"``.
    """
    check_option("scale", scale, Scale)
    unit = curvature.numel if curvature.is_random else 1
    radii, trusted = curvature.radii.numpy(), curvature.trusted.numpy()
    values, errors = unit * curvature.curvature.numpy(), unit * curvature.error.numpy()
    trusted, doubtful = trusted & np.isfinite(values), ~trusted & np.isfinite(values)
    derivative, what = unit * curvature.derivative, "Trace" if curvature.is_random else "Curvature"
    ends = _window(values, errors, trusted, derivative, scale == "log")
    outside = int((np.isfinite(values) & ((values < ends[0]) | (values > ends[1]))).sum())
    notes = [] if trusted.any() else ["no radius can be trusted"]
    notes += [f"{outside} of {len(radii)} radii lie outside of the picture"] if outside else []
    hover, parts = "%{y:.4g} ± %{customdata:.2g} at %{x:g}‖w‖<extra></extra>", list[Any]()
    sure: dict[str, Any] = {"name": "at a radius ± one error"}
    vague: dict[str, Any] = {"name": "not to be trusted", "colour": DOUBTFUL, "joined": False, "hollow": True}
    for part, style in ((trusted, sure), (doubtful, vague)):
        if part.any():
            shown, bars = (np.where(part, array, np.nan) for array in (values, errors))  # a line ends at a gap
            parts.append(Curve(radii, shown, errors=bars, hover=hover, **style))
    if len(curvature.derivatives):
        parts.append(Level(derivative, f"{curvature.about['derivative']} {derivative:.4g}", "dash", HIGHLIGHT))
    return Chart(
        parts,
        Axis(_RADIUS, log=True, ends=(radii.min() / 1.5, radii.max() * 1.5)),
        Axis(quantity(what, curvature.about), scale == "log", ends=ends, values=[np.array(ends)], zero=True),
        title=f"{what} at a radius, along {curvature.about['directions']}",
        notes=[caption({"": curvature}), *notes],
    )


def _window(values: Any, errors: Any, trusted: Any, derivative: float, log: bool) -> tuple[float, float]:
    """Return the ends of what is seen: around what can be trusted, else around the radius that says most."""
    bounds = np.where(np.isfinite(values), np.abs(values) + errors, np.inf)
    known = trusted if trusted.any() else bounds == bounds.min()
    seen = finite_of([values[known] - errors[known], values[known] + errors[known], np.array([derivative])])
    if log:
        seen = seen[seen > 0]
        return float(seen.min(initial=1.0)) / 1.5, float(seen.max(initial=1.0)) * 1.5
    low, high = float(seen.min(initial=0.0)), float(seen.max(initial=0.0))
    margin = 0.12 * (high - low) or 1.0
    return low - margin, high + margin


def _joined(*errors: Any) -> np.ndarray:
    """Add independent errors up in quadrature, those that are known; NaN without any."""
    parts = np.stack([np.asarray(error, dtype=float) for error in errors])
    known = np.isfinite(parts)
    return np.where(known.any(0), np.linalg.norm(np.where(known, parts, 0), axis=0), np.nan)
