"""Round numbers for contours, colour bars and axes, and the colours between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LogNorm, Normalize
from matplotlib.ticker import AsinhLocator, LogLocator, MaxNLocator

from .values import is_empty, limits


def log_levels(low: float, high: float, at_least: int) -> list[float]:
    """Return round numbers at logarithmic distances (1, 2, 5, …) that enclose low and high, both positive.

    Ranges too narrow for six of them get evenly spaced ones.
    """
    levels: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        levels = _enclosing(LogLocator(subs=mantissas, numticks=99).tick_values(low / 10, high * 10), low, high)
        if len(levels) >= at_least:
            return levels
    return levels if len(levels) >= 6 else linear_levels(low, high)


def linear_levels(low: float, high: float) -> list[float]:
    """Return about ten evenly spaced round numbers that enclose low and high."""
    return _enclosing(MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(low, high), low, high)


def asinh_ticks(linear_width: float, low: float, high: float) -> np.ndarray:
    """Return round numbers for an axis that is linear near zero and logarithmic far from it."""
    ticks = np.asarray(AsinhLocator(linear_width, numticks=9, subs=(1, 3)).tick_values(low, high))
    return ticks[(ticks >= low) & (ticks <= high) & ((ticks == 0) | (np.abs(ticks) >= linear_width))]


def _enclosing(ticks: Sequence[float], low: float, high: float) -> list[float]:
    rounded = np.array([float(f"{tick:.10g}") for tick in ticks])
    slack = 1e-9  # a level that rounding has moved past an end still encloses it
    first = rounded[rounded <= low + slack * abs(low)].max(initial=rounded.min())
    last = rounded[rounded >= high - slack * abs(high)].min(initial=rounded.max())
    return [float(level) for level in rounded if first <= level <= last]


@dataclass(frozen=True)
class Levels:
    """Contour levels and colours that the panels compared share."""

    values: list[float]
    log: bool
    extend: Any

    def steps(self) -> ScalarMappable:
        """Return one colour between two levels."""
        return ScalarMappable(BoundaryNorm(self.values, 256, extend=self.extend), "viridis")

    def smooth(self) -> ScalarMappable:
        """Return colours that change all along."""
        return ScalarMappable((LogNorm if self.log else Normalize)(self.values[0], self.values[-1]), "viridis")


def shared_levels(arrays: Sequence[np.ndarray], value: str, log: bool, levels: list[float] | None = None) -> Levels:
    """Choose levels around all values, or take those given."""
    low, high = limits(arrays, value)
    log = log and not is_empty(arrays)
    chosen = levels or (log_levels(low, high, 9) if log and low > 0 else linear_levels(low, high))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    return Levels(chosen, log, extend.get((low < chosen[0], high > chosen[-1]), "neither"))


def check_levels(levels: Sequence[float], log: bool) -> list[float]:
    """Return the levels as floats.

    Raises:
        ValueError: fewer than two, not increasing, or ≤ 0 on a logarithmic scale.
    """
    chosen = [float(level) for level in levels]
    if len(chosen) < 2 or not all(a < b for a, b in zip(chosen, chosen[1:], strict=False)):
        raise ValueError(f"levels must be two or more increasing numbers, got {list(levels)}")
    if log and chosen[0] <= 0:
        raise ValueError(f'levels must be > 0 on a logarithmic scale, got {list(levels)}: pass scale="linear"')
    return chosen
