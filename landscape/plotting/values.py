"""The values of a picture: what is drawn, what stays a gap, and the range that all share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

LABELS = {"loss": "Loss", "accuracy": "Accuracy", "stderr": "Standard error"}  # metrics keep their own names
_GAPS = ("not yet measured", "", "interpolated, without a standard error", "failed (NaN, infinite or an error)")


class LineLike(Protocol):
    """Values at the points of a line."""

    @property
    def about(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def alphas(self) -> Tensor: ...  # noqa: D102
    @property
    def loss(self) -> Tensor: ...  # noqa: D102
    @property
    def accuracy(self) -> Tensor: ...  # noqa: D102
    @property
    def stderr(self) -> Tensor | None: ...  # noqa: D102
    @property
    def status(self) -> Tensor | None: ...  # noqa: D102
    @property
    def metrics(self) -> Mapping[str, Tensor]: ...  # noqa: D102
    @property
    def centre(self) -> Any: ...  # noqa: D102


class SurfaceLike(LineLike, Protocol):
    """Values at the points of a plane."""

    @property
    def betas(self) -> Tensor: ...  # noqa: D102


Results = Mapping[str, LineLike] | Mapping[str, SurfaceLike]


def check(results: Mapping[str, LineLike] | Mapping[str, SurfaceLike], value: str, log: bool = False) -> None:
    """Refuse to draw nothing, a value that a result does not have, or the logarithm of an accuracy."""
    if not results:
        raise ValueError("nothing to draw: the mapping from names to results is empty")
    for name, result in results.items():
        if value not in (known := measured(result)):
            listed, whose = ", ".join(f'"{one}"' for one in known), f"{name!r} has" if name else "there is"
            raise ValueError(f"value must be one of {listed}, which is what {whose}, got {value!r}")
    if log and value == "accuracy":
        raise ValueError('log must be False for value="accuracy", which runs from 0 to 1')


def measured(result: LineLike | SurfaceLike) -> list[str]:
    """Name what a result has at each of its points."""
    return ["loss", "accuracy", *["stderr"] * (result.stderr is not None), *result.metrics]


def column(result: LineLike | SurfaceLike, value: str) -> np.ndarray:
    """Return a value at all points, float64."""
    found: np.ndarray = (getattr(result, value) if value in LABELS else result.metrics[value]).numpy().astype(float)
    return found


def drawable(result: LineLike | SurfaceLike, value: str, log: bool = False) -> np.ndarray:
    """Return the values with NaN for everything that stays a gap: not finite or, on a log scale, not positive."""
    values = column(result, value)
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def band(line: LineLike, values: np.ndarray, value: str, log: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the edges, one standard error of the loss's difference to the centre around it; None without any."""
    if value != "loss" or line.stderr is None or not np.isfinite(values + line.stderr.numpy()).any():
        return None
    errors = drawable(line, "stderr")
    floor = np.nanmin(values) if log else -np.inf  # a logarithmic axis has no place for what lies below zero
    return np.maximum(values - errors, floor), values + errors


def gaps(values: np.ndarray, log: bool = False, status: np.ndarray | None = None) -> str:
    """Say how many of the values are gaps and why, in words; empty without any."""
    missing = np.isnan(values)
    status = np.ones(values.shape, int) if status is None else status
    reasons = [*_GAPS]
    reasons[1] = f"not drawn ({'NaN, infinite or ≤ 0' if log else 'NaN or infinite'})"
    counts = [(int((missing & (status == kind)).sum()), reason) for kind, reason in enumerate(reasons)]
    return ", ".join(f"{count} of {values.size} points {reason}" for count, reason in counts if count)


def missing(results: Mapping[str, Any], values: Mapping[str, np.ndarray], log: bool = False) -> dict[str, str]:
    """Say of each result what its gaps are, name → words; see `gaps`."""
    statuses = {name: None if result.status is None else result.status.numpy() for name, result in results.items()}
    return {name: gaps(array, log, statuses[name]) for name, array in values.items()}


def limits(arrays: Iterable[np.ndarray], value: str) -> tuple[float, float]:
    """Return the range shared by all arrays: 0 to 1 for accuracies and where nothing is finite."""
    finite = np.concatenate([array[np.isfinite(array)] for array in arrays])
    if value == "accuracy" or not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def round_levels(low: float, high: float, at_least: int) -> list[float]:
    """Return round numbers at logarithmic distances (1, 2, 5, …) that enclose low and high, both positive.

    Ranges too narrow for them get evenly spaced ones.
    """
    levels: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas]
        first = max(step for step in steps if step <= low)
        last = min(step for step in steps if step >= high)
        levels = [step for step in steps if first <= step <= last]
        if len(levels) >= at_least:
            return levels
    return levels if len(levels) >= 6 else even_levels(low, high)


def even_levels(low: float, high: float) -> list[float]:
    """Return about ten evenly spaced round numbers that enclose low and high."""
    rough = (high - low) / 10
    decade = 10.0 ** math.floor(math.log10(rough))
    step = min(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def bent_ticks(bulk: float, low: float, high: float) -> np.ndarray:
    """Return zero, and ±1, ±3, ±10 … between two ends, none inside the part that asinh leaves straight."""
    ticks = np.array([sign * m * 10.0**d for d in range(-9, 10) for m in (1, 3) for sign in (-1, 1)] + [0])
    return np.sort(ticks[(np.abs(ticks) >= bulk / 3) & (ticks >= low) & (ticks <= high) | (ticks == 0)])


def beyond(values: np.ndarray, window: tuple[float, float]) -> dict[str, np.ndarray]:
    """Return which values lie above and below a picture: they are marked at its edge."""
    return {"above": values >= window[1], "below": values <= window[0]}
