"""Traces, top eigenvalues and densities of a model's Hessian, or of any symmetric matrix: where the two halves meet."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .. import linalg, parallel
from ..checking import numbers, seed_of
from ..linalg import Density, Eigenpairs, Eigenvalues, Operator, Trace, Which
from ..model import BatchObjective, Loss, Objective, Space, objective_of
from ..progress import announce, stopwatch
from .hessian import Hessian
from .scaled import Scaled

Units = Literal["raw", "filter"]
Engine = Literal["landscape", "pyhessian"]
Method = Literal["lanczos", "hutchinson"]
_DEFLATED = 20  # Lanczos steps before the probes: they pay for themselves on every trained network we looked at


def trace(
    model: nn.Module | Objective | Tensor | Operator,
    data: Any = None,
    *,
    units: Units = "raw",
    space: Space | None = None,
    rtol: float = 0.02,
    atol: float = 0.0,
    method: Method = "lanczos",
    per_layer: bool = False,
    eigenvalues: Eigenvalues | None = None,
    num_probes: int = 100,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    engine: Engine = "landscape",
) -> Trace:
    """Estimate the trace of the Hessian, with its standard error over the probes and over the data.

    Args:
        model: a network, or any symmetric operator or matrix: `Hessian` (with ``layers=``, ``at=``, ``memory=``) or
            `GGN`, ``.filter_relative()`` of one.
        data: ``(x, y)`` or batches; default ``model.probe``.
        units: ``"raw"``, or ``"filter"`` for D·H·D, D = ‖w_f‖/√(size of filter): comparable between networks.
        space: ``"quantized"`` (default) or ``"latent"``.
        rtol, atol: stop once the standard error is ≤ max(rtol·|trace|, atol); never before ten probes.
        method: ``"lanczos"``: Hutchinson on the complement of 20 Lanczos vectors, whose own share is exact; or plain
            ``"hutchinson"``.
        per_layer: estimate the trace of every weight's own block as well (``.layers``), from the same probes.
        eigenvalues: of the same operator, from `top_eigenvalues`: deflates with them, and needs no Lanczos of its own.
        num_probes: probes at most; ``converged`` says whether the tolerance was reached.
        seed: of the probes.
        loss, objective: see `Objective`.
        engine: ``"pyhessian"`` asks that package (plain Hutchinson, ``num_probes`` probes, no stop rule).

    Raises:
        ValueError: unknown settings, a matrix that is not square and symmetric, eigenvalues of another operator, bad
            data.

    Cost: 20 + probes Hessian-vector products; with ``eigenvalues`` or plain Hutchinson, the probes alone.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> trace = landscape.trace(model, data, per_layer=True)
        >>> sorted(trace.layers)
        ['0.bias', '0.weight', '2.bias', '2.weight']
        >>> abs(trace.value - sum(value for value, stderr in trace.layers.values())) < 1e-6
        True
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    seed = seed_of(seed)
    arguments: Any = {"space": space, "loss": loss, "objective": objective}
    settings: dict[str, Any] = {"rtol": rtol, "atol": atol, "num_probes": num_probes, "seed": seed}
    if engine == "pyhessian":
        from .pyhessian import pyhessian_trace

        function = _network(model, data, **arguments)
        result = linalg.trace_of_samples(pyhessian_trace(function, units, num_probes, seed), rtol=rtol, atol=atol)
        about = function.about(units=units, engine=engine, products=len(result.samples))
        return replace(result, about=about | {"seed": seed, "seconds": elapsed()})
    operator, about = operator_of(model, data, units, _DEFLATED + 10, _DEFLATED, **arguments)
    known: dict[str, Any] = {}
    products = 0
    if per_layer:
        settings["blocks"] = _blocks(operator)
    if eigenvalues is not None:
        if method != "lanczos":
            raise ValueError(f"eigenvalues= are for method='lanczos', which deflates with them, got method={method!r}")
        known = _known(operator, eigenvalues)
    elif method == "lanczos":
        steps = min(_DEFLATED, _room(operator, 0))
        with _held(operator):
            krylov = linalg.lanczos(operator, steps, tol=linalg.LOOSE, max_products=steps, seed=seed)
        known = {"basis": krylov.basis, "basis_trace": krylov.basis_trace, "fold_traces": krylov.fold_traces}
        known["images"], products = krylov.images if per_layer else None, krylov.products
    with _held(operator):
        result = linalg.hutchinson(operator, **known, **settings)
    products += len(result.samples)
    return replace(result, about=about | {"products": products, "seed": seed, "seconds": elapsed()})


