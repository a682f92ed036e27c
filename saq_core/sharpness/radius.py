"""The radius of the perturbation: a number, or a function that adapts it during training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Radius = float | Callable[[Tensor | None, Tensor | None, int], float | Tensor]


@dataclass(frozen=True)
class AdaptiveRho:
    """Adapt rho to the sharpness in the last step with two passes: ``clamp(ln(1 + h), lowest, highest)``.

    h = loss at the perturbed weights - loss at the weights. Use it as `SAM(rho=…)`.

    Source: ASGA, ``rho = min(rho_max, ln(h + 1))`` as its only long source, a summary, has it. The floor is ours: a
    radius of 0 would hold itself for ever.
    """

    start: float = 0.05
    lowest: float = 0.005
    highest: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.start <= self.highest < math.inf:
            raise ValueError(f"rho must be within rho_range, got {self.start} for {self.lowest} … {self.highest}")

    def __call__(self, loss: Tensor | None, perturbed_loss: Tensor | None, step: int) -> float | Tensor:
        """Return the radius of the next step."""
        if loss is None or perturbed_loss is None:
            return self.start
        return (perturbed_loss - loss).clamp_min(0).log1p().clamp(self.lowest, self.highest)


def checked_range(rho: float, ends: Any) -> tuple[float, float] | None:
    """Return the range (lowest, highest) in which an `AdaptiveRho` can start from rho, as floats; None is none."""
    if ends is None:
        return None
    try:
        lowest, highest = map(float, ends)
    except (TypeError, ValueError):
        raise ValueError(f"rho_range must be (lowest, highest) or None, got {ends!r}") from None
    AdaptiveRho(rho, lowest, highest)
    return lowest, highest
