"""Symmetric linear operators: a `shape`, a `dtype`, a `device` and `@`. A dense symmetric tensor is one."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Operator(Protocol):
    """A symmetric linear operator, as far as traces and spectra need it.

    Example:
        >>> class Ones:  # the matrix of ones, never stored
        ...     shape, dtype, device = (100, 100), torch.float64, torch.device("cpu")
        ...
        ...     def __matmul__(self, vectors):
        ...         return vectors.sum(0, keepdim=True).expand_as(vectors)
        >>> isinstance(Ones(), Operator)
        True
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def __matmul__(self, vectors: Tensor, /) -> Tensor: ...


def fold_products(operator: Any, vector: Tensor, folds: bool = True) -> Tensor:
    """Return A_f v of every fold f of the data, (folds, n) in A's dtype; of all data alone where A has no folds."""
    vector = vector.to(operator.dtype)
    return operator.by_fold(vector) if folds and hasattr(operator, "by_fold") else (operator @ vector)[None]


def fold_shares(operator: Any) -> Tensor:
    """Return the folds' shares of the data, (folds,) float64 on the CPU; they sum to one."""
    return torch.as_tensor(getattr(operator, "fold_weights", [1.0]), dtype=torch.float64, device="cpu")
