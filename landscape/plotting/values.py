"""The values of a picture: what is drawn, what stays a gap, and the range that all share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from torch import Tensor

Scale = Literal["auto", "linear", "log"]
Kind = Literal["contour", "3d"]
WIDE = 30.0  # largest over smallest value, beyond which scale="auto" is logarithmic
LABELS = {"loss": "Loss", "accuracy": "Accuracy", "stderr": "Standard error"}  # metrics keep their own names
_GAPS = ("not yet measured", "", "interpolated, without a standard error", "failed (NaN, infinite or an error)")


@runtime_checkable
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


@runtime_checkable
class SurfaceLike(LineLike, Protocol):
    """Values at the points of a plane."""

    @property
    def betas(self) -> Tensor: ...  # noqa: D102


Results = Mapping[str, LineLike] | Mapping[str, SurfaceLike]


def is_log(scale: Scale, arrays: Iterable[np.ndarray], value: str = "loss") -> bool:
    """Decide for both back ends whether the axis of a value is logarithmic.

    Args:
        scale: ``"auto"``: where a loss or an error is positive throughout and its largest finite value is more than
            30 times its smallest.
        arrays: all that is drawn on the axis.
        value: what it is.

    Raises:
        ValueError: an unknown scale, the logarithm of an accuracy.
    """
    check_option("scale", scale, Scale)
    if scale == "log" and value == "accuracy":
        raise ValueError('scale must be "auto" or "linear" for value="accuracy", which runs from 0 to 1, got "log"')
    if scale != "auto" or value not in ("loss", "stderr"):
        return scale == "log"
    finite = finite_of(arrays)
    return bool(finite.size and 0 < WIDE * finite.min() < finite.max())


def check_option(name: str, value: Any, options: Any) -> None:
    """Raise if a value is none of those that a ``Literal`` lists."""
    if not isinstance(value, str) or value not in get_args(options):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(options)))}, got {value!r}")


def check(results: Mapping[str, LineLike] | Mapping[str, SurfaceLike], value: str) -> None:
    """Raise if there is nothing to draw, or a result does not have the value."""
    if not results:
        raise ValueError("nothing to draw: the mapping from names to results is empty")
    for name, result in results.items():
        if value not in (known := measured(result)):
            listed, whose = ", ".join(f'"{one}"' for one in known), f"{name!r} has" if name else "there is"
            raise ValueError(f"value must be one of {listed}, which is what {whose}, got {value!r}")


def measured(result: LineLike | SurfaceLike) -> list[str]:
    """Name what a result has at each of its points."""
    return ["loss", "accuracy", *["stderr"] * (result.stderr is not None), *result.metrics]


def column(result: LineLike | SurfaceLike, value: str) -> np.ndarray:
    """Return a value at all points, float64."""
    tensor = getattr(result, value) if value in LABELS else result.metrics[value]
    values: np.ndarray = tensor.numpy().astype(float)
    return values


def columns_of(results: Mapping[str, Any], value: str, scale: Scale) -> tuple[dict[str, np.ndarray], bool]:
    """Return name → the values to draw, NaN where there is a gap, and whether their axis is logarithmic."""
    check(results, value)
    log = is_log(scale, [column(result, value) for result in results.values()], value)
    return {name: drawable(result, value, log) for name, result in results.items()}, log


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


def gaps(values: np.ndarray, log: bool = False, status: Any = None) -> str:
    """Say how many of the values are gaps and why, in words; empty without any."""
    missing = np.isnan(values)
    status = np.ones(values.shape, int) if status is None else np.asarray(status)
    undrawn = f"not drawn ({'NaN, infinite or ≤ 0' if log else 'NaN or infinite'})"
    counts = [(int((missing & (status == kind)).sum()), reason or undrawn) for kind, reason in enumerate(_GAPS)]
    return ", ".join(f"{count} of {values.size} points {reason}" for count, reason in counts if count)


def missing(results: Mapping[str, Any], values: Mapping[str, np.ndarray], log: bool = False) -> dict[str, str]:
    """Say of each result what its gaps are, name → words; see `gaps`."""
    return {name: gaps(array, log, results[name].status) for name, array in values.items()}


def finite_of(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Return all finite values in one row."""
    parts = [np.asarray(array, dtype=float).ravel() for array in arrays]
    values = np.concatenate(parts) if parts else np.empty(0)
    return values[np.isfinite(values)]


def is_empty(arrays: Iterable[np.ndarray]) -> bool:
    """Return whether there is no finite value at all."""
    return not finite_of(arrays).size


def limits(arrays: Iterable[np.ndarray], value: str) -> tuple[float, float]:
    """Return the range shared by all arrays: 0 to 1 for accuracies and where nothing is finite."""
    finite = finite_of(arrays)
    if value == "accuracy" or not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)
