"""Perturbations of the weights and the loss increases that they cause: balls in three metrics, and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checking import numbers, seed_of
from ..model import Coordinates, Objective, Point, filter_norms
from ..progress import progress

METRICS = ("filter", "plain", "adaptive")


class Ball(NamedTuple):
    """{ε = T·v}: v, where the ball is round, of one norm over all or of one for each filter, at most r."""

    scale: Point
    by_filter: bool

    def norms(self, v: Point) -> Point:
        """Return the norms that are bounded, shaped to divide v; never zero."""
        tiny = torch.finfo(next(iter(v.values())).dtype).tiny
        if self.by_filter:
            return {name: filter_norms(part).clamp_min(tiny) for name, part in v.items()}
        whole = torch.stack([part.double().square().sum() for part in v.values()]).sum().sqrt().clamp_min(tiny)
        return dict.fromkeys(v, whole)

    def ascent_step(self, v: Point, gradient: Point, radius: float, share: float) -> Point:
        """Move v along the gradient by share·radius, and project back onto the ball."""
        slope = {name: t * gradient[name] for name, t in self.scale.items()}
        norms = self.norms(slope)
        v = {name: part + share * radius * (slope[name] / norms[name]) for name, part in v.items()}
        norms = self.norms(v)
        return {name: part * (radius / norms[name]).clamp_max(1) for name, part in v.items()}

    def epsilon(self, v: Point) -> Point:
        """Return the displacement of the weights."""
        return {name: self.scale[name] * part for name, part in v.items()}


def ball_of(centre: Coordinates, radii: Sequence[float], metric: str, relative: bool) -> Ball:
    """Return the ball of radius 1 in a metric, after checking the radii that it is to be scaled to."""
    if not len(radii) or not all(0 < r < math.inf for r in radii):
        raise ValueError(f"radii must be finite numbers > 0, relative to the filters' norms, got {radii}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if metric == "filter":
        if not relative:
            raise ValueError(
                'relative=False needs metric="plain" or "adaptive": in filters a radius is a share of ‖w_f‖'
            )
        filters = {name: filter_norms(w) for name, w in centre.centre.items() if w.ndim > 1}
        if not filters:
            raise ValueError('metric="filter" needs weights of two or more dimensions, and none varies: use "adaptive"')
        return Ball(filters, True)
    if metric == "plain":
        radius = torch.tensor(centre.norm() if relative else 1.0, dtype=torch.float64)
        return Ball(dict.fromkeys(centre.names, radius), False)
    root = centre.numel**0.5 if relative else 1.0
    return Ball({name: root * w.abs() for name, w in centre.centre.items()}, False)


def largest_increases(
    function: Objective, ball: Ball, radii: Sequence[float], steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest increase along the ascent, (radii,), each sample's there, (radii, n), and their weights."""
    centre = function.coordinates.centre
    largest, by_sample = [], []
    with function.measurement_mode():
        here = function.centre
        for radius in progress(radii, "worst-case sharpness"):
            v: Point = {name: torch.zeros_like(centre[name]) for name in ball.scale}
            visited = [here]  # the centre lies in every ball
            for step in range(steps):
                v = ball.ascent_step(v, function.gradient(ball.epsilon(v)), radius, 1 - step / steps)
                visited.append(function.evaluate(ball.epsilon(v)))
            # a NaN counts as the largest: a loss that broke is not hidden
            top = torch.stack([point.loss for point in visited]).argmax()
            largest.append(torch.stack([point.loss for point in visited])[top] - here.loss)
            by_sample.append(torch.stack([point.losses for point in visited])[top] - here.losses)
    return torch.stack(largest).cpu(), torch.stack(by_sample).cpu(), here.weights.cpu()


def mean_increases(
    function: Objective, rows: int, num_samples: int, displacements: Callable[[int], Iterable[Point]]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the mean loss increase and its error over the draws, (rows,), and those of draws and of the data.

    The latter two are (rows, num_samples) and, means over the draws, (rows, n) with weights (n,).
    """
    increases = torch.empty(rows, num_samples, dtype=torch.float64, device=function.device)
    with function.measurement_mode():
        here = function.centre
        by_sample = here.losses.new_zeros(rows, len(here.losses))
        for draw in progress(range(num_samples), "average sharpness"):
            for row, displacement in enumerate(displacements(draw)):
                there = function.evaluate(displacement)
                increases[row, draw] = there.loss - here.loss
                by_sample[row] += (there.losses - here.losses) / num_samples
    increases = increases.cpu()
    stderr = increases.std(1) / num_samples**0.5
    return increases.mean(1), stderr, increases, by_sample.cpu(), here.weights.cpu()


def check_draws(num_samples: int, seed: int) -> None:
    """Raise if there are fewer than two draws, or a seed is none."""
    numbers(whole=True, at_least=2, note="for a standard error", num_samples=num_samples)
    seed_of(seed)
