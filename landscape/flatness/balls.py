"""Perturbations of the weights and the rises of the loss that they make: balls in three metrics, and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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

    def climbed(self, v: Point, gradient: Point, radius: float, share: float) -> Point:
        """Take a step of share·radius along the gradient in v, and project back."""
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
        return Ball({name: filter_norms(w) for name, w in centre.centre.items() if w.ndim > 1}, True)
    if metric == "plain":
        radius = torch.tensor(centre.norm() if relative else 1.0, dtype=torch.float64)
        return Ball(dict.fromkeys(centre.names, radius), False)
    root = centre.numel**0.5 if relative else 1.0
    return Ball({name: root * w.abs() for name, w in centre.centre.items()}, False)


def worst_rises(function: Objective, ball: Ball, radii: Sequence[float], steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest rise met on the way up (radii,), each sample's there (radii, samples), and their weights."""
    centre = function.coordinates.centre
    rises, moved = [], []
    with function.measurement_mode():
        here = function.centre
        for radius in progress(radii, "worst-case sharpness"):
            v: Point = {name: torch.zeros_like(centre[name]) for name in ball.scale}
            met = [here]  # the centre lies in every ball
            for step in range(steps):
                v = ball.climbed(v, function.gradient(ball.epsilon(v)), radius, 1 - step / steps)
                met.append(function.evaluate(ball.epsilon(v)))
            # a NaN counts as the largest: a loss that broke is not hidden
            top = torch.stack([point.loss for point in met]).argmax()
            rises.append(torch.stack([point.loss for point in met])[top] - here.loss)
            moved.append(torch.stack([point.losses for point in met])[top] - here.losses)
    return torch.stack(rises).cpu(), torch.stack(moved).cpu(), here.weights.cpu()


def mean_rises(
    function: Objective, rows: int, draws: int, displacements: Callable[[int], Iterable[Point]]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return mean rise and its error over draws, each (rows,), and the rises of draws, (rows, draws), and of samples.

    The latter are means over the draws, (rows, samples), and have weights, (samples,).
    """
    rises = torch.empty(rows, draws, dtype=torch.float64, device=function.device)
    with function.measurement_mode():
        here = function.centre
        moved = here.losses.new_zeros(rows, len(here.losses))
        for draw in progress(range(draws), "average sharpness"):
            for row, displacement in enumerate(displacements(draw)):
                there = function.evaluate(displacement)
                rises[row, draw] = there.loss - here.loss
                moved[row] += (there.losses - here.losses) / draws
    rises = rises.cpu()
    return rises.mean(1), rises.std(1) / draws**0.5, rises, moved.cpu(), here.weights.cpu()


def check_draws(draws: int) -> None:
    """Refuse fewer than two draws."""
    if draws < 2:
        raise ValueError(f"draws must be >= 2, for a standard error, got {draws}")
