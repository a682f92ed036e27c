"""The spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..progress import progress
from ..results import Result, with_error
from .lanczos import Eigenpairs, finite, nothing, orthogonal, random_unit
from .operators import Operator


@dataclass(frozen=True, eq=False)
class Density(Result):
    """The density of eigenvalues, smoothed; it integrates to 1 together with the atoms, each of weight 1/size.

    Attributes:
        size: n, the number of eigenvalues.
        nodes, weights: (vectors, steps) Gauss quadrature of every start vector; a row of weights sums to
            1 − atoms/n. An invariant subspace found early leaves nodes of weight zero.
        atoms: (k,) eigenvalues known exactly, outside the smooth part.
        width: standard deviation of the Gaussian that smooths, range of the nodes / steps.
        grid, density: (points,) the smooth part on a regular grid, in eigenvalues per unit.
        low, high: (points,) 95 % bootstrap band over the start vectors, point by point; NaN for one vector.
    """

    size: int
    nodes: Tensor
    weights: Tensor
    atoms: Tensor
    width: float
    grid: Tensor
    density: Tensor
    low: Tensor
    high: Tensor
    columns: ClassVar[tuple[str, ...]] = ("grid", "density", "low", "high")
    picture: ClassVar[str] = "spectra.density"
    dims: ClassVar[dict[str, tuple[str, ...]]] = {"nodes": ("vector", "step"), "weights": ("vector", "step")}

    @property
    def one_eigenvalue(self) -> float:
        """The height that one eigenvalue alone would have: what is much lower means nothing."""
        return 1 / (self.size * self.width * math.sqrt(2 * math.pi))

    def implied_trace(self) -> tuple[float, float]:
        """Give the trace that the density implies, and its standard error over the vectors (NaN for one)."""
        samples = self.size * (self.weights * self.nodes).sum(1) + self.atoms.sum()
        return float(samples.mean()), float(samples.std() / len(samples) ** 0.5) if len(samples) > 1 else math.nan

    def _cells(self) -> dict[str, list[str]]:
        low, high = (f"{float(end):.3g}" for end in self.grid[[0, -1]])
        outliers = ", ".join(f"{value:.4g}" for value in self.atoms.tolist()[:5]) + ", …" * (len(self.atoms) > 5)
        values = [f"{self.size:,}", f"{len(self.atoms)}: {outliers}", f"{low} to {high}"]
        rows = ["eigenvalues", "outliers", "bulk", "trace"]
        return {"": rows, "density": [*values, with_error(*self.implied_trace())]}

    def __repr__(self) -> str:
        value, error = self.implied_trace()
        low, high = (f"{float(end):.3g}" for end in self.grid[[0, -1]])
        where = f"{len(self.atoms)} atoms, bulk in [{low}, {high}]"
        kind = f"; {self._kind()}" if self._kind() else ""
        return f"Density({where}, trace {value:.4g} ± {error:.2g}, {len(self.nodes)} vectors{kind})"


def slq(
    operator: Operator,
    *,
    pairs: Eigenpairs | None = None,
    vectors: int = 10,
    steps: int = 80,
    points: int = 1000,
    seed: int = 0,
) -> Density:
    """Estimate the density of all eigenvalues by stochastic Lanczos quadrature.

    Lanczos from a random unit vector v gives nodes θ and weights τ with Σ τ f(θ) ≈ vᵀ f(A) v, whose mean over v is
    tr f(A) / n. On the complement of eigenpairs that are known; these enter as atoms of weight 1/n each.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works.
        vectors: start vectors; the error falls with √vectors, and one alone has no band.
        steps: of Lanczos for each; they set the resolution.
        pairs: from `lanczos`; those that have converged are used.
        points: of the grid, at least 2·steps.
        seed: of the start vectors.

    Raises:
        ValueError: vectors or steps < 1, points < 2·steps, a product that is not finite.

    Cost: vectors·steps products; memory n·(steps + pairs) float64.
    Source: Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019, who do not deflate: a vector's luck with λ₁ alone
    then moves the implied trace by a third.
    """
    if vectors < 1 or steps < 1 or points < 2 * steps:
        given = f"{vectors}, {steps} and {points} points"
        raise ValueError(f"vectors and steps must be >= 1 and points >= 2·steps, got {given}")
    n, atoms = operator.shape[0], torch.empty(0, dtype=torch.float64)
    known = torch.empty(0, n, dtype=torch.float64, device=operator.device)
    if pairs is not None:
        known, atoms = pairs.vectors.T[pairs.converged.to(known.device)].to(known), pairs.values[pairs.converged]
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.zeros(vectors, min(steps, n - len(known)), dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for number in progress(range(vectors), "density") if nodes.numel() else ():
        found = _quadrature(operator, random_unit(n, generator, known), known, nodes.shape[1])
        nodes[number] = found[0].max()  # what an invariant subspace leaves over has no weight
        nodes[number, : len(found[0])], weights[number, : len(found[1])] = found[0], found[1] * (1 - len(known) / n)
    return _smoothed({"products": int((weights > 0).sum())}, n, nodes, weights, atoms, points, seed)


def _smoothed(
    about: dict[str, Any], n: int, nodes: Tensor, weights: Tensor, atoms: Tensor, points: int, seed: int
) -> Density:
    low, high = (float(nodes.min()), float(nodes.max())) if nodes.numel() else (0.0, 0.0)
    size = float(torch.cat([nodes.flatten(), atoms]).abs().max()) or 1.0
    width = max((high - low) / max(nodes.shape[1], 1), 1e-6 * size)  # eigenvalues that are equal differ by rounding
    grid = torch.linspace(low - 6 * width, high + 6 * width, points, dtype=torch.float64)
    kernels = (torch.exp(-((grid[:, None] - row) / width).square() / 2) for row in nodes)
    curves = torch.stack([kernel @ row for kernel, row in zip(kernels, weights, strict=True)])
    curves /= width * math.sqrt(2 * math.pi)
    draws = torch.randint(len(curves), (500, len(curves)), generator=torch.Generator().manual_seed(seed))
    means = torch.stack([curves[draw].mean(0) for draw in draws])
    band = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    band = band if len(curves) > 1 else band * math.nan
    return Density(about, n, nodes, weights, atoms, width, grid, curves.mean(0), band[0], band[1])


def _quadrature(operator: Operator, vector: Tensor, known: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of Gauss' quadrature for the measure of a unit vector, outside of known eigenvectors."""
    basis = torch.cat([known, known.new_empty(steps, known.shape[1])])
    tridiagonal = torch.zeros(steps, steps, dtype=torch.float64)
    for step in range(steps):
        basis[len(known) + step] = vector
        image = (operator @ vector.to(operator.dtype)).double()
        tridiagonal[step, step] = vector @ image
        image = orthogonal(image, basis[: len(known) + step + 1])
        beta = finite(image.norm())
        if step + 1 == steps or beta <= nothing(tridiagonal):
            break
        tridiagonal[step, step + 1] = tridiagonal[step + 1, step] = beta
        vector = image / beta
    nodes, coefficients = torch.linalg.eigh(tridiagonal[: step + 1, : step + 1])
    return nodes, coefficients[0].square()
