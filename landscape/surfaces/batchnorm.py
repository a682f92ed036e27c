"""What the policy for BatchNorm's statistics does to a surface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..results import Result
from .grids import Line, line


@dataclass(frozen=True, eq=False)
class BatchNormCheck(Result):
    """The loss at five points of a random line, under both policies for BatchNorm's statistics.

    Attributes:
        alphas: (5,) steps in units of the direction.
        fixed, recomputed: (5,) losses with the model's own statistics, and with those of one pass at each point.
    """

    alphas: Tensor
    fixed: Tensor
    recomputed: Tensor
    dims: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(("alphas", "fixed", "recomputed"), ("alpha",))
    columns: ClassVar[tuple[str, ...]] = ("alphas", "fixed", "recomputed")
    picture: ClassVar[str] = "lines.lines"

    def _drawn(self) -> dict[str, Line]:
        curves = {"fixed statistics": self.fixed, "recomputed at every point": self.recomputed}
        unknown = torch.full_like(self.fixed, math.nan)
        return {name: Line(self.about, self.alphas, loss, unknown) for name, loss in curves.items()}

    def _cells(self) -> dict[str, list[str]]:
        columns = {"step": self.alphas, "loss, fixed statistics": self.fixed, "recomputed": self.recomputed}
        return {name: [f"{value:.4g}" for value in column.tolist()] for name, column in columns.items()}

    def __repr__(self) -> str:
        rows = zip(*(values.tolist() for values in (self.alphas, self.fixed, self.recomputed)), strict=True)
        losses = "; ".join(f"{alpha:g}: {fixed:.4g}, {fresh:.4g}" for alpha, fixed, fresh in rows)
        return f"BatchNormCheck(step: loss with fixed, with recomputed statistics: {losses})"


def batchnorm_check(
    model: nn.Module, data: Any = None, *, span: float = 1.0, seed: int = 0, **settings: Any
) -> BatchNormCheck:
    """Show what the policy for BatchNorm's statistics does to a surface, at five points of a random line.

    At step 0 the two differ by how far the running statistics are from those of ``data``. Away from it fixed
    statistics no longer fit the moved weights; which of the two is meant is the caller's choice.

    Args:
        model, data, span, seed: see `line`.
        settings: others of `line`, but for ``batchnorm``.

    Cost: 15 forward passes.
    """
    fixed, fresh = (
        line(model, data, points=5, span=span, seed=seed, batchnorm=policy, **settings)
        for policy in ("fixed", "recomputed")
    )
    about = fixed.about | {"batchnorm": "fixed and recomputed"}
    return BatchNormCheck(about, fixed.alphas, fixed.loss, fresh.loss)