def top_eigenvalues(
    model: nn.Module | Objective | Tensor | Operator,
    data: Any = None,
    *,
    k: int = 5,
    which: Which = "magnitude",
    units: Units = "raw",
    space: Space | None = None,
    tol: float = 1e-3,
    max_products: int = 150,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    engine: Engine = "landscape",
) -> Eigenvalues:
    """Find the top eigenvalues of the Hessian by Lanczos with full reorthogonalisation and thick restart.

    Args:
        model: a network, or any symmetric operator or matrix (see `trace`).
        data: ``(x, y)`` or batches; default ``model.probe``.
        k: how many.
        which: ``"magnitude"`` (what pyhessian gives), ``"largest"``, ``"smallest"``, or ``"both"`` ends; or scipy's
            ``"LM"``, ``"LA"``, ``"SA"``, ``"BE"`` for the same.
        units: ``"raw"``, or ``"filter"`` for D·H·D (see `trace`).
        space: ``"quantized"`` (default) or ``"latent"``.
        tol: stop once every residual ‖Hv − θv‖/|θ₁| is below it. Below 1e-5 residuals are measured by a product each;
            else the recurrence tells them. In float32 measured ones stop at 1e-6…6e-6.
        max_products: stop there in any case; ``converged`` then says so (pyhessian: iterations per eigenvalue).
        seed: of the start vector.
        loss, objective: see `Objective`.
        engine: ``"pyhessian"`` asks that package (power iteration; its tolerance is another: the change of θ).

    Raises:
        ValueError: unknown settings, k outside 1…n, a matrix that is not square and symmetric, bad data.

    Cost: 9–30 Hessian-vector products for k = 5 on trained networks, and k more where residuals are measured; memory
    n·min(80, what half the memory holds) numbers, float32 for a float32 network.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> top = landscape.top_eigenvalues(model, data, k=2)
        >>> top.values.shape, top.vector(0)['0.weight'].shape
        (torch.Size([2]), torch.Size([4, 3]))
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    numbers(whole=True, at_least=1, k=k, max_products=max_products)
    numbers(at_least=0, tol=tol)
    seed = seed_of(seed)
    arguments: Any = {"space": space, "loss": loss, "objective": objective}
    if engine == "pyhessian":
        from .pyhessian import pyhessian_eigenvalues

        if which not in ("magnitude", "LM"):
            raise ValueError(f"which must be 'magnitude' with engine='pyhessian', the only end it finds, got {which!r}")
        function = _network(model, data, **arguments)
        fields, products = pyhessian_eigenvalues(function, units, k, tol, max_products, seed)
        about = function.about(units=units, engine=engine, products=products, seed=seed, seconds=elapsed())
        return Eigenvalues(about, *fields)
    operator, about = operator_of(model, data, units, 4 * k, 4 * k, **arguments)
    room = _room(operator, k)
    with _held(operator):
        pairs = linalg.lanczos(operator, k, which=which, tol=tol, max_products=max_products, max_basis=room, seed=seed)
        result = eigenvalues_of(operator, pairs, tol)
    return replace(result, about=about | result.about | {"seed": seed, "seconds": elapsed()})


def density(
    model: nn.Module | Objective | Tensor | Operator,
    data: Any = None,
    *,
    k: int = 10,
    num_probes: int = 8,
    steps: int = 20,
    points: int = 1000,
    units: Units = "raw",
    space: Space | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Density:
    """Estimate the spectral density of the Hessian: the k outermost eigenvalues exactly, the bulk by quadrature.

    Args:
        model: a network, or any symmetric operator or matrix (see `trace`).
        data: ``(x, y)`` or batches; default ``model.probe``.
        k: outliers taken out first, by magnitude, to a residual of 1e-3; 0 for none.
        num_probes: random start vectors; the 95 % band comes from their scatter, by Student's t.
        steps: Lanczos steps for each; more resolve the bulk more finely.
        points: of the grid.
        units: ``"raw"``, or ``"filter"`` for D·H·D (see `trace`).
        space: ``"quantized"`` (default) or ``"latent"``.
        seed: of the start vectors.
        loss, objective: see `Objective`.

    Raises:
        ValueError: unknown settings, num_probes or steps < 1, bad data.

    Cost: 2–4·k + num_probes·steps Hessian-vector products.
    Source: see `landscape.linalg.slq`.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> density = landscape.density(model, data, k=2, steps=10)
        >>> density.grid.shape, len(density.atoms)
        (torch.Size([1000]), 2)
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    numbers(whole=True, at_least=0, k=k)
    numbers(whole=True, at_least=1, num_probes=num_probes, steps=steps)
    seed = seed_of(seed)
    products, kept = 3 * k + num_probes * steps, 2 * k + steps
    arguments: Any = {"space": space, "loss": loss, "objective": objective}
    operator, about = operator_of(model, data, units, products, kept, **arguments)
    k = min(k, operator.shape[0])
    with _held(operator):
        pairs = linalg.lanczos(operator, k, max_basis=_room(operator, k), seed=seed) if k else None
        result = linalg.slq(operator, pairs=pairs, num_probes=num_probes, steps=steps, points=points, seed=seed)
    products = result.about["products"] + (pairs.products if pairs else 0)
    return replace(result, about=about | result.about | {"products": products, "seed": seed, "seconds": elapsed()})


