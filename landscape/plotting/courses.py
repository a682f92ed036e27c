"""What a monitor measured of a training: sharpness beside its threshold, loss, trace and the rest, a panel for each."""

from __future__ import annotations

from typing import Any

import numpy as np

from .charts import Axis, Band, Chart, Curve
from .panels import draw, plot  # noqa: F401  (found there: a panel for each chart)
from .style import colour_of
from .values import Scale, is_log

_FEW = 25  # points that are marked
_OTHERS = {"critical_sharpness": "critical sharpness", "threshold": "stability threshold"}
_SHARPNESS = {"Sharpness": {"lambda1": "λ₁"} | _OTHERS}
_PRECONDITIONED = {
    "Sharpness, preconditioned": {"preconditioned_lambda1": "λ₁"} | _OTHERS,
    "λ₁, as it is": {"lambda1": ""},
}
_PANELS = {
    "Loss": {"probe_loss": "as it is", "rounded_loss": "rounded to 4 bits"},
    "Trace of the Hessian": {"trace": ""},
    "Cosine of successive gradients": {"gradient_cosine": ""},
    "Norm of the weights": {"weight_norm": ""},
}


def describe_course(course: Any, *, scale: Scale = "auto") -> list[Chart]:
    """Describe the panels, the sharpness first; each quantity is joined from one measurement of it to the next.

    Args:
        course: what to draw.
        scale: of sharpness, losses and traces, ``"auto"``, ``"linear"`` or ``"log"``, see `values.is_log`.
    """
    names = {name for row in course.rows for name in row} - {"checkpoint"}
    columns = {name: np.array([row.get(name, np.nan) for row in course.rows], float) for name in names}
    if "rounding_gap" in columns:
        columns["rounded_loss"] = columns["probe_loss"] + columns["rounding_gap"]
    sharpness = _PRECONDITIONED if "preconditioned_lambda1" in columns else _SHARPNESS
    charts: list[Chart] = []
    for title, curves in (sharpness | _PANELS).items():
        parts: list[Any] = []
        for index, (key, name) in enumerate(curves.items()):
            known = np.isfinite(values := columns.get(key, np.empty(0)))
            if not known.any():
                continue
            x, y, colour = columns["step"][known], values[known], colour_of(index)
            if (errors := columns.get(f"{key}_stderr")) is not None:
                parts.append(Band(x, y - errors[known], y + errors[known], colour=colour, curve=name))
            style: dict[str, Any] = {"look": index if len(x) <= _FEW and key != "threshold" else None}
            style["dashed"] = key == "threshold"
            hover = f"%{{x}}: %{{y:.4g}}<extra>{name or title}</extra>"
            parts.append(Curve(x, y, name, colour, hover=hover, **style))
        if parts or not charts:
            # along a direction of hardly any curvature the critical sharpness is orders of magnitude below the others
            drawn = [part for part in parts if isinstance(part, Curve)]
            arrays = [part.y for part in drawn if part.name != _OTHERS["critical_sharpness"] or len(drawn) == 1]
            signed = title.startswith(("Cosine", "Norm"))
            axis = Axis(title, not signed and is_log(scale, arrays), values=arrays)
            empty = "" if parts else "sharpness"
            charts.append(Chart(parts, Axis("Step", whole=bool(parts)), axis, legend=len(curves) > 1, empty=empty))
    return charts
