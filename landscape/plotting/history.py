"""The course of a training: loss and accuracy against the epoch, two panels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .pairing import paired
from .style import COLOURS
from .values import Scale, is_log

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

_PANELS = (("loss", "Loss"), ("accuracy", "Accuracy"))
_COLUMNS = ("loss", "accuracy", "val_loss", "val_accuracy")


@paired
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
    from plotly.subplots import make_subplots

    from . import interactive

    curves, panels = _curves(history)
    figure = make_subplots(1, len(panels), figure=interactive.empty_figure(), horizontal_spacing=0.1)
    names = list(dict.fromkeys(label for label, *_ in curves))
    for label, panel, kind, epochs, values in curves:
        colour = COLOURS[names.index(label) % len(COLOURS)]
        first = not any(trace.name == _name(label, kind) for trace in figure.data)
        figure.add_scatter(
            x=epochs,
            y=values,
            name=_name(label, kind),
            legendgroup=_name(label, kind),
            showlegend=first,
            mode="lines" if len(epochs) > 1 else "markers",
            line={"color": colour, "width": 2, "dash": "dash" if kind == "validation" else "solid"},
            hovertemplate=f"epoch %{{x}}: %{{y:.4g}}<extra>{_name(label, kind)}</extra>",
            row=1,
            col=panels.index(panel) + 1,
        )
    for column, panel in enumerate(panels, start=1):
        arrays = [values for _, part, _, _, values in curves if part == panel]
        log = panel == "loss" and is_log(scale, arrays)
        interactive.value_axis(figure, dict(_PANELS)[panel], log, arrays, row=1, col=column)
    figure.update_xaxes(title="Epoch", zeroline=False)
    interactive.finish(figure, title or "Training", [])
    figure.update_layout(height=380, showlegend=True)
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
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from . import paper

    curves, panels = _curves(history)
    with paper.style():
        if axes is None:
            width = paper.TWO_COLUMNS if len(panels) > 1 else paper.ONE_COLUMN
            axes = plt.figure(figsize=(width, 2.3), layout="constrained").subplots(1, len(panels))
        axes = list(np.ravel(axes))
        if len(axes) != len(panels):
            raise ValueError(f"axes must be {len(panels)}, for {' and '.join(panels)}, got {len(axes)}")
        if strange := [type(ax).__name__ for ax in axes if not hasattr(ax, "set_yscale")]:
            raise TypeError(f"axes must be matplotlib's, got {strange[0]}")
        names = list(dict.fromkeys(label for label, *_ in curves))
        for label, panel, kind, epochs, values in curves:
            colour, dash = COLOURS[names.index(label) % len(COLOURS)], "--" if kind == "validation" else "-"
            marker = "" if len(epochs) > 1 else "o"
            axes[panels.index(panel)].plot(
                epochs, values, color=colour, linestyle=dash, marker=marker, label=_name(label, kind)
            )
        for ax, panel in zip(axes, panels, strict=True):
            if panel == "loss" and is_log(scale, [values for _, part, _, _, values in curves if part == panel]):
                ax.set_yscale("log")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            paper.label_axes(ax, "Epoch", dict(_PANELS)[panel])
        axes[0].legend(frameon=False)
        if title:
            axes[0].figure.suptitle(title, fontsize=8)
    return paper.figure_of(axes[0])


def _curves(history: Any) -> tuple[list[tuple[str, str, str, np.ndarray, np.ndarray]], list[str]]:
    """Return (training's name, panel, "training" or "validation", epochs, values) of every curve, and the panels."""
    curves = []
    try:
        runs = {"": history} if any(name in history for name in _COLUMNS) else dict(history)
        for name, columns in runs.items():
            for panel, _ in _PANELS:
                for prefix, kind in (("", "training"), ("val_", "validation")):
                    if prefix + panel not in columns:
                        continue
                    values = np.array([np.nan if v is None else v for v in columns[prefix + panel]], dtype=float)
                    epochs = np.array(columns["epoch"] if "epoch" in columns else range(1, len(values) + 1), float)
                    if len(epochs) != len(values):
                        raise ValueError(f"{len(epochs)} epochs, {len(values)} values")
                    if np.isfinite(values + epochs).any():
                        curves.append((name, panel, kind, epochs, values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"history must be columns of numbers of one length, or name → columns: {error}") from error
    if not curves:
        raise ValueError(
            f"history must have a column loss, accuracy, val_loss or val_accuracy with numbers, got {list(history)}"
        )
    drawn = {panel for _, panel, *_ in curves}
    return curves, [panel for panel, _ in _PANELS if panel in drawn]


def _name(label: str, kind: str) -> str:
    return f"{label}, {kind}" if label else kind