def eigenvalues_of(operator: Operator, pairs: Eigenpairs, tol: float) -> Eigenvalues:
    """Turn what Lanczos found into a result: vectors cut by weight, residuals measured where the tolerance is tight."""
    residuals, fold_values, products = pairs.residuals, pairs.fold_values, pairs.products
    if tol < linalg.LOOSE:
        residuals, fold_values = _measured(operator, pairs)
        products += len(residuals)
    coordinates, rows = getattr(operator, "coordinates", None), pairs.vectors.T
    if coordinates is None:
        kept = {"": rows.cpu()}
    else:
        stacks = {name: part.to(coordinates.centre[name].dtype) for name, part in coordinates.unflatten(rows).items()}
        kept = coordinates.results(stacks, 1)
    # in float32 the measured residual stops at a floor, whatever the recurrence says
    about, done = {"products": products}, pairs.converged & (residuals <= tol)
    return Eigenvalues(about, pairs.values, residuals, done, kept, fold_values, linalg.fold_shares(operator))


def _measured(operator: Operator, pairs: Eigenpairs) -> tuple[Tensor, Tensor]:
    """Return the residuals ‖A v − θ v‖/|θ₁| and vᵀA_f v of every fold, (folds, k), by a product for each pair."""
    weights, residuals, forms = linalg.fold_shares(operator), [], []
    for value, vector in zip(pairs.values.tolist(), pairs.vectors.T.double(), strict=True):
        images = linalg.fold_products(operator, vector).double()
        residuals.append(linalg.length(operator, weights.to(images) @ images - value * vector))
        forms.append(linalg.inner(operator, images, vector))
    largest = pairs.values.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.stack(residuals).cpu() / largest, torch.stack(forms, dim=1).cpu()


def operator_of(
    model: nn.Module | Objective | Tensor | Operator, data: Any, units: str, products: int, kept: int, **arguments: Any
) -> tuple[Operator, dict[str, Any]]:
    """Build the operator that is asked for, and the description of its results; announce what takes long."""
    if isinstance(model, nn.Module | Objective):
        model = Hessian(model, data, **arguments)
    elif not isinstance(model, Operator | Tensor | np.ndarray):
        kinds = "a network, a square symmetric matrix or an Operator"
        raise TypeError(f"model must be {kinds}, got {type(model).__name__}")
    elif not all(given is None for given in (data, *arguments.values())):
        raise ValueError("data, space, loss and objective belong to a network: an operator has its own")
    if isinstance(model, Hessian | Scaled):
        about = model.about(**{} if isinstance(model, Scaled) else {"units": units})
        cost = model.estimate(products, kept)
        if parallel.rank() == 0:
            announce(products, **cost, processes=parallel.size())  # type: ignore[arg-type]
        return (model.filter_relative() if units == "filter" and isinstance(model, Hessian) else model), about
    if units != "raw":
        raise ValueError(f"units={units!r} needs a network: a matrix has no filters")
    model = torch.from_numpy(model) if isinstance(model, np.ndarray) else model
    if isinstance(model, Tensor):
        _check_symmetric(model)
        model = model if model.is_floating_point() else model.double()
    return model, {"units": units, "shape": list(model.shape)}


