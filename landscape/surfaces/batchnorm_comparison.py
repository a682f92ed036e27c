"""What the policy for BatchNorm's statistics does to a surface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from .. import parallel
from ..model import BatchNorm, BatchObjective, Loss, Objective, Space, objective_of
from ..results import Result
from .grids import Line, line


@dataclass(frozen=True, eq=False)
class BatchNormCheck(Result):
    """The loss at five points of a random line, under both policies for BatchNorm's statistics.

    Attributes:
        alphas: (5,) steps in units of the direction.
        fixed, recomputed: (5,) losses with the model's own statistics, and with those of one pass at each point.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> check = landscape.batchnorm_check(model, data)
        >>> bool((check.fixed == check.recomputed).all())  # there is no BatchNorm
        True
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
    model: nn.Module | Objective,
    data: Any = None,
    *,
    span: float = 1.0,
    seed: int = 0,
    space: Space | None = None,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> BatchNormCheck:
    """Show what the policy for BatchNorm's statistics does to a surface, at five points of a random line.

    At step 0 the two differ by how far the running statistics are from those of ``data``. Away from it fixed
    statistics no longer fit the moved weights; which of the two is meant is the caller's choice.

    Args:
        model: any network, or an `Objective`; not touched.
        data, span, seed, space, loss, objective: see `line`.

    Cost: 18 forward passes.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> check = landscape.batchnorm_check(model, data)
        >>> check.fixed.shape, bool((check.fixed != check.recomputed).all())
        (torch.Size([5]), True)
    """
    parallel.check_agreement(**locals())
    function = objective_of(model, data, space=space, loss=loss, objective=objective)
    fixed, fresh = (
        line(function.variant(batchnorm=policy), points=5, span=span, seed=seed) for policy in get_args(BatchNorm)
    )
    about = fixed.about | {"batchnorm": "fixed and recomputed"}
    return BatchNormCheck(about, fixed.alphas, fixed.loss, fresh.loss)
