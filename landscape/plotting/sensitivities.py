"""Which layer can take how few bits: a row for each layer, a mark for each format, what is predicted beside it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .captions import caption
from .charts import Axis, Chart, Curve
from .style import colour_of
from .values import WIDE, Scale, check_option, finite_of

Value = Literal["increase", "kl"]
_TITLES = {"increase": "Loss increase, this layer alone quantized", "kl": "KL(p ‖ p quantized), this layer alone"}
_LABELS = {"hessian": "½ΔᵀHΔ", "ggn": "½ΔᵀGΔ", "trace": "½ mean trace × ‖Δ‖²"}


def describe_sensitivity(
    sensitivity: Any, *, value: Value = "increase", prediction: str | None = None, scale: Scale = "auto"
) -> Chart:
    """Describe what was measured of each layer with its standard error, and a prediction as hollow marks beside it.

    Args:
        sensitivity: what to draw.
        value: ``"increase"`` of the loss, or ``"kl"``.
        prediction: one that was made; default the first.
        scale: ``"auto"`` is logarithmic where the largest value is more than 30 times the median of the positive ones;
            what is not positive is then a gap, and counted.
    """
    check_option("value", value, Value)
    check_option("scale", scale, Scale)
    made = [name for name in _LABELS if name in sensitivity.rows[0]]
    if prediction is not None and prediction not in made:
        raise ValueError(f"prediction must be one that was made, {made}, got {prediction!r}")
    shown = prediction or next(iter(made), "")
    values = sensitivity.array(value).numpy()
    positive = finite_of([values[values > 0]])
    log = scale == "log" or bool(scale == "auto" and len(positive) and positive.max() > WIDE * np.median(positive))
    parts = []
    for column, error in ((shown, f"{shown}_stderr"), (value, "stderr" if value == "increase" else "kl_stderr")):
        for index, form in enumerate(sensitivity.formats if column else ()):
            y, errors = (sensitivity.array(name)[:, index].numpy() for name in (column, error))
            y, name = np.where((y > 0) | (not log), y, np.nan), "" if column == shown else form
            hover = f"%{{y}}, {form}: %{{x:.3g}} ± %{{customdata:.2g}}<extra>{_LABELS.get(column, 'measured')}</extra>"
            more: dict[str, Any] = {"hollow": True, "data": errors} if column == shown else {"errors": errors}
            parts.append(Curve(range(len(y)), y, name, colour_of(index), index, joined=False, hover=hover, **more))
    gaps = sum(int(np.isnan(part.y).sum()) for part in parts[-len(sensitivity.formats) :])
    notes = [f"{gaps} of {values.size} not drawn (NaN{' or ≤ 0' * log})" if gaps else "", caption({"": sensitivity})]
    for record in sensitivity.correlations:
        if (record["measured"], record["prediction"], record["format"]) == (value, shown, "all"):
            tau = "Kendall's τ {tau:.2f} [{low:.2f}, {high:.2f}]".format(**record).replace(" [nan, nan]", "")
            notes.insert(0, f"filled: measured ± 1 stderr; hollow: {_LABELS[shown]}, {tau}")
    y_axis = Axis(_TITLES[value], log, values=[part.y for part in parts], zero=True)
    empty = "" if finite_of(part.y for part in parts).size else _TITLES[value]
    layers = Axis("", names=sensitivity.layers)
    return Chart(parts, layers, y_axis, "Sensitivity", notes=notes, legend="format", rows=True, empty=empty)