def _held(operator: Any) -> contextlib.AbstractContextManager[Any]:
    """Hold the network as it is measured for all products at once, where an operator has one."""
    return getattr(operator, "held", contextlib.nullcontext)()  # type: ignore[no-any-return]


def _known(operator: Operator, eigenvalues: Eigenvalues) -> dict[str, Any]:
    """Turn eigenpairs at hand into what `hutchinson` deflates with."""
    mine: dict[str, Any] = getattr(operator, "about", dict)()
    theirs = eigenvalues.about
    for key in ("matrix", "units", "space", "samples", "centre_loss"):
        if key in mine and mine[key] != theirs.get(key):
            raise ValueError(f"eigenvalues= are of another operator: {key} {theirs.get(key)!r}, not {mine[key]!r}")
    if not eigenvalues.converged.all():
        raise ValueError("eigenvalues= must all have converged: raise max_products, or ask for fewer")
    rows = torch.cat([parallel.local(stack).flatten(1) for stack in eigenvalues.vectors.values()], dim=1).double()
    if rows.shape[1] != (size := linalg.local_size(operator)):
        raise ValueError(f"eigenvalues= are those of an operator of size {rows.shape[1]}, not {size}")
    rows = rows.to(operator.device)
    lower = torch.linalg.cholesky(linalg.inner(operator, rows, rows.T))
    basis = torch.linalg.solve_triangular(lower, rows, upper=False).T  # orthonormal again after a rounding to float32
    form = lower.T @ torch.diag(eigenvalues.values.to(basis)) @ lower
    # of other folds there is no error over data to tell
    alike = torch.equal(eigenvalues.fold_weights, linalg.fold_shares(operator))
    folds = eigenvalues.fold_values.sum(1) if alike else None
    known = {"basis": basis, "basis_trace": float(eigenvalues.values.sum()), "images": basis @ form}
    return known | {"fold_traces": folds}


def _blocks(operator: Operator) -> dict[str, int]:
    if not hasattr(operator, "coordinates"):
        raise ValueError("per_layer=True needs a network: a matrix has no layers")
    return {name: value.numel() for name, value in operator.coordinates.centre.items()}


def _room(operator: Operator, k: int) -> int:
    """Count the Lanczos vectors that memory has room for, within reason."""
    n = operator.shape[0]
    memory = getattr(operator, "vector_memory", math.inf)
    size = max(1, linalg.local_size(operator)) * linalg.basis_dtype(operator).itemsize
    room = int(min(max(2 * k + 20, 80), memory / 2 / size))
    return min(n, max(k + 2, min(parallel.gather(room))))  # all processes must restart together


def _network(model: Any, data: Any, **arguments: Any) -> Objective:
    if not isinstance(model, nn.Module | Objective):
        raise ValueError("engine='pyhessian' measures networks: pass a torch.nn.Module, or use the default engine")
    # a second opinion has its own way through BatchNorm and convolutions
    return objective_of(model, data, **arguments).variant(folded=False)


def _check_symmetric(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a square matrix is needed, got shape {tuple(matrix.shape)}")
    if not matrix.numel() or not matrix.isfinite().all():
        raise ValueError("a matrix of finite numbers is needed: this one is empty or holds NaN or infinity")
    if not torch.allclose(matrix, matrix.T, rtol=1e-5, atol=1e-5 * float(matrix.abs().max())):
        raise ValueError("a symmetric matrix is needed: A and its transpose differ; pass (A + A.T) / 2")
