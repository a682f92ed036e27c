"""What a training leaves behind."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import files

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass
class History:
    """What a training left behind.

    Args:
        epochs: One row per epoch: epoch, loss, accuracy, val_loss, val_accuracy, lr, seconds, SAM's diagnostics on the
            epoch's first step that has an ε, and what `on_epoch` returned.
        steps: Loss of every step, (steps,).
        snapshots: Name -> tensor on the CPU after every epoch, where they were asked for.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: Tensor = field(default_factory=lambda: torch.empty(0))
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def table(self) -> DataFrame:
        """The epochs as a pandas table."""
        from pandas import DataFrame

        return DataFrame(self.epochs)

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
