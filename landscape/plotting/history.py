"""The course of a training: loss and accuracy against the epoch, two panels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .charts import Axis, Chart, Curve
from .style import colour_of
from .values import LABELS, Scale, is_log

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

_PANELS = ("loss", "accuracy")
_KINDS = {"": "training", "val_": "validation"}
_COLUMNS = {before + panel: (panel, kind) for panel in _PANELS for before, kind in _KINDS.items()}


def plot_history(history: Any, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
    """Draw loss and accuracy against the epoch, on the training data and (dashed) on the validation data.

    Args:
        history: the columns epoch, loss, accuracy, val_loss and val_accuracy, as far as they are known: a mapping or a
            DataFrame such as ``model.history.frame``; or name → columns, to compare several trainings.
        scale: of the loss, ``"linear"``, ``"log"`` or ``"auto"``: logarithmic where the largest is more than 30 times
            the smallest.
        title: replaces the default one.

    Returns:
        A plotly figure.

    Raises:
        ValueError: no column to draw, an unknown scale.

    Example:
        >>> import landscape
        >>> figure = landscape.plot_history({"loss": [2.3, 0.9, 0.6], "val_loss": [2.0, 1.1, 0.9]})
        >>> [curve.name for curve in figure.data]
        ['training', 'validation']
    """
    from . import panels

    figure = panels.plot(list(describe_history(history, scale).values()), title or "Training")
    figure._print = partial(draw_history, history, scale=scale, title=title)
    return figure


def draw_history(
    history: Any,
    axes: Any = None,
    *,
    scale: Scale = "auto",
    title: str | None = None,
) -> Figure:
    """Draw for print what `plot_history` draws; return the figure.

    Args:
        history: see `plot_history`.
        axes: as many matplotlib axes as there are panels (loss, accuracy); default a new figure.
        scale: see `plot_history`.
        title: of the figure.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: as `plot_history`; another number of axes.

    Example:
        >>> import landscape
        >>> figure = landscape.draw_history({"epoch": [1, 2], "loss": [2.3, 0.9], "accuracy": [0.4, 0.8]})
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['Loss', 'Accuracy']
    """
    from . import panels

    charts = describe_history(history, scale)
    axes = None if axes is None else list(np.ravel(axes))
    if axes is not None and len(axes) != len(charts):
        raise ValueError(f"axes must be {len(charts)}, for {' and '.join(charts)}, got {len(axes)}")
    if strange := [type(ax).__name__ for ax in axes or [] if not hasattr(ax, "set_yscale")]:
        raise TypeError(f"axes must be matplotlib's, got {strange[0]}")
    return panels.draw(list(charts.values()), axes, title)


def describe_history(history: Any, scale: Scale) -> dict[str, Chart]:
    """Describe the panels, of the loss and of the accuracy, as far as they are known."""
    curves: dict[str, list[Curve]] = {panel: [] for panel in _PANELS}
    colours: dict[str, str] = {}
    try:
        runs = {"": history} if any(name in history for name in _COLUMNS) else dict(history)
        for run, columns in runs.items():
            for column, (panel, kind) in _COLUMNS.items():
                if column not in columns:
                    continue
                values = np.array([np.nan if v is None else v for v in columns[column]], dtype=float)
                epochs = np.array(columns["epoch"] if "epoch" in columns else range(1, len(values) + 1), float)
                if len(epochs) != len(values):
                    raise ValueError(f"{len(epochs)} epochs, {len(values)} values")
                if np.isfinite(values + epochs).any():
                    colour = colours.setdefault(run, colour_of(len(colours)))
                    curves[panel].append(_curve(f"{run}, {kind}" if run else kind, kind, colour, epochs, values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"history must be columns of numbers of one length, or name → columns: {error}") from error
    drawn = {panel: found for panel, found in curves.items() if found}
    if not drawn:
        raise ValueError(
            f"history must have a column loss, accuracy, val_loss or val_accuracy with numbers, got {list(history)}"
        )
    charts: dict[str, Chart] = {}
    for panel, found in drawn.items():
        arrays = [curve.y for curve in found]
        axis = Axis(LABELS[panel], panel == "loss" and is_log(scale, arrays), values=arrays)
        charts[panel] = Chart(found, Axis("Epoch", whole=True), axis, legend=not charts)
    return charts


def _curve(name: str, kind: str, colour: str, epochs: np.ndarray, values: np.ndarray) -> Curve:
    """Return a curve, a single point marked."""
    look, hover = None if len(epochs) > 1 else 0, f"epoch %{{x}}: %{{y:.4g}}<extra>{name}</extra>"
    return Curve(epochs, values, name, colour, look, dashed=kind == "validation", hover=hover)
