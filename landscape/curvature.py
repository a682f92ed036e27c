"""Traces and top eigenvalues of a model's Hessian, or of any symmetric matrix: where the two halves meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .coordinates import Point
from .objective import BatchObjective, Loss, Objective
from .operators import Hessian, Operator
from .results import Result
from .spectra import Eigenpairs, lanczos
from .timing import stopwatch
from .traces import Trace, hutchinson, trace_of_samples

UNITS = ("raw", "filter")
ENGINES = ("landscape", "pyhessian")
_DEFLATED = 20  # Lanczos steps before the probes: they pay for themselves on every trained network we looked at


@dataclass(frozen=True, eq=False)
class Eigenvalues(Result):
    """The top eigenpairs.

    Attributes:
        values: (k,) sorted by what was asked for (default: by magnitude).
        residuals: (k,) ‖Hv − θv‖/|θ₁|.
        converged: (k,) residual within the tolerance.
        vectors: name → (k, *shape), each of the k orthonormal over all names; `vector(i)` gives one as a direction.
            In filter-relative units they are eigenvectors of D·H·D: the step in weights is D times them.
    """

    values: Tensor
    residuals: Tensor
    converged: Tensor
    vectors: Point

    def vector(self, i: int = 0) -> Point:
        """Give the i-th eigenvector as a direction."""
        return {name: stack[i] for name, stack in self.vectors.items()}

    def __repr__(self) -> str:
        values = ", ".join(f"{float(v):.4g}" for v in self.values)
        missing = int((~self.converged).sum())
        more = f", {missing} not converged" if missing else ""
        quality = f"residual ≤ {float(self.residuals.max()):.1e}, {self.about['products']} products{more}"
        return f"Eigenvalues([{values}], {quality}; {self._kind()})"


def trace(
    model: nn.Module | Tensor | Operator,
    data: Any = None,
    *,
    units: str = "raw",
    space: str | None = None,
    rtol: float = 0.05,
    atol: float = 0.0,
    max_samples: int = 100,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    engine: str = "landscape",
) -> Trace:
    """Estimate the trace of the Hessian, with its standard error.

    Hutchinson's estimator on the complement of a Lanczos basis of 20 vectors, whose own share is exact.

    Args:
        model: a network, or any symmetric operator or matrix.
        data: ``(x, y)`` or batches; default ``model.probe``.
        units: ``"raw"``, or ``"filter"`` for D·H·D, D = ‖w_f‖/√(size of filter): comparable between networks.
        space: ``"quantized"`` (default) or ``"latent"``.
        rtol, atol: stop once the standard error is ≤ max(rtol·|trace|, atol); never before ten probes.
        max_samples: stop there in any case; ``converged`` then says so.
        seed: of the probes.
        loss, objective: see `Objective`.
        engine: ``"pyhessian"`` asks that package (plain Hutchinson, ``max_samples`` probes, no stop rule).

    Raises:
        ValueError: unknown settings, a matrix that is not square and symmetric, bad data.

    Cost: 20 + probes Hessian-vector products.
    """
    elapsed = stopwatch()
    _check(units=(units, UNITS), engine=(engine, ENGINES))
    if engine == "pyhessian":
        from .references import pyhessian_trace

        function = _function(model, data, space, loss, objective)
        result = trace_of_samples(pyhessian_trace(function, units, max_samples, seed), rtol=rtol, atol=atol)
        about = function.about(units=units, engine=engine, products=len(result.samples))
        return replace(result, about=about | {"seed": seed, "seconds": elapsed()})
    operator, about = operator_of(model, data, units, space, loss, objective)
    steps = min(_DEFLATED, operator.shape[0])
    krylov = lanczos(operator, steps, tol=0.0, max_products=steps, seed=seed)
    result = deflated_trace(operator, krylov, rtol=rtol, atol=atol, max_samples=max_samples, seed=seed)
    products = krylov.products + len(result.samples)
    return replace(result, about=about | {"products": products, "seed": seed, "seconds": elapsed()})


def top_eigenvalues(
    model: nn.Module | Tensor | Operator,
    data: Any = None,
    *,
    k: int = 5,
    which: str = "magnitude",
    units: str = "raw",
    space: str | None = None,
    tol: float = 1e-3,
    max_products: int = 150,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    engine: str = "landscape",
) -> Eigenvalues:
    """Find the top eigenvalues of the Hessian by Lanczos with full reorthogonalisation.

    Args:
        model: a network, or any symmetric operator or matrix.
        data: ``(x, y)`` or batches; default ``model.probe``.
        k: how many.
        which: ``"magnitude"`` (what pyhessian gives), ``"largest"`` or ``"smallest"``.
        units: ``"raw"``, or ``"filter"`` for D·H·D (see `trace`).
        space: ``"quantized"`` (default) or ``"latent"``.
        tol: stop once every residual ‖Hv − θv‖/|θ₁| is below it.
        max_products: stop there in any case; ``converged`` then says so (pyhessian: iterations per eigenvalue).
        seed: of the start vector.
        loss, objective: see `Objective`.
        engine: ``"pyhessian"`` asks that package (power iteration; its tolerance is another: the change of θ).

    Raises:
        ValueError: unknown settings, k outside 1…n, a matrix that is not square and symmetric, bad data.

    Cost: 11–40 Hessian-vector products for k = 5 on trained networks; memory n·products float64.
    """
    elapsed = stopwatch()
    _check(units=(units, UNITS), engine=(engine, ENGINES))
    if engine == "pyhessian":
        from .references import pyhessian_eigenvalues

        if which != "magnitude":
            raise ValueError(f"which must be 'magnitude' with engine='pyhessian', the only end it finds, got {which!r}")
        function = _function(model, data, space, loss, objective)
        found, products = pyhessian_eigenvalues(function, units, k, tol, max_products, seed)
        about = function.about(units=units, engine=engine, products=products, seed=seed, seconds=elapsed())
        return Eigenvalues(about, *found)
    operator, about = operator_of(model, data, units, space, loss, objective)
    pairs = lanczos(operator, k, which=which, tol=tol, max_products=max_products, seed=seed)
    return eigenvalues_of(operator, pairs, about | {"seed": seed, "seconds": elapsed()})


def deflated_trace(operator: Operator, krylov: Eigenpairs, **settings: Any) -> Trace:
    """Run Hutchinson's probes on the complement of a Lanczos basis that is at hand."""
    return hutchinson(operator, basis=krylov.basis, basis_trace=krylov.basis_trace, **settings)


