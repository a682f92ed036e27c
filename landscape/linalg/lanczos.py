"""The outermost eigenpairs of a symmetric operator by Lanczos with full reorthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..checking import numbers, one_of, seed_of
from ..progress import resumable
from .operators import Operator, drawn, fold_products, fold_shares, inner, length, local_size

Which = Literal["magnitude", "largest", "smallest", "both", "LM", "LA", "SA", "BE"]
_SCIPY = {"LM": "magnitude", "LA": "largest", "SA": "smallest", "BE": "both"}
# Tolerances from here on need no more than float32 for a float32 operator's basis, and the recurrence's word for its
# residuals: it was off by 1e-7…7e-7 of λ₁ on trained networks.
LOOSE = 1e-5
_NOISE = 0.1  # of the start vector, where an operator offers one
_CANCELLED = 0.5  # of a vector's norm: if less remains, it is orthogonalised again (Daniel et al. 1976)
# of the largest entry of the form: a remainder no longer than that is rounding, and the subspace invariant
_VANISHED = {torch.float32: 1e-6, torch.float64: 1e-13}
_CHUNK = 2**16  # coordinates that a restart turns at a time: it needs no second basis


@dataclass(frozen=True)
class Eigenpairs:
    """Ritz pairs of a symmetric operator A, and the orthonormal basis that they were found in.

    Attributes:
        values: (k,) sorted as ``which`` says.
        vectors: (n, k) orthonormal.
        residuals: (k,) ‖A v − θ v‖ / |θ₁|, from the recurrence, without further products.
        converged: (k,) residual ≤ tol; none is where an invariant subspace was left with more to look for.
        fold_values: (folds, k) vᵀA_f v for every fold of the data; one fold where the operator has none.
        products: products with A used.
        basis: (n, m) orthonormal, m = products unless restarted; float32 where the operator is and ``tol`` ≥ 1e-5.
        basis_trace: tr(basisᵀ A basis), known without further products.
        fold_traces: (folds,) tr(basisᵀ A_f basis).
        form: (m, m) basisᵀ A basis.
        remainder: (n,) r of A·basis = basis·form + r·eᵀ, e the last unit vector.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    fold_values: Tensor
    products: int
    basis: Tensor
    basis_trace: float
    fold_traces: Tensor
    form: Tensor
    remainder: Tensor

    @property
    def images(self) -> Tensor:
        """A·basis, (n, m), computed from the recurrence when it is asked for: as much memory as the basis."""
        images = self.basis @ self.form.to(self.basis)
        images[:, -1] += self.remainder
        return images


