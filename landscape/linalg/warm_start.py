"""The largest eigenvalue of an operator that is close to one whose top eigenvectors are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .lanczos import Krylov, basis_dtype, random_unit
from .operators import Operator, inner, length, local_size

_TINY = 1e-6  # of a start vector's norm: less than that outside of the basis is rounding
_SECOND = 10  # times the tolerance of the first pair: that of the second, where it is found anew
_LEANING = 0.1  # towards the gradient, of the second start
_STALE = 0.05  # residual of the top Ritz pair of the starts, beyond which they say little of this operator


class TopPair(NamedTuple):
    """The top Ritz pair of a symmetric operator A in a small subspace, and the second Ritz vector.

    Attributes:
        value: θ ≤ λ₁.
        residual: ‖A y − θ y‖/|θ|: A has an eigenvalue within residual·|θ| of θ.
        vectors: (k, n) the top Ritz vectors, k ≤ 2, orthonormal: what the next call starts from.
        fold_values: (folds,) yᵀA_f y for every fold of the data.
        fold_traces: (folds,) tr(V A_f Vᵀ), V the vectors.
        products: with A.
    """

    value: float
    residual: float
    vectors: Tensor
    fold_values: Tensor
    fold_traces: Tensor
    products: int


def top_pair(
    operator: Operator, starts: Sequence[Tensor] | Tensor = (), *, tol: float = 5e-4, max_products: int = 30
) -> TopPair:
    """Find the algebraically largest eigenvalue by Rayleigh–Ritz in span{starts, residuals}.

    Every start is multiplied, then the residual A y − θ y of the top Ritz pair, again and again. From one start this is
    Lanczos, until it is ≤ tol, and ten times as much for the second pair. From the last two Ritz vectors of a matrix
    that has drifted by 1 % since, three products do: the gap of the Ritz values is known then, and residual²/gap ≤ tol
    is enough (Kato and Temple). Starts whose own residual is larger than 5 % count as none: another start is added, and
    both pairs have to converge as from one. Where two products would do, the third is spent on the second pair: one
    eigenvalue may overtake another. What overtakes from outside of all residuals, and of the gradient, of which the
    second start gets a tenth where the operator has it as ``start``, is not seen: θ is a lower bound.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works.
        starts: (n,) each, the best first; what others span is left out. Default: the start of `lanczos`.
        tol: of θ, relative.
        max_products: stop there in any case, or where memory ends; the residual says what was reached.

    Raises:
        ValueError: a product that is not finite.

    Cost: a product per start and residual; memory 2·max_products vectors.
    Source: Davidson 1975 without a preconditioner. The warm start is ours.

    Example:
        >>> matrix = torch.diag(torch.arange(50.0))
        >>> cold = top_pair(matrix, tol=1e-4)
        >>> warm = top_pair(1.01 * matrix, cold.vectors, tol=1e-3)
        >>> round(warm.value, 2), warm.products
        (49.49, 3)
    """
    dtype = basis_dtype(operator)
    most = getattr(operator, "memory", math.inf) / (4 * max(1, local_size(operator)) * dtype.itemsize)  # images too
    krylov = Krylov(operator, min(max_products, operator.shape[0], max(4, int(min(most, 1e9)))), dtype)
    images, residual = torch.empty_like(krylov.rows), math.inf
    noise = random_unit(operator, torch.Generator().manual_seed(0), krylov.basis)
    pending = [start.to(krylov.rows) for start in starts] or [krylov.start(noise)]
    offered = getattr(operator, "start", lambda: None)() if len(pending) > 1 else None
    if offered is not None and 0 < float(norm := length(operator, offered)) < math.inf:
        pending[1] = pending[1] + _LEANING * (offered / norm).to(pending[1])
    is_warm = len(pending) > 1
    while pending and krylov.size < len(krylov.rows):
        vector = _outside(krylov, pending.pop(0))
        if vector is not None:
            krylov.append(vector)
            images[krylov.size - 1] = krylov.remainder + krylov.form[-1].to(krylov.rows) @ krylov.basis
        elif residual < math.inf:  # of the last residual nothing is left but rounding
            break
        if not pending:
            values, coefficients, _ = krylov.ritz()
            values, mix = values.flip(0)[:2], coefficients.flip(1)[:, :2].T.to(krylov.rows)
            vectors = mix @ krylov.basis
            errors = mix @ images[: krylov.size] - values.to(mix)[:, None] * vectors
            scale = max(abs(float(values[0])), torch.finfo(torch.float64).tiny)
            residual, other = (float(length(operator, error)) / scale for error in (errors[0], errors[-1]))
            gap = float(values[0] - values[-1]) / scale
            if is_warm and krylov.size <= len(starts) and residual > _STALE:
                is_warm, pending = False, [errors[0], krylov.start(noise)]
                continue
            is_found = residual * (residual / gap if is_warm and gap > residual else 1) <= tol
            is_open = krylov.size < 3 if is_warm else other > _SECOND * tol
            pending = [errors[0]] if not is_found else [errors[-1]] if is_open else []
    top = coefficients.flip(1)[:, :2]
    parts = torch.einsum("ik,fij,jk->fk", top, krylov.forms, top)
    return TopPair(float(values[0]), residual, vectors, parts[:, 0], parts.sum(1), krylov.size)


def _outside(krylov: Krylov, vector: Tensor) -> Tensor | None:
    """Return the unit vector of what lies outside of the basis, None where that is rounding."""
    whole = float(length(krylov.operator, vector))
    for _ in range(2):
        vector = vector - inner(krylov.operator, krylov.basis, vector) @ krylov.basis
    left = float(length(krylov.operator, vector))
    return vector / left if left > _TINY * whole else None