def eigenvalues_of(operator: Operator, pairs: Eigenpairs, about: dict[str, Any]) -> Eigenvalues:
    """Turn what Lanczos found into a result, its vectors cut by weight."""
    vectors = pairs.vectors.T.cpu()
    found = getattr(operator, "coordinates", None)
    stacks = {"": vectors}
    if found is not None:
        sizes = [value.numel() for value in found.centre.values()]
        parts = zip(found.centre.items(), vectors.split(sizes, dim=1), strict=True)
        stacks = {name: part.reshape(-1, *value.shape).to(value.dtype) for (name, value), part in parts}
    return Eigenvalues(about | {"products": pairs.products}, pairs.values, pairs.residuals, pairs.converged, stacks)


def operator_of(
    model: nn.Module | Tensor | Operator,
    data: Any,
    units: str,
    space: str | None,
    loss: Loss | None,
    objective: BatchObjective | None,
) -> tuple[Operator, dict[str, Any]]:
    """Build the operator that is asked for, and the description of its results."""
    if isinstance(model, nn.Module):
        hessian = Hessian(model, data, space=space, loss=loss, objective=objective)
        about = hessian.objective.about(units=units)
        return (hessian.filter_relative() if units == "filter" else hessian), about
    if units != "raw":
        raise ValueError(f"units={units!r} needs a network: a matrix has no filters")
    model = torch.from_numpy(model) if isinstance(model, np.ndarray) else model
    if isinstance(model, Tensor):
        _check_symmetric(model)
        model = model if model.is_floating_point() else model.double()
    if not isinstance(model, Operator):
        raise TypeError(
            f"model must be a network, a square symmetric matrix or an Operator, got {type(model).__name__}"
        )
    return model, {"units": units, "shape": list(model.shape)}


def _function(
    model: Any, data: Any, space: str | None, loss: Loss | None, objective: BatchObjective | None
) -> Objective:
    if not isinstance(model, nn.Module):
        raise ValueError("engine='pyhessian' measures networks: pass a torch.nn.Module, or use the default engine")
    return Objective(model, data, space=space, loss=loss, objective=objective)


def _check(**settings: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, known) in settings.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _check_symmetric(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a square matrix is needed, got shape {tuple(matrix.shape)}")
    if not matrix.numel() or not matrix.isfinite().all():
        raise ValueError("a matrix of finite numbers is needed: this one is empty or holds NaN or infinity")
    if not torch.allclose(matrix, matrix.T, rtol=1e-5, atol=1e-5 * float(matrix.abs().max())):
        raise ValueError("a symmetric matrix is needed: A and its transpose differ; pass (A + A.T) / 2")
