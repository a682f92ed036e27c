"""The top eigenpairs of a symmetric operator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..checking import numbers
from ..results import Result, with_errors
from .traces import fold_stderr, t_interval


@dataclass(frozen=True, eq=False)
class Eigenvalues(Result):
    """The top eigenpairs of an operator.

    Attributes:
        values: (k,) sorted by what was asked for (default: by magnitude).
        residuals: (k,) ‖Hv − θv‖/|θ₁|, as the iteration has it; for a tolerance below 1e-5, and in pyhessian's engine,
            measured by a product with each vector.
        converged: (k,) residual within the tolerance, in the iteration and when measured.
        vectors: name → (k, *shape), each of the k orthonormal over all names; `vector(i)` gives one as a direction.
            In filter-relative units they are eigenvectors of D·H·D: the step in weights is D times them.
        fold_values: (folds, k) vᵀH_f v on each fold of the data, and fold_weights (folds,), their shares; one fold
            where there are too few batches to tell an error.

    Example:
        >>> import landscape
        >>> top = landscape.top_eigenvalues(torch.diag(torch.arange(50.0)), k=2, tol=1e-6)
        >>> top.values.round(decimals=3).tolist()
        [49.0, 48.0]
        >>> round(top.vector(0)[""][49].abs().item(), 3)
        1.0
    """

    values: Tensor
    residuals: Tensor
    converged: Tensor
    vectors: dict[str, Tensor]
    fold_values: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    fold_weights: Tensor = field(default_factory=lambda: torch.empty(0))
    columns: ClassVar[tuple[str, ...]] = ("values", "stderr_data", "residuals", "converged")
    picture: ClassVar[str] = "spectra.eigenvalues"

    @property
    def stderr_data(self) -> Tensor:
        """(k,) standard error over the data: the spread of vᵀH_f v at the eigenvectors of all the data.

        The folds' own eigenvalues would be biased upwards: each picks the direction that suits its samples.
        """
        errors = [fold_stderr(column, self.fold_weights) for column in self.fold_values.T]
        return torch.tensor(errors or [math.nan] * len(self.values), dtype=torch.float64)

    def interval(self, level: float = 0.95) -> Tensor:
        """Return (k, 2) confidence intervals over the data, by Student's t with folds − 1 degrees of freedom.

        Raises:
            ValueError: level outside (0, 1).
        """
        pairs, df = zip(self.values.tolist(), self.stderr_data.tolist(), strict=True), len(self.fold_weights) - 1
        return torch.tensor([t_interval(value, stderr, df, level) for value, stderr in pairs], dtype=torch.float64)

    def vector(self, i: int = 0) -> dict[str, Tensor]:
        """Return the i-th eigenvector as a direction: name → tensor."""
        numbers(whole=True, at_least=-len(self.values), below=len(self.values), i=i)
        return {name: stack[i] for name, stack in self.vectors.items()}

    def _cells(self) -> dict[str, list[str]]:
        residuals = [f"{residual:.1e}" for residual in self.residuals.tolist()]
        converged = ["yes" if done else "no" for done in self.converged.tolist()]
        values = with_errors(self.values, self.stderr_data)
        index = [str(i + 1) for i in range(len(values))]
        return {"λ": index, "eigenvalue": values, "residual": residuals, "converged": converged}

    def __repr__(self) -> str:
        errors = self.stderr_data.tolist()
        shown = zip(self.values.tolist(), errors, strict=True)
        values = ", ".join(f"{v:.4g}" + (f" ± {e:.2g}" if e == e else "") for v, e in shown)
        over = f" over data ({len(self.fold_weights)} folds)" if errors and errors[0] == errors[0] else ""
        missing = int((~self.converged).sum())
        more = f", {missing} not converged" if missing else ""
        quality = f"residual ≤ {float(self.residuals.max()):.1e}, {self.about['products']} products{more}"
        return f"Eigenvalues([{values}]{over}, {quality}; {self._kind()})"
