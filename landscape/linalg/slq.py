"""The spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checking import numbers, seed_of
from ..progress import progress
from ..results import Result, with_error
from .lanczos import Eigenpairs, Krylov, random_unit
from .operators import Operator


@dataclass(frozen=True, eq=False)
class Density(Result):
    """A smoothed spectral density; it integrates to 1 together with the atoms, each of weight 1/size.

    Attributes:
        size: n, the number of eigenvalues.
        nodes, weights: (probes, steps) Gauss quadrature of every start vector; a row of weights sums to
            1 − atoms/n. An invariant subspace found early leaves nodes of weight zero.
        atoms: (k,) eigenvalues known exactly, outside the smooth part.
        width: standard deviation of the Gaussian that smooths, range of the nodes / steps.
        grid, density: (points,) the smooth part on a regular grid, in eigenvalues per unit.
        low, high: (points,) 95 % bootstrap band over the start vectors, point by point; NaN for one vector.

    Example:
        >>> import landscape
        >>> found = landscape.density(torch.diag(torch.linspace(-1, 1, 60)), k=2, num_probes=3, steps=10)
        >>> found.atoms.abs().round(decimals=2).tolist()
        [1.0, 1.0]
        >>> round(torch.trapezoid(found.density, found.grid).item() + 2 / 60, 3)
        1.0
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
        """The height of a single eigenvalue's peak: a density far below it means nothing."""
        return 1 / (self.size * self.width * math.sqrt(2 * math.pi))

    def implied_trace(self) -> tuple[float, float]:
        """Return the trace that the density implies, and its standard error over the vectors (NaN for one)."""
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
    num_probes: int = 10,
    steps: int = 80,
    points: int = 1000,
    seed: int = 0,
) -> Density:
    """Estimate the density of all eigenvalues by stochastic Lanczos quadrature.

    Lanczos from a random unit vector v gives nodes θ and weights τ with Σ τ f(θ) ≈ vᵀ f(A) v, whose mean over v is
    tr f(A) / n. On the complement of eigenpairs that are known; these enter as atoms of weight 1/n each.

    Args:
        operator: symmetric, shape (n, n); a dense tensor works.
        pairs: from `lanczos`; those that have converged are used.
        num_probes: random start vectors; the error falls with √num_probes, and one alone has no band.
        steps: of Lanczos for each; they set the resolution.
        points: of the grid, at least 2·steps.
        seed: of the start vectors.

    Raises:
        ValueError: num_probes or steps < 1, points < 2·steps, a product that is not finite.

    Cost: num_probes·steps products; memory n·(steps + pairs) float64.
    Source: Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019, who do not deflate: a vector's luck with λ₁ alone
    then moves the implied trace by a third.

    Example:
        >>> found = slq(torch.diag(torch.linspace(-1, 1, 60)), num_probes=3, steps=10)
        >>> found.nodes.shape, round(torch.trapezoid(found.density, found.grid).item(), 3)
        (torch.Size([3, 10]), 1.0)
    """
    numbers(whole=True, at_least=1, num_probes=num_probes, steps=steps)
    numbers(whole=True, at_least=2 * steps, note="twice the steps", points=points)
    n, atoms = operator.shape[0], torch.empty(0, dtype=torch.float64)
    known = torch.empty(0, n, dtype=torch.float64, device=operator.device)
    if pairs is not None:
        known, atoms = pairs.vectors.T[pairs.converged.to(known.device)].to(known), pairs.values[pairs.converged]
    generator = torch.Generator().manual_seed(seed_of(seed))
    nodes = torch.zeros(num_probes, min(steps, n - len(known)), dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for i in progress(range(num_probes), "density") if nodes.numel() else ():
        theta, tau = _quadrature(operator, random_unit(n, generator, known), known, nodes.shape[1])
        nodes[i] = theta.max()  # after a breakdown the nodes that are missing have no weight
        nodes[i, : len(theta)], weights[i, : len(tau)] = theta, tau * (1 - len(known) / n)
    return _smoothed({"products": int((weights > 0).sum())}, n, nodes, weights, atoms, points, seed)


def _smoothed(
    about: dict[str, Any], n: int, nodes: Tensor, weights: Tensor, atoms: Tensor, points: int, seed: int
) -> Density:
    """Put a Gaussian on every node, average over the start vectors, and bootstrap a band."""
    low, high = (float(nodes.min()), float(nodes.max())) if nodes.numel() else (0.0, 0.0)
    size = float(torch.cat([nodes.flatten(), atoms]).abs().max()) or 1.0
    width = max((high - low) / max(nodes.shape[1], 1), 1e-6 * size)  # eigenvalues that are equal differ by rounding
    grid = torch.linspace(low - 6 * width, high + 6 * width, points, dtype=torch.float64)
    kernels = (torch.exp(-((grid[:, None] - row) / width).square() / 2) for row in nodes)
    curves = torch.stack([kernel @ row for kernel, row in zip(kernels, weights, strict=True)])
    curves /= width * math.sqrt(2 * math.pi)
    draws = torch.randint(len(curves), (500, len(curves)), generator=torch.Generator().manual_seed(seed_of(seed)))
    means = torch.stack([curves[draw].mean(0) for draw in draws])
    band = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    band = band if len(curves) > 1 else band * math.nan
    return Density(about, n, nodes, weights, atoms, width, grid, curves.mean(0), band[0], band[1])


def _quadrature(operator: Operator, vector: Tensor, known: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the Gauss quadrature for a unit vector's measure, outside of known eigenvectors."""
    krylov = Krylov(operator, len(known) + steps, known, folds=False)
    for _ in range(steps):
        if krylov.append(vector):
            break
        vector = krylov.next()
    nodes, coefficients, _ = krylov.ritz(len(known))
    return nodes, coefficients[0].square()
