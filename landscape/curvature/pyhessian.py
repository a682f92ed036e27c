"""PyHessian as a second opinion.

The objective goes into a module whose only parameters are a displacement of what varies, so that PyHessian sees the
very tensors, space and units that our own engine uses, but the network as it stands: BatchNorm is not folded, and no
derivative of a convolution is ours. Its traps are avoided here: it needs a gradient in every parameter (a displacement
is given one), leaves the model in eval mode (it gets a wrapper), draws from the global RNG (forked and seeded), adds
gradients up when built twice (built once per call), and its trace stops by chance (switched off).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..checking import seed_of
from ..model import Objective, Point


def pyhessian_trace(function: Objective, units: str, probes: int, seed: int) -> list[float]:
    """Return the estimates of PyHessian's Hutchinson probes."""
    with _computation(function, units, seed) as computation:
        return [float(sample) for sample in computation.trace(maxIter=probes, tol=float("-inf"))]


def pyhessian_eigenvalues(
    function: Objective, units: str, k: int, tol: float, iterations: int, seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor, Point], int]:
    """Return PyHessian's (values, residuals, converged, vectors) by magnitude, and the products it used.

    The residuals are measured here, by k further products.
    """
    with _computation(function, units, seed) as computation:
        products: list[None] = []
        computation.gradsH[0].register_hook(lambda _: products.append(None))  # every product starts from the gradient
        pairs = zip(*computation.eigenvalues(maxIter=iterations, tol=tol, top_n=k), strict=True)
        values, vectors = zip(*sorted(pairs, key=lambda pair: -abs(pair[0])), strict=True)
        used = len(products)
        settings, errors = {"retain_graph": True, "materialize_grads": True}, []
        for value, vector in zip(values, vectors, strict=True):
            image = torch.autograd.grad(computation.gradsH, computation.params, vector, **settings)
            parts = [(part - value * v).reshape(-1) for part, v in zip(image, vector, strict=True)]
            errors.append(torch.cat(parts).norm())
    eigenvalues = torch.tensor(values, dtype=torch.float64)
    residuals = torch.stack(errors).double().cpu() / eigenvalues.abs().max()
    names = function.coordinates.names
    stacks = {name: torch.stack([v[i].detach().cpu() for v in vectors]) for i, name in enumerate(names)}
    return (eigenvalues, residuals, residuals <= tol, stacks), used


class _Displaced(nn.Module):
    """The mean loss over all batches, its parameters a displacement (times D in filter-relative units)."""

    def __init__(self, objective: Objective, units: str) -> None:
        super().__init__()
        self.objective = objective
        centre = objective.coordinates
        self.names = centre.names
        self.scale = centre.filter_scale() if units == "filter" else {}
        self.displacement = nn.ParameterList([torch.zeros_like(w) for w in centre.centre.values()])

    def forward(self, _: Tensor) -> Tensor:
        moves = {name: move * self.scale.get(name, 1) for name, move in zip(self.names, self.displacement, strict=True)}
        tensors = self.objective.tensors(moves)
        parts = [self.objective.loss(tensors, batch) for batch in self.objective.batches()]
        mean = sum(part.mean * part.weight for part in parts) / sum(part.weight for part in parts)
        # PyHessian needs a gradient with a graph in every parameter: zeros where the loss is linear, or a weight unused
        return mean + sum(0 * move.square().sum() for move in self.displacement)


@contextlib.contextmanager
def _computation(function: Objective, units: str, seed: int) -> Iterator[Any]:
    from pyhessian import hessian

    wrapped = _Displaced(function, units)
    nothing = torch.zeros(1)  # the batches are inside, so that ragged ones are weighted and the graph is kept
    with function.measurement_mode(), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*create_graph=True", category=UserWarning)
        torch.manual_seed(seed_of(seed))
        try:
            cuda = function.device.type == "cuda"
            yield hessian(wrapped, lambda value, _: value, data=(nothing, nothing), cuda=cuda)
        finally:
            wrapped.zero_grad()  # breaks the cycle between a parameter and the graph of its gradient
