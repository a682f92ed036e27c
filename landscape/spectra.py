"""Eigenvalues of a symmetric operator by Lanczos with full reorthogonalisation, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .operators import Operator
from .timing import progress

ENDS = ("magnitude", "largest", "smallest")


@dataclass(frozen=True)
class Eigenpairs:
    """What Lanczos found: the wanted Ritz pairs, and the orthonormal basis that they were found in.

    Attributes:
        values: (k,) sorted as wanted.
        vectors: (n, k) orthonormal.
        residuals: (k,) ‖A v − θ v‖ / |θ₁|, by Lanczos' own identity |β·s_last|, without further products.
        converged: (k,) residual ≤ tol.
        products: products with A used.
        basis: (n, m) orthonormal Krylov basis, m = products.
        basis_trace: tr(basisᵀ A basis), known without further products.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    products: int
    basis: Tensor
    basis_trace: float


def lanczos(
    operator: Operator,
    k: int = 5,
    *,
    which: str = "magnitude",
    tol: float = 1e-3,
    max_products: int = 150,
    seed: int = 0,
) -> Eigenpairs:
    """Find k extreme eigenpairs of a symmetric operator.

    A three-term recurrence builds an orthonormal basis Q with QᵀAQ tridiagonal; every new vector is orthogonalised
    twice against all earlier ones, without which converged eigenvalues come back as ghost copies. A basis that closes
    early (an invariant subspace) is continued with a random vector, so that multiple eigenvalues are found. Within a
    spread-out spectrum the copies of a multiple eigenvalue grow out of rounding only: at a loose ``tol`` they may be
    missed.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works.
        k: how many.
        which: the largest in magnitude, the algebraically largest, or the smallest.
        tol: residual relative to the largest |eigenvalue| seen. Default 1e-3: 11–20 products on trained networks.
        max_products: where to stop unconverged; ``converged`` then says so.
        seed: of the start vector.

    Raises:
        ValueError: k outside 1…n, unknown ``which``, a product that is not finite.

    Cost: one product per step; memory n·products float64.   Source: Lanczos 1950; Paige 1976.
    """
    n = operator.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1…{n}, the size of the operator, got {k}")
    if which not in ENDS:
        raise ValueError(f"which must be one of {', '.join(ENDS)}, got {which!r}")
    generator = torch.Generator().manual_seed(seed)
    steps = min(n, max(max_products, k))
    basis = torch.empty(min(steps, 32), n, dtype=torch.float64, device=operator.device)
    alphas: list[float] = []
    betas: list[float] = []
    fresh = 0  # where the basis was last continued with a random vector
    vector = _random_unit(n, generator, basis[:0])
    for step in progress(range(steps), "Lanczos"):
        if step == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        basis[step] = vector
        image = (operator @ vector.to(operator.dtype)).double()
        alphas.append(float(vector @ image))
        image = _orthogonal(image, basis[: step + 1])
        beta = float(image.norm())
        if not math.isfinite(beta):
            raise ValueError(
                "a product with the operator is not finite: is the loss twice differentiable at the centre?"
            )
        scale = max(abs(value) for value in alphas + betas)
        if closed := beta <= 1e-13 * max(scale, 1e-300) * n**0.5:
            beta = 0.0
        values, coefficients, residuals = _ritz(alphas, betas, beta, k, which)
        enough = len(values) == k and float(residuals.max()) <= tol
        # a basis that closed holds exact eigenvalues, but not yet the copies of multiple ones
        settled = not (closed or fresh) or _no_better_left(values, alphas[fresh:], betas[fresh:], beta, which, tol)
        if step + 1 == n or (enough and settled):
            break
        fresh = step + 1 if closed else fresh
        vector = _random_unit(n, generator, basis[: step + 1]) if closed else image / beta
        betas.append(beta)
    used = basis[: len(alphas)]
    vectors = (coefficients.T.to(used) @ used).T
    return Eigenpairs(values, vectors, residuals, residuals <= tol, len(alphas), used.T, sum(alphas))


def _ritz(alphas: list[float], betas: list[float], beta: float, k: int, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Solve the tridiagonal problem: the k wanted values, their coefficients (m, k), and relative residuals."""
    off = torch.tensor(betas, dtype=torch.float64)
    tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, coefficients = torch.linalg.eigh(tridiagonal)
    wanted = _order(values, which).argsort()[:k]
    largest = values.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return values[wanted], coefficients[:, wanted], beta * coefficients[-1, wanted].abs() / largest


def _no_better_left(
    values: Tensor, alphas: list[float], betas: list[float], beta: float, which: str, tol: float
) -> bool:
    """Tell whether the best value that the earlier, closed bases left out is known, and no better than the last."""
    best, _, residual = _ritz(alphas, betas, beta, 1, which)
    slack = tol * float(values.abs().max())
    return float(residual) <= tol and float(_order(values[-1:], which)) <= float(_order(best, which)) + slack


def _order(values: Tensor, which: str) -> Tensor:
    return {"magnitude": -values.abs(), "largest": -values, "smallest": values}[which]


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _random_unit(n: int, generator: torch.Generator, basis: Tensor) -> Tensor:
    vector = _orthogonal(torch.randn(n, generator=generator, dtype=torch.float64).to(basis.device), basis)
    return vector / vector.norm()
