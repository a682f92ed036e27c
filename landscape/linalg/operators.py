"""Symmetric linear operators: a `shape`, a `dtype`, a `device` and `@`. A dense symmetric tensor is one."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Operator(Protocol):
    """What traces and spectra ask of a matrix: they never see a model, a loss or a plot."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def __matmul__(self, vectors: Tensor, /) -> Tensor: ...


def fold_products(operator: Any, vector: Tensor) -> Tensor:
    """Return A_f v of every fold of the data, (folds, n) float64; one fold where the operator knows none."""
    vector = vector.to(operator.dtype)
    return (operator.by_fold(vector) if hasattr(operator, "by_fold") else (operator @ vector)[None]).double()


def fold_shares(operator: Any) -> Tensor:
    """Return the folds' shares of the data, (folds,) float64 on the CPU."""
    return torch.as_tensor(getattr(operator, "fold_weights", [1.0]), dtype=torch.float64, device="cpu")