@resumable("Lanczos", total="max_products")
def lanczos(
    operator: Operator,
    k: int = 5,
    *,
    which: Which = "magnitude",
    tol: float = 1e-3,
    max_products: int = 150,
    max_basis: int | None = None,
    seed: int = 0,
) -> Generator[None, None, Eigenpairs]:
    """Find k outermost eigenpairs of a symmetric operator by thick-restart Lanczos.

    A recurrence builds an orthonormal basis Q with A·Q = Q·H + r·eᵀ; the eigenpairs of H are the Ritz pairs. Every new
    vector is orthogonalised against all earlier ones, twice where much of it cancels, or converged eigenvalues come
    back as ghosts. A full basis is restarted with the outermost Ritz vectors and r. Where r vanishes (an invariant
    subspace) the basis holds each of its eigenvalues once: it is continued with a random vector, until the new part is
    known to hold none further out. Copies of a multiple eigenvalue within a spread-out spectrum grow out of rounding
    only: at a loose ``tol`` they are missed. Where the operator has a ``start`` (a Hessian whose graphs are kept: its
    gradient, which leans towards the top eigenvectors and costs nothing), the first vector is that with a tenth of
    noise. ``lanczos.steps`` takes the same arguments and pauses after every product.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works. Where it has ``by_fold``, traces of folds are kept.
        k: how many.
        which: the largest in magnitude, the algebraically largest, the smallest, or both: ⌈k/2⌉ from the upper and
            ⌊k/2⌋ from the lower end, sorted downwards. scipy's "LM", "LA", "SA" and "BE" mean the same.
        tol: residual relative to the largest |eigenvalue| seen. Default 1e-3: 11–20 products on trained networks.
            With a float32 operator true residuals stop at 1e-6…6e-6, whatever the recurrence says below that.
        max_products: products at most; ``converged`` says what was reached.
        max_basis: vectors kept at most; default max(2k + 20, 80).
        seed: of the start vector.

    Raises:
        ValueError: k outside 1…n, unknown ``which``, max_basis < k + 2, a product that is not finite.

    Cost: one product per step; memory n·max_basis numbers of the basis' dtype.
    Source: Lanczos 1950; Paige 1976; Wu, Simon 2000 (restart). The start vector is ours.

    Example:
        >>> pairs = lanczos(torch.diag(torch.arange(50.0)), k=2, tol=1e-6)
        >>> pairs.values.round(decimals=3).tolist(), pairs.converged.all().item()
        ([49.0, 48.0], True)
    """
    n = operator.shape[0]
    one_of("which", which, Which)
    numbers(whole=True, at_least=1, at_most=n, note="the size of the operator", k=k)
    numbers(whole=True, at_least=min(n, k + 2), optional=True, note="for k pairs and two more", max_basis=max_basis)
    end, room = _SCIPY.get(which, which), min(n, max(2 * k + 20, 80) if max_basis is None else max_basis)
    generator = torch.Generator().manual_seed(seed_of(seed))
    krylov = Krylov(operator, room, basis_dtype(operator, tol))
    steps, keep = max(max_products, k), min((k + room) // 2, room - 2)
    scale = torch.finfo(torch.float64).tiny  # the largest |eigenvalue| seen
    start = 0  # where in the basis its latest random vector stands
    vector = krylov.start(random_unit(operator, generator, krylov.basis))
    for products in range(1, steps + 1):
        closed = krylov.append(vector)
        yield
        values, coefficients, residuals = krylov.ritz()
        top = _outermost(values, end, k)
        scale = max(scale, float(values.abs().max()))
        enough = krylov.size >= k and float(residuals[top].max()) <= tol * scale
        complete = krylov.size == n or not (closed or start)
        complete = complete or _is_exhausted(krylov, start, values[top], end, tol * scale)
        if krylov.size == n or (enough and complete) or products == steps:
            break
        if closed:
            if krylov.size > room // 2 and room < n:  # the new part needs room of its own
                krylov.restart(0, coefficients[:, top])
            start, vector = krylov.size, random_unit(operator, generator, krylov.basis)
            continue
        if krylov.size == room:
            values, coefficients, _ = krylov.ritz(start)
            krylov.restart(start, coefficients[:, _outermost(values, end, (room - start) // 2 if start else keep)])
        vector = krylov.next()
    vectors = (coefficients[:, top].T.to(krylov.rows) @ krylov.basis).T
    residuals = residuals[top] / scale
    traces = krylov.forms.diagonal(dim1=1, dim2=2).sum(1)
    fold_values = torch.einsum("ik,fij,jk->fk", coefficients[:, top], krylov.forms, coefficients[:, top])
    state = (krylov.basis.T, float(krylov.weights @ traces), traces, krylov.form, krylov.remainder)
    converged = (residuals <= tol) & complete
    return Eigenpairs(values[top], vectors, residuals, converged, fold_values, products, *state)


def basis_dtype(operator: Operator, tol: float = LOOSE) -> torch.dtype:
    """Return the dtype of a Krylov basis: float32 where neither the operator nor the tolerance has more digits."""
    return torch.float32 if operator.dtype == torch.float32 and tol >= LOOSE else torch.float64


class Krylov:
    """A growing orthonormal basis Q, as rows, with A·Q = Q·H + r·eᵀ, e the last unit vector.

    Args:
        operator: A, symmetric, shape (n, n).
        room: vectors at most; memory is taken for all of them, which a CPU's pages are when they are written to.
        dtype: of the basis.
        known: (j, n) orthonormal vectors that stand first in the basis; their rows and columns of H among themselves
            are zero, for they are not multiplied.
        folds: keep H of every fold of the data, not only that of A.
    """

    def __init__(
        self, operator: Operator, room: int, dtype: torch.dtype, known: Tensor | None = None, *, folds: bool = True
    ) -> None:
        self.operator, self.folds = operator, folds
        self.rows = torch.empty(room, local_size(operator), dtype=dtype, device=operator.device)
        self.size = 0 if known is None else len(known)
        if known is not None:
            self.rows[: self.size] = known
        self.weights = fold_shares(operator) if folds else torch.ones(1, dtype=torch.float64)
        self._shares = self.weights.to(self.rows)
        self.forms = torch.zeros(len(self.weights), self.size, self.size, dtype=torch.float64)
        self.remainder, self.norm = self.rows.new_zeros(local_size(operator)), 0.0

    basis = property(lambda self: self.rows[: self.size])
    form = property(lambda self: torch.einsum("f,fij->ij", self.weights, self.forms))

    def start(self, noise: Tensor) -> Tensor:
        """Return the unit vector to begin with: what the operator offers with a tenth of noise, or the noise."""
        offered = getattr(self.operator, "start", lambda: None)()
        if offered is None or not 0 < float(norm := length(self.operator, offered)) < math.inf:
            return noise
        vector = offered.to(noise) / norm.to(noise) + _NOISE * noise
        return vector / length(self.operator, vector)

    def append(self, vector: Tensor) -> bool:
        """Append a unit vector orthogonal to the basis; return True on breakdown, where r vanishes."""
        self.rows[self.size] = vector
        self.size += 1
        images = fold_products(self.operator, vector, self.folds).to(self.rows)
        columns = inner(self.operator, images, self.basis.T)
        image = self._shares @ images if len(images) > 1 else images[0]
        self.remainder = torch.addmv(image, self.basis.T, self._shares @ columns, alpha=-1)
        lengths = torch.stack([length(self.operator, v) for v in (image, self.remainder)])
        found = torch.cat([columns.flatten(), lengths]).double().cpu()  # an accelerator is waited for once
        whole, self.norm = found[-2:].tolist()
        if not math.isfinite(whole):
            raise ValueError(
                "a product with the operator is not finite: is the loss twice differentiable at the centre?"
            )
        if self.norm < _CANCELLED * whole:
            self.remainder.addmv_(self.basis.T, inner(self.operator, self.basis, self.remainder), alpha=-1)
            self.norm = float(length(self.operator, self.remainder))
        self.forms = pad(self.forms, (0, 1, 0, 1))
        self.forms[:, -1] = self.forms[:, :, -1] = found[:-2].view(columns.shape)
        largest = max(float(self.form.abs().max()), 1e-300)
        closed = self.norm <= _VANISHED[self.rows.dtype] * largest * self.size**0.5
        if closed:
            self.remainder, self.norm = torch.zeros_like(self.remainder), 0.0
        return closed

    def next(self) -> Tensor:
        """Return the unit vector along r, which continues the recurrence; it stands where `append` will put it."""
        vector = torch.div(self.remainder, self.norm, out=self.rows[self.size])
        del self.remainder  # the product that follows needs its room
        return vector

    def ritz(self, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values, upwards, coefficients and absolute residuals in the part of the basis from start on."""
        values, coefficients = torch.linalg.eigh(self.form[start:, start:])
        return values, coefficients, coefficients[-1].abs() * self.norm

    def restart(self, start: int, coefficients: Tensor) -> None:
        """Replace the basis from start on by the Ritz vectors with these coefficients."""
        turn = torch.block_diag(torch.eye(start, dtype=torch.float64), coefficients)
        self.forms = turn.T @ self.forms @ turn
        mix = coefficients.T.to(self.rows)
        for columns in self.rows.split(_CHUNK, dim=1):
            columns[start : turn.shape[1]] = mix @ columns[start : self.size]
        self.size = turn.shape[1]


def _is_exhausted(krylov: Krylov, start: int, values: Tensor, end: str, slack: float) -> bool:
    """Return whether the basis from start on is known to hold nothing further out than the last of the values."""
    if end == "both":
        upper = (len(values) + 1) // 2
        ends = {"largest": values[:upper], "smallest": values[upper : upper + 1]}
        return all(_is_exhausted(krylov, start, v, e, slack) for e, v in ends.items() if len(v))
    found, _, residuals = krylov.ritz(start)
    best = _distance(found, end).argmax()
    return bool((residuals[best] <= slack) & (_distance(found, end)[best] <= _distance(values, end)[-1] + slack))


def _outermost(values: Tensor, end: str, k: int) -> Tensor:
    """Return the indices of the k outermost of values that go upwards."""
    if end == "both":
        inwards = [i // 2 if i % 2 else len(values) - 1 - i // 2 for i in range(len(values))]
        return torch.tensor(sorted(inwards[:k], reverse=True))
    return (-_distance(values, end)).argsort()[:k]


def _distance(values: Tensor, end: str) -> Tensor:
    """Return how far out values lie at an end of the spectrum."""
    return {"magnitude": values.abs(), "largest": values, "smallest": -values}[end]


def random_unit(operator: Operator, generator: torch.Generator, basis: Tensor) -> Tensor:
    """Draw a unit vector orthogonal to the rows of a basis; two Gram–Schmidt passes keep it so in floating point."""
    vector = drawn(operator, partial(torch.randn, generator=generator, dtype=torch.float64), basis.dtype)
    for _ in range(2):
        vector = vector - inner(operator, basis, vector) @ basis
    return vector / length(operator, vector)
