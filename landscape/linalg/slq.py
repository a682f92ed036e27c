"""The spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..checking import numbers, one_of, seed_of
from ..progress import progress
from ..results import Result, with_error
from .lanczos import Eigenpairs, Krylov, basis_dtype, random_unit
from .operators import Operator, local_size
from .traces import mean_and_stderr, t_interval

By = Literal["magnitude", "count"]


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
        low, high: (points,) 95 % band over the start vectors, point by point: Student's t of the logarithm of their
            mean, mean·exp(± t·stderr/mean) with probes − 1 degrees of freedom, which stays above zero; NaN for one
            vector. Files of 0.1 keep their bootstrap band, which held 87 % (``about["band"]``).

    Example:
        >>> import landscape
        >>> found = landscape.density(torch.diag(torch.linspace(-1, 1, 60)), k=2, num_probes=3, steps=10)
        >>> found.atoms.abs().round(decimals=2).tolist()
        [1.0, 1.0]
        >>> round(torch.trapezoid(found.density, found.grid).item() + 2 / 60, 3)
        1.0
        >>> share, stderr = found.negative_share()
        >>> low, high = found.interval(0.95, (share, stderr))
        >>> low < 0.5 < high
        True
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
        return mean_and_stderr(self.size * (self.weights * self.nodes).sum(1) + self.atoms.sum())

    def negative_share(self, by: By = "magnitude", *, tol: float | None = None) -> tuple[float, float]:
        """Return the share of the spectrum that is negative, and its standard error over the vectors (NaN for one).

        By magnitude it is Σ_{λ < −tol} |λ| / Σ |λ|: 0 at a minimum, 1/2 where both signs weigh alike. By count it is
        the share of eigenvalues below −tol, Σ weights of such nodes + atoms/n. Many eigenvalues of a network lie too
        near zero for their sign to be resolved: they weigh nothing by magnitude, but the count depends on ``tol`` and,
        below the resolution, on the number of steps. The error is the delta method's of a ratio of means.

        Args:
            by: ``"magnitude"`` or ``"count"``.
            tol: what counts as zero; default 0 by magnitude, ``width`` (the resolution) by count.

        Raises:
            ValueError: by neither of the two, tol < 0.
        """
        one_of("by", by, By)
        numbers(at_least=0, optional=True, tol=tol)
        nodes = torch.cat([self.nodes, self.atoms.expand(len(self.nodes), -1)], dim=1)
        mass = torch.cat([self.weights, torch.full_like(nodes[:, self.nodes.shape[1] :], 1 / self.size)], dim=1)
        mass = mass * nodes.abs() if by == "magnitude" else mass
        edge = (0.0 if by == "magnitude" else self.width) if tol is None else tol
        below, whole = (mass * (nodes < -edge)).sum(1), mass.sum(1)
        share = below.mean() / whole.mean()
        return mean_and_stderr(share + (below - share * whole) / whole.mean())

    def interval(self, level: float = 0.95, of: tuple[float, float] | None = None) -> tuple[float, float]:
        """Return the confidence interval over the vectors of `implied_trace`, or of a `negative_share`.

        By Student's t with probes − 1 degrees of freedom.

        Raises:
            ValueError: level outside (0, 1).
        """
        return t_interval(*(of or self.implied_trace()), len(self.nodes) - 1, level)

    def _cells(self) -> dict[str, list[str]]:
        low, high = (f"{float(end):.3g}" for end in self.grid[[0, -1]])
        outliers = ", ".join(f"{value:.4g}" for value in self.atoms.tolist()[:5]) + ", …" * (len(self.atoms) > 5)
        values = [f"{self.size:,}", f"{len(self.atoms)}: {outliers}", f"{low} to {high}"]
        rows = ["eigenvalues", "outliers", "bulk", "trace", "negative, of Σ|λ|"]
        estimates = (self.implied_trace(), self.negative_share())
        return {"": rows, "density": values + [with_error(*estimate) for estimate in estimates]}

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

    Cost: num_probes·steps products; memory n·(steps + pairs) numbers.
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
    known = torch.empty(0, local_size(operator), dtype=basis_dtype(operator), device=operator.device)
    if pairs is not None:
        known, atoms = pairs.vectors.T[pairs.converged.to(known.device)].to(known), pairs.values[pairs.converged]
    generator = torch.Generator().manual_seed(seed_of(seed))
    nodes = torch.zeros(num_probes, min(steps, n - len(known)), dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for i in progress(range(num_probes), "density") if nodes.numel() else ():
        theta, tau = _quadrature(operator, random_unit(operator, generator, known), known, nodes.shape[1])
        nodes[i] = theta.max()  # after a breakdown the nodes that are missing have no weight
        nodes[i, : len(theta)], weights[i, : len(tau)] = theta, tau * (1 - len(known) / n)
    band = {"band": f"Student's t over {num_probes} vectors"} if num_probes > 1 else {}
    return _smoothed({"products": int((weights > 0).sum())} | band, n, nodes, weights, atoms, points)


def _smoothed(about: dict[str, Any], n: int, nodes: Tensor, weights: Tensor, atoms: Tensor, points: int) -> Density:
    """Put a Gaussian on every node, average over the start vectors, and put a band around."""
    low, high = (float(nodes.min()), float(nodes.max())) if nodes.numel() else (0.0, 0.0)
    size = float(torch.cat([nodes.flatten(), atoms]).abs().max()) or 1.0
    width = max((high - low) / max(nodes.shape[1], 1), 1e-6 * size)  # eigenvalues that are equal differ by rounding
    grid = torch.linspace(low - 6 * width, high + 6 * width, points, dtype=torch.float64)
    kernels = (torch.exp(-((grid[:, None] - row) / width).square() / 2) for row in nodes)
    curves = torch.stack([kernel @ row for kernel, row in zip(kernels, weights, strict=True)])
    curves /= width * math.sqrt(2 * math.pi)
    mean, df = curves.mean(0), len(curves) - 1
    stderr = curves.std(0, correction=0) / max(df, 1) ** 0.5
    # a density is skewed over the vectors and never negative: its logarithm is neither
    reach = t_interval(0.0, 1.0, df)[1] * stderr / mean.clamp_min(torch.finfo(mean.dtype).tiny)
    edges = mean * torch.exp(-reach), mean * torch.exp(reach)
    return Density(about, n, nodes, weights, atoms, width, grid, mean, *edges)


def _quadrature(operator: Operator, vector: Tensor, known: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the Gauss quadrature for a unit vector's measure, outside of known eigenvectors."""
    krylov = Krylov(operator, len(known) + steps, known.dtype, known, folds=False)
    for _ in range(steps):
        if krylov.append(vector) or krylov.size == len(known) + steps:
            break
        vector = krylov.next()
    nodes, coefficients, _ = krylov.ritz(len(known))
    return nodes, coefficients[0].square()
