"""Perturbations of the weights and the loss increases that they cause: balls in three metrics, and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model import Coordinates, Objective, Point
from ..progress import progress

METRICS = ("filter", "plain", "adaptive")
FIRST_ROUND, _MOMENTUM = 5, 0.25  # gradients of the first round


class Ball(NamedTuple):
    """{ε = T·v}: v, where the ball is round, of one norm over all or of one for each filter, at most r."""

    centre: Coordinates
    scale: Point
    by_filter: bool

    def norms(self, v: Point) -> Point:
        """Return the norms that are bounded, shaped to divide v; never zero."""
        tiny = torch.finfo(next(iter(v.values())).dtype).tiny
        if self.by_filter:
            return {name: self.centre.filter_norms(name, part).clamp_min(tiny) for name, part in v.items()}
        return dict.fromkeys(v, self.centre.length(v).clamp_min(tiny))

    def moved(self, v: Point, gradient: Point, length: float) -> Point:
        """Move v along the gradient, by this length where the ball is round."""
        slope = {name: t * gradient[name] for name, t in self.scale.items()}
        norms = self.norms(slope)
        return {name: part + length * (slope[name] / norms[name]) for name, part in v.items()}

    def projected(self, v: Point, radius: float) -> Point:
        """Return the point next to v in the ball of this radius."""
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
        filters = {name: centre.filter_norms(name, w) for name, w in centre.centre.items() if w.ndim > 1}
        if not filters:
            raise ValueError('metric="filter" needs weights of two or more dimensions, and none varies: use "adaptive"')
        return Ball(centre, filters, True)
    if metric == "plain":
        radius = torch.tensor(centre.norm() if relative else 1.0, dtype=torch.float64)
        return Ball(centre, dict.fromkeys(centre.names, radius), False)
    root = centre.numel**0.5 if relative else 1.0
    return Ball(centre, {name: root * w.abs() for name, w in centre.centre.items()}, False)


class Ascent(NamedTuple):
    """The largest increases found, what their last round added, and how many rounds that took; those of the samples."""

    increases: Tensor
    gains: Tensor
    rounds: Tensor
    by_sample: Tensor
    weights: Tensor


def largest_increases(function: Objective, ball: Ball, radii: Sequence[float], steps: int, rtol: float) -> Ascent:
    """Ascend within each radius; see `worst_case_sharpness`."""
    found, gains, rounds = [], [], []
    with function.measurement_mode():
        here = function.centre
        for radius in progress(radii, "worst-case sharpness"):
            v, gain, count = _highest(function, ball, radius, steps, rtol)
            there = function.evaluate(ball.epsilon(v))
            found.append(here if there.loss < here.loss else there)  # a gradient's loss is rounded in other places
            gains.append(gain)
            rounds.append(count)
    largest = torch.stack([there.loss for there in found]) - here.loss
    by_sample = torch.stack([there.losses for there in found]) - here.losses
    return Ascent(largest.cpu(), torch.stack(gains).cpu(), torch.tensor(rounds), by_sample.cpu(), here.weights.cpu())


def _highest(function: Objective, ball: Ball, radius: float, steps: int, rtol: float) -> tuple[Point, Tensor, int]:
    """Return the highest point that the ascent meets, what the last round added, and the number of rounds.

    A round starts from the highest point so far, with steps of half the length and twice as many; nothing waits for
    the device within one. A NaN counts as the highest: a loss that broke is not hidden.
    """
    best: Point = {name: torch.zeros_like(function.coordinates.centre[name]) for name in ball.scale}
    lowest = highest = function.centre.loss
    length, count = radius, min(FIRST_ROUND, steps)
    gain, rounds = highest - lowest, 0
    while rounds == 0 or (steps >= count and (gain > rtol * (highest - lowest) or highest == lowest)):
        v = previous = best
        before = highest
        for _ in range(count):
            loss, gradient = function.loss_and_gradient(ball.epsilon(v))
            best, highest = _higher(v, loss, best, highest)
            ahead = ball.projected(ball.moved(v, gradient, length), radius)
            carried = {name: v[name] - previous[name] - (ahead[name] - v[name]) for name in v}
            previous, v = v, ball.projected({name: ahead[name] + _MOMENTUM * carried[name] for name in v}, radius)
        best, highest = _higher(v, function.evaluate(ball.epsilon(v)).loss, best, highest)
        gain, steps = highest - before, steps - count
        length, count, rounds = length / 2, 2 * count, rounds + 1
    return best, gain, rounds


def _higher(v: Point, loss: Tensor, best: Point, highest: Tensor) -> tuple[Point, Tensor]:
    """Return the higher of two points, with its loss."""
    better = ~(loss <= highest) & ~highest.isnan()
    return {name: torch.where(better, v[name], best[name]) for name in v}, torch.where(better, loss, highest)


def mean_increases(
    function: Objective, rows: int, num_samples: int, displacements: Callable[[int], Iterable[Point]]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the mean loss increase and its error over the draws, (rows,), and those of draws and of the data.

    The latter two are (rows, num_samples) and, means over the draws, (rows, n) with weights (n,). A draw is the mean of
    both signs: the gradient, which has no part in the mean, has none in the scatter either.
    """
    increases = torch.empty(rows, num_samples, dtype=torch.float64, device=function.device)
    with function.measurement_mode():
        here = function.centre
        by_sample = here.losses.new_zeros(rows, len(here.losses))
        for draw in progress(range(num_samples), "average sharpness"):
            for row, displacement in enumerate(displacements(draw)):
                there = function.evaluate(displacement)
                back = function.evaluate({name: -part for name, part in displacement.items()})
                increases[row, draw] = (there.loss + back.loss) / 2 - here.loss
                by_sample[row] += ((there.losses + back.losses) / 2 - here.losses) / num_samples
    increases = increases.cpu()
    stderr = increases.std(1) / num_samples**0.5
    return increases.mean(1), stderr, increases, by_sample.cpu(), here.weights.cpu()
