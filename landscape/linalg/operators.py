"""Symmetric linear operators: a `shape`, a `dtype`, a `device` and `@`. A dense symmetric tensor is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .. import pieces


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
    """Return A_f v of every fold f of the data, (folds, n); of all data alone where A has no folds."""
    vector = vector.to(operator.dtype)
    return operator.by_fold(vector) if folds and hasattr(operator, "by_fold") else (operator @ vector)[None]


def fold_shares(operator: Any) -> Tensor:
    """Return the folds' shares of the data, (folds,) float64 on the CPU; they sum to one."""
    return torch.as_tensor(getattr(operator, "fold_weights", [1.0]), dtype=torch.float64, device="cpu")


class Shards(Protocol):
    """How vectors lie in parts over several processes: an operator's ``shards``, None or absent where they do not."""

    local_size: int

    def inner(self, rows: Tensor, other: Tensor) -> Tensor: ...  # noqa: D102
    def block_sums(self, values: Tensor, sizes: list[int]) -> Tensor: ...  # noqa: D102
    def drawn(self, sample: Callable[[int], Tensor]) -> Tensor: ...  # noqa: D102


def _shards(operator: Any) -> Shards | None:
    return getattr(operator, "shards", None)


def local_size(operator: Any) -> int:
    """Return how many entries of a vector this process holds: all n, unless they lie in shards."""
    shards = _shards(operator)
    return int(operator.shape[0]) if shards is None else shards.local_size


def inner(operator: Any, rows: Tensor, other: Tensor) -> Tensor:
    """Return the inner products ``rows @ other``: (n,) or (m, n) times (n,) or (n, k)."""
    shards = _shards(operator)
    return rows @ other if shards is None else shards.inner(rows, other)


def wide_inner(operator: Any, rows: Tensor, other: Tensor) -> Tensor:
    """Return the inner products of (m, n) with (n,) in float64."""
    if _shards(operator) is not None:
        return inner(operator, rows.double(), other.double())
    return torch.stack([pieces.inner(row, other) for row in rows])


def length(operator: Any, vector: Tensor) -> Tensor:
    """Return the norm of a vector."""
    return inner(operator, vector, vector).sqrt()


def block_sums(operator: Any, values: Tensor, sizes: list[int]) -> Tensor:
    """Sum blocks of so many consecutive rows in float64, (n,) → (blocks,) and (n, k) → (blocks, k), on the CPU."""
    values, shards = values.double(), _shards(operator)
    if shards is not None:
        return shards.block_sums(values, sizes).cpu()
    return torch.stack([part.sum(0) for part in values.split(sizes)]).cpu()


def drawn(operator: Any, sample: Callable[[int], Tensor], dtype: torch.dtype) -> Tensor:
    """Return a random vector, ``sample(count)`` giving the next so many numbers of the whole one."""
    if (shards := _shards(operator)) is not None:
        return shards.drawn(sample).to(operator.device, dtype)
    return pieces.drawn_into(torch.empty(operator.shape[0], dtype=dtype, device=operator.device), sample)
