"""Eigenvalues of a symmetric operator by Lanczos with full reorthogonalisation, in float64."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..progress import finished
from .operators import Operator, fold_products, fold_shares

ENDS = ("magnitude", "largest", "smallest", "both")


@dataclass(frozen=True)
class Eigenpairs:
    """What Lanczos found: the wanted Ritz pairs, and the orthonormal basis that they were found in.

    Attributes:
        values: (k,) sorted as wanted.
        vectors: (n, k) orthonormal.
        residuals: (k,) ‖A v − θ v‖ / |θ₁|, from what the recurrence left over, without further products.
        converged: (k,) residual ≤ tol (and the check for missed copies is through, where it was asked for).
        products: products with A used.
        basis: (n, m) orthonormal, m = products unless restarted.
        basis_trace: tr(basisᵀ A basis), known without further products.
        fold_traces: (folds,) tr(basisᵀ A_f basis) for every fold of the data; one fold where the operator has none.
        form: (m, m) basisᵀ A basis.
        left, loose: (n, j) and (j, m), j ≤ 1 + searches: A·basis = basis·form + left·loose.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    products: int
    basis: Tensor
    basis_trace: float
    fold_traces: Tensor
    form: Tensor
    left: Tensor
    loose: Tensor

    @property
    def images(self) -> Tensor:
        """A·basis, (n, m), built from the recurrence when it is asked for: as much memory as the basis."""
        return self.basis @ self.form.to(self.basis) + self.left @ self.loose.to(self.basis)


def lanczos(
    operator: Operator,
    k: int = 5,
    *,
    which: str = "magnitude",
    tol: float = 1e-3,
    max_products: int = 150,
    max_basis: int | None = None,
    check_multiplicity: bool = False,
    seed: int = 0,
) -> Eigenpairs:
    """Find k extreme eigenpairs of a symmetric operator.

    A recurrence builds an orthonormal basis Q with AQ = QH + r·eᵀ; every new vector is orthogonalised twice against
    all earlier ones, or converged eigenvalues come back as ghosts. A full basis is restarted with the Ritz vectors
    furthest out and r. A basis that closes early (an invariant subspace) is continued with a random vector. Within a
    spread-out spectrum copies of a multiple eigenvalue grow out of rounding only: at a loose ``tol`` they are missed,
    unless ``check_multiplicity``.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works. Where it has ``by_fold``, traces of folds are kept.
        k: how many.
        which: the largest in magnitude, the algebraically largest, the smallest, or both: ⌈k/2⌉ from the upper and
            ⌊k/2⌋ from the lower end, sorted downwards (scipy's "BE").
        tol: residual relative to the largest |eigenvalue| seen. Default 1e-3: 11–20 products on trained networks.
            With a float32 operator true residuals stop at 1e-6…6e-6, whatever the recurrence says below that.
        max_products: where to stop unconverged; ``converged`` then says so.
        max_basis: vectors kept at most; default max(2k + 20, 80).
        check_multiplicity: when all has converged, search on from a random vector orthogonal to the basis until what
            it finds is no further out than the k-th.
        seed: of the start vector.

    Raises:
        ValueError: k outside 1…n, unknown ``which``, max_basis < k + 2, a product that is not finite.

    Cost: one product per step (a check: 5–20 more); memory n·max_basis float64, half as much again while restarting.
    Source: Lanczos 1950; Paige 1976; Wu, Simon 2000 (restart).
    """
    settings: dict[str, Any] = {"which": which, "tol": tol, "max_products": max_products, "max_basis": max_basis}
    steps = lanczos_steps(operator, k, check_multiplicity=check_multiplicity, seed=seed, **settings)
    found: Eigenpairs = finished(steps, "Lanczos", max(max_products, k))
    return found


