"""The history of a training: a row per epoch, the loss of every step, and two curves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .. import files
from ..results import Shown

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

Scale = Literal["auto", "linear", "log"]

WIDTH, HEIGHT = 360, 120  # of the curves in a notebook, in pixels
CURVES = {"loss": "#0072B2", "val_loss": "#D55E00"}


@dataclass(repr=False)
class History(Shown):
    """Result of `train`: the epochs and the losses of all steps.

    Args:
        epochs: One row per epoch: epoch, loss, accuracy, val_loss, val_accuracy, lr, seconds, SAM's diagnostics on the
            epoch's first step that has an ε, and the result of `on_epoch`.
        steps: Loss of every step, (steps,).
        snapshots: Name -> tensor on the CPU after every epoch, where they were asked for.

    Example:
        >>> import saq_core
        >>> history = saq_core.History([{"epoch": 1, "loss": 0.9, "val_loss": 1.1, "val_accuracy": 0.5}])
        >>> history
        History(1 epochs, last: loss=0.9, val_loss=1.1, val_accuracy=0.5)
        >>> history.frame["loss"].tolist()
        [0.9]
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: Tensor = field(default_factory=lambda: torch.empty(0))
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)

    def _rows(self) -> list[dict[str, Any]]:
        return self.epochs

    def plot(self, *, scale: Scale = "auto", title: str | None = None) -> go.Figure:
        """Draw loss and accuracy of training and validation over the epochs with plotly."""
        from landscape import plot_history

        return plot_history(self.frame, scale=scale, title=title)

    def draw(self, axes: Any = None, *, scale: Scale = "auto", title: str | None = None) -> Figure:
        """Draw the same with matplotlib, into as many axes as there are panels, or a new figure; return the figure."""
        from landscape import draw_history

        return draw_history(self.frame, axes, scale=scale, title=title)

    def _picture(self) -> str:
        """Return the curves as SVG; values that are not finite are gaps."""
        curves = [name for name in CURVES if any(name in row for row in self.epochs)]
        values = torch.tensor([[float(row.get(name, torch.nan)) for row in self.epochs] for name in curves])
        finite = values[values.isfinite()]
        if len(self.epochs) < 2 or not len(finite):
            return ""
        low, span = float(finite.min()), float(finite.max() - finite.min()) or 1.0
        x = torch.linspace(2, WIDTH - 2, values.shape[1])
        y = HEIGHT - 4 - (values - low) / span * (HEIGHT - 8)
        paths = ""
        for index, (name, row) in enumerate(zip(curves, y, strict=True)):
            known = [False, *row.isfinite().tolist()]  # a line goes on from a value, and begins anew after a gap
            drawn = "".join(f"{'ML'[known[k]]}{x[k]:.1f} {v:.1f}" for k, v in enumerate(row) if known[k + 1])
            paths += f'<path d="{drawn}" fill="none" stroke="{CURVES[name]}"><title>{name}</title></path>'
            where = f'x="{WIDTH - 4}" y="{14 * index + 12}" text-anchor="end" font-size="11"'
            paths += f'<text {where} fill="{CURVES[name]}">{name.replace("val_", "validation ")}</text>'
        return f'<svg width="{WIDTH}" height="{HEIGHT}">{paths}</svg>'

    def state(self) -> dict[str, Any]:
        """Return it as tensors and primitives."""
        return {"epochs": files.storable(self.epochs), "steps": self.steps, "snapshots": self.snapshots}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """Rebuild it from `state`, on the CPU."""
        snapshots = [{name: value.cpu() for name, value in one.items()} for one in state["snapshots"]]
        return cls(state["epochs"], state["steps"].cpu(), snapshots)

    def __repr__(self) -> str:
        last = self.epochs[-1] if self.epochs else {}
        shown = ", ".join(f"{key}={last[key]:.4g}" for key in ("loss", "val_loss", "val_accuracy") if key in last)
        return f"History({len(self.epochs)} epochs{', last: ' + shown if shown else ''})"

    def write_lines(self, path: str | Path) -> None:
        """Write the epochs as JSON lines, whole: after an interruption the file and the checkpoint agree."""
        files.write_text(path, "".join(json.dumps(files.storable(row), default=str) + "\n" for row in self.epochs))
