"""D·A·D for a diagonal D, and what every operator of a network's loss offers beside ``@``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..linalg import Operator, local_size

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class Symmetric:
    """What the operators here offer beside ``@``."""

    def to_scipy(self: Operator) -> LinearOperator:
        """Return the operator for SciPy's solvers, which work on the CPU in NumPy's float32 or float64."""
        import scipy.sparse.linalg

        def product(x: Any) -> Any:
            return (self @ torch.as_tensor(x, dtype=self.dtype)).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return scipy.sparse.linalg.LinearOperator(self.shape, product, rmatvec=product, matmat=product, dtype=dtype)


class Scaled(Symmetric):
    """D·A·D for a diagonal D and a `Hessian` A, itself an operator."""

    def __init__(self, operator: Any, d: Tensor, units: str = "scaled") -> None:
        if d.shape != (local_size(operator),) or not d.isfinite().all():
            got = tuple(d.shape) if d.isfinite().all() else "NaN or infinity"
            raise ValueError(f"d must have shape ({local_size(operator)},) and be finite, got {got}")
        self.operator, self.d, self.units = operator, d.to(operator.device), units
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self.coordinates, self.shards, self.estimate = operator.coordinates, operator.shards, operator.estimate
        self.vector_memory, self.fold_weights, self.held = operator.vector_memory, operator.fold_weights, operator.held

    def __repr__(self) -> str:
        return f"{self.operator!r}".replace("raw units", f"{self.units} units")

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        d = self.d if vectors.ndim == 1 else self.d[:, None]
        return d * (self.operator @ (d * vectors.to(self.device, self.dtype)))

    def by_fold(self, vectors: Tensor) -> Tensor:
        """See `Hessian.by_fold`."""
        d = self.d if vectors.ndim == 1 else self.d[:, None]
        return d * self.operator.by_fold(d * vectors.to(self.device, self.dtype))

    def start(self) -> Tensor | None:
        """See `Hessian.start`: the gradient by the coordinates of these units."""
        gradient = self.operator.start()
        return None if gradient is None else self.d * gradient

    def about(self, **more: Any) -> dict[str, Any]:
        """See `Hessian.about`."""
        return self.operator.about(units=self.units, **more)