def lanczos_steps(
    operator: Operator,
    k: int,
    *,
    which: str = "magnitude",
    tol: float = 1e-3,
    max_products: int = 150,
    max_basis: int | None = None,
    check_multiplicity: bool = False,
    seed: int = 0,
) -> Generator[None, None, Eigenpairs]:
    """Do what `lanczos` does, pausing after each product, for callers with other things to attend to."""
    n = operator.shape[0]
    room = min(n, max(2 * k + 20, 80) if max_basis is None else max_basis)
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1…{n}, the size of the operator, got {k}")
    if which not in ENDS:
        raise ValueError(f"which must be one of {', '.join(ENDS)}, got {which!r}")
    if room < min(n, k + 2):
        raise ValueError(f"max_basis must be >= k + 2 = {k + 2}, got {room}")
    generator = torch.Generator().manual_seed(seed)
    krylov = _Krylov(operator, room)
    steps, keep = max(max_products, k), min((k + room) // 2, room - 2)
    scale = torch.finfo(torch.float64).tiny  # the largest value seen
    fresh = 0  # where the basis was last continued with a random vector
    vector = random_unit(n, generator, krylov.basis)
    for products in range(1, steps + 1):
        closed = krylov.add(vector)
        yield
        values, coefficients, residuals = krylov.ritz()
        wanted, scale = _wanted(values, which, k), max(scale, float(values.abs().max()))
        slack = tol * scale
        enough = krylov.size >= k and float(residuals[wanted].max()) <= slack
        known = settled = True
        if closed or fresh or check_multiplicity:
            # a basis that closed holds exact eigenvalues, but not yet the copies of multiple ones
            known, settled = _search(krylov, fresh, values[wanted], which, slack)
        if krylov.size == n or (enough and settled) or products == steps:
            break
        begin = closed or (check_multiplicity and enough and known)
        # a search goes on by itself until its best value is known, all else where the wanted pairs need it most
        row = -1 if begin or not known else krylov.heaviest(coefficients[:, wanted])
        fresh = fresh if begin or not known else 0
        if krylov.size == room or (begin and krylov.size > keep and room < n):  # a search needs room of its own
            first = 0 if begin else fresh
            found, coefficients, _ = krylov.ritz(first)
            kept = _wanted(found, which, (room - first) // 2 if first else keep)
            krylov.restart(coefficients[:, kept], first)
        fresh = krylov.size if begin else fresh
        vector = random_unit(n, generator, krylov.basis) if begin else krylov.next(row)
    return krylov.pairs(wanted, scale, tol, products, settled or krylov.size == n or not check_multiplicity)


class _Krylov:
    """A growing orthonormal basis Q with AQ = QH + LᵀC: H is kept for every fold, L is what products left over.

    L has one row, the last residual, and C the last unit vector, until a random vector follows; the rows then lose
    what later vectors take, ``inner``.
    """

    def __init__(self, operator: Operator, room: int) -> None:
        self.operator, self.room, self.size = operator, room, 0
        self.rows = torch.empty(min(room, 32), operator.shape[0], dtype=torch.float64, device=operator.device)
        self.weights = fold_shares(operator)
        self.forms = torch.zeros(len(self.weights), 0, 0, dtype=torch.float64)
        self.left = self.rows[:0]
        self.loose = self.inner = torch.zeros(0, 0, dtype=torch.float64)

    basis = property(lambda self: self.rows[: self.size])
    form = property(lambda self: torch.einsum("f,fij->ij", self.weights, self.forms))

    def add(self, vector: Tensor) -> bool:
        """Take a unit vector orthogonal to the basis into it; tell whether nothing is left of its product."""
        if self.size == len(self.rows):
            more = min(self.size, self.room - self.size)
            self.rows = torch.cat([self.rows, self.rows.new_empty(more, self.rows.shape[1])])
        self.rows[self.size] = vector
        self.size += 1
        images = fold_products(self.operator, vector)
        columns = (images @ self.basis.T).cpu()
        self.forms = pad(self.forms, (0, 1, 0, 1))
        self.forms[:, -1], self.forms[:, :, -1] = columns, columns
        rest = orthogonal(self.weights.to(images) @ images, self.basis)
        inner = self.left @ vector
        self.left = self.left - torch.outer(inner, vector)
        self.inner = torch.cat([self.inner, inner.cpu()[:, None]], dim=1)
        self.loose = pad(self.loose, (0, 1))
        if finite(rest.norm()) <= nothing(self.form):
            return True
        self.left, self.inner = torch.cat([self.left, rest[None]]), pad(self.inner, (0, 0, 0, 1))
        self.loose = pad(self.loose, (0, 0, 0, 1))
        self.loose[-1, -1] = 1
        return False

    def heaviest(self, coefficients: Tensor) -> int:
        """Return the row of what is left over that weighs most in the residuals of some Ritz vectors."""
        return int((self.left.norm(dim=1).cpu() * (self.loose @ coefficients).norm(dim=1)).argmax())

    def next(self, row: int) -> Tensor:
        """Return the direction of one row of what is left over, which is left over no longer."""
        vector, others = self.left[row], torch.arange(len(self.left)) != row % len(self.left)
        self.left, self.loose, self.inner = self.left[others], self.loose[others], self.inner[others]
        return vector / vector.norm()

    def ritz(self, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, upwards, coefficients and absolute residuals in the part of the basis from start on."""
        values, coefficients = torch.linalg.eigh(self.form[start:, start:])
        outside = self.loose[:, start:] @ coefficients
        gram = (self.left @ self.left.T).cpu()
        return values, coefficients, (outside * (gram @ outside)).sum(0).clamp_min(0).sqrt()

    def restart(self, coefficients: Tensor, start: int) -> None:
        """Keep the basis before start, and of what follows the Ritz vectors of these coefficients alone."""
        old, inner = self.rows[start : self.size], self.inner[:, start:]
        if start:  # what the dropped vectors had taken from the residuals of the basis before comes back
            self.left = self.left + (inner - inner @ coefficients @ coefficients.T).to(old) @ old
        self.inner = pad(inner @ coefficients * (start > 0), (start, 0))
        turn = torch.block_diag(torch.eye(start, dtype=torch.float64), coefficients)
        self.forms, self.loose = turn.T @ self.forms @ turn, self.loose @ turn
        self.size = turn.shape[1]
        self.rows[start : self.size] = coefficients.T.to(old) @ old

    def pairs(self, wanted: Tensor, scale: float, tol: float, products: int, settled: bool) -> Eigenpairs:
        values, coefficients, residuals = self.ritz()
        vectors = (coefficients[:, wanted].T.to(self.rows) @ self.basis).T
        residuals = residuals[wanted] / scale
        traces = self.forms.diagonal(dim1=1, dim2=2).sum(1)
        found = (values[wanted], vectors, residuals, (residuals <= tol) & settled, products)
        return Eigenpairs(
            *found, self.basis.T, float(self.weights @ traces), traces, self.form, self.left.T, self.loose
        )


def _search(krylov: _Krylov, fresh: int, values: Tensor, which: str, slack: float) -> tuple[bool, bool]:
    """Tell whether the best value that the basis before fresh left out is known, and no better than the last."""
    found, _, residuals = krylov.ritz(fresh)
    upper = (len(values) + 1) // 2
    ends = {which: values[-1]}
    if which == "both":
        ends = {"largest": values[upper - 1]} | ({"smallest": values[upper]} if len(values) > upper else {})
    best = {end: _wanted(found, end, 1)[0] for end in ends}
    known = all(float(residuals[i]) <= slack for i in best.values())
    worse = all(float(_order(found[best[end]], end)) >= float(_order(last, end)) - slack for end, last in ends.items())
    return known, known and worse


def _wanted(values: Tensor, which: str, k: int) -> Tensor:
    """Return where the k wanted of values, which go upwards, are."""
    if which == "both":
        inwards = [i // 2 if i % 2 else len(values) - 1 - i // 2 for i in range(len(values))]
        return torch.tensor(sorted(inwards[:k], reverse=True))
    return _order(values, which).argsort()[:k]


def _order(values: Tensor, which: str) -> Tensor:
    return {"magnitude": -values.abs(), "largest": -values, "smallest": values}[which]


def finite(norm: Tensor) -> float:
    """Return the norm of a product, which must be finite."""
    if not math.isfinite(float(norm)):
        raise ValueError("a product with the operator is not finite: is the loss twice differentiable at the centre?")
    return float(norm)


def nothing(form: Tensor) -> float:
    """Give the norm below which a residual is rounding."""
    return 1e-13 * max(float(form.abs().max()), 1e-300) * len(form) ** 0.5


def orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """Take out what lies in the rows of an orthonormal basis, twice: once leaves rounding errors."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def random_unit(n: int, generator: torch.Generator, basis: Tensor) -> Tensor:
    """Draw a unit vector orthogonal to the rows of a basis."""
    vector = orthogonal(torch.randn(n, generator=generator, dtype=torch.float64).to(basis.device), basis)
    return vector / vector.norm()
