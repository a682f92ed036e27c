"""Curvature times a vector by central differences of gradients: for networks that have no second derivative."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model import Objective, Point, gaussian

Tensors = Sequence[Tensor]
# steps tried, in ‖εv‖/‖w‖, by the digits of the dtype: the true second derivative is the limit of small ones, which
# drown in rounding
_RADII = {
    torch.float64: (1e-8, 1e-7, 1e-6, 1e-5, 1e-4),
    torch.float32: (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    torch.bfloat16: (1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5),
}
_RADII[torch.float16] = (3e-3, 1e-2, 2e-2, 5e-2, 0.1)
_LEAST = 0.01  # of weights, on average: steps for smaller ones, zeros say, would drown in rounding


class GradientDifferences:
    """weight·[g(w + εv) − g(w − εv)]/2ε of one batch, g the gradient and ‖εv‖ = radius·‖w‖, in place of ∇²loss·v.

    Of weights that are zero, or nearly so, ‖w‖ is that of weights of 0.01.

    It differs from the derivative by a term in ε² and by the gradients' rounding over ε. Where units have kinks (ReLU)
    or activations are rounded, it sees those within ε, which the derivative does not: in small ReLU networks the
    difference can be as large as the product (`measured_error` says so).
    """

    def __init__(self, objective: Objective, tensors: Point, batch: Any, radius: float) -> None:
        self.objective, self.names, self.leaves, self.batch = objective, list(tensors), list(tensors.values()), batch
        self.radius, self.norm = radius, weight_norm(self.leaves, objective)

    def product(self, vectors: Tensors) -> tuple[Tensor, ...]:
        """Return weight · H_batch · v, in the shapes of the leaves; two gradients."""
        length = norm(vectors, self.objective)
        step = self.radius * self.norm / torch.where(length > 0, length, 1.0)
        ahead, behind = self._gradient(vectors, step), self._gradient(vectors, -step)
        return tuple((a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True))

    def _gradient(self, vectors: Tensors, step: Tensor) -> tuple[Tensor, ...]:
        moved = [leaf + (step * v).to(leaf) for leaf, v in zip(self.leaves, vectors, strict=True)]
        leaves = [leaf.detach().requires_grad_() for leaf in moved]
        loss = self.objective.loss(dict(zip(self.names, leaves, strict=True)), self.batch)
        gradient = torch.autograd.grad(loss.mean * loss.weight, leaves, materialize_grads=True)
        return tuple(part.to(step.dtype) for part in gradient)


def measured_error(objective: Objective, vector: Tensor, radius: float) -> float:
    """Return how far the difference of gradients at ‖εv‖ = radius·‖w‖ is from ∇²loss·v, relative to its norm.

    With odd(ε) = [g(w + εv) − g(w − εv)]/2ε and even(ε) = [g(w + εv) + g(w − εv) − 2g(w)]/ε, it is the largest of
    ‖odd(ε/2) − odd(ε)‖, ‖odd(2ε) − odd(ε)‖ and ‖2·even(ε/2) − even(ε)‖. The first two show rounding and the term in
    ε². What kinks and steps within ε add is of one size at all ε, and differs on the two sides of w: only the third
    shows it, in which all that is smooth cancels to third order.

    Cost: seven gradients over the data.
    """
    flatten, unflatten = objective.coordinates.flatten, objective.coordinates.unflatten

    def size(flat: Tensor) -> Tensor:
        return norm(list(unflatten(flat).values()), objective)

    def gradient(step: Tensor) -> Tensor:
        return flatten(objective.gradient(unflatten((step * vector).to(vector)))).double()

    length = size(vector)
    whole = radius * weight_norm(list(objective.coordinates.base.values()), objective)
    whole = whole / torch.where(length > 0, length, 1.0)
    centre, odd, even = gradient(torch.zeros_like(whole)), [], []
    for step in (whole / 2, whole, 2 * whole):
        ahead, behind = gradient(step), gradient(-step)
        odd.append((ahead - behind) / (2 * step))
        even.append((ahead + behind - 2 * centre) / step)
    gaps = [odd[0] - odd[1], odd[2] - odd[1], 2 * even[0] - even[1]]
    return float(torch.stack([size(gap) for gap in gaps]).max() / size(odd[1]).clamp_min(1e-300))


def weight_norm(tensors: Tensors, objective: Objective) -> Tensor:
    """Return the norm of weights, at least that of as many of 0.01: steps are measured by it."""
    return norm(tensors, objective).clamp_min(_LEAST * objective.coordinates.numel**0.5)


def norm(tensors: Tensors, objective: Objective) -> Tensor:
    """Return the norm of all together, at least float32; of tensors in shards, over all processes."""
    parts = [t.detach().float() if t.dtype.itemsize < 4 else t.detach() for t in tensors]
    coordinates = objective.coordinates
    if coordinates.layouts:
        return coordinates.length(dict(zip(coordinates.names, parts, strict=True))).to(parts[0])
    return torch.stack(torch._foreach_norm(parts)).norm()


def best_radius(build: Callable[[float], GradientDifferences], objective: Objective) -> float:
    """Return the radius at which products change least from one to the next, seen on a batch, for a v and for H·v.

    H·v leans towards the top eigenvectors, along which the loss bends far more than along a random v.

    Cost: four gradients of the batch for each of five to seven radii.
    """
    radii, coordinates = _RADII[objective.dtype], objective.coordinates
    vectors: Tensors = [part for _, part in gaussian(coordinates.centre, 0, coordinates.layouts)]
    scores = [0.0] * len(radii)
    for _ in range(2):
        products = [build(radius).product(vectors) for radius in radii]
        gaps = [_relative_gap(a, b, objective) for a, b in itertools.pairwise(products)]
        ends = [float("inf"), *gaps, float("inf")]
        scores = [score + min(pair) for score, pair in zip(scores, itertools.pairwise(ends), strict=True)]
        vectors = products[len(radii) // 2]
    return radii[min(range(len(radii)), key=scores.__getitem__)]


def _relative_gap(a: Tensors, b: Tensors, objective: Objective) -> float:
    gap = norm([x - y for x, y in zip(a, b, strict=True)], objective)
    return float(gap / norm(b, objective).clamp_min(torch.finfo(gap.dtype).tiny))
