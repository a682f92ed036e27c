"""Adaptive surfaces: measure where the surface bends, interpolate the rest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .survey import COLUMNS, COMPUTED, FAILED, INTERPOLATED, PENDING, TILE, Survey

_COARSE = 5  # steps of the fine grid between two points of the coarse one
_STREAK = 5  # tiles below the tolerance before an interpolation is believed


def adaptive_plan(survey: Survey, alphas: Tensor, betas: Tensor, tolerance: float) -> Iterator[Tensor]:
    """Yield a coarse grid, then the points where the surface bends, until the interpolation is as good as asked.

    Three quarters of a tile go to where leaving a measured point out hurts its own interpolation most, away from what
    is measured and from each other, and a quarter goes anywhere. Each tile is predicted *before* it is measured: its
    largest error, as a share of the range of the log-loss (of the loss, where one is not positive), is what counts.
    After five tiles in a row below the tolerance the rest may be interpolated; past half of all points it would not
    pay, and all are measured. Next to a loss that is not finite everything is measured too. Writes the errors into the
    survey's ``about``.

    Cost: a dense inverse of the size of the points measured, per tile.
    """
    shape = (len(alphas), len(betas))
    yield from _coarse(alphas, betas).split(TILE)
    errors: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    while not (len(errors) >= _STREAK and all(error[0] <= tolerance for error in errors[-_STREAK:])):
        left = (survey.status == PENDING).nonzero()[:, 0]
        if len(left) <= len(survey.status) / 2:
            yield from left.split(TILE) if len(left) else ()
            break
        if len(beside := left[_beside_failed(survey.status.view(shape))[left]]):
            yield from beside.split(TILE)
            continue
        spline = Spline(survey, shape)
        chosen = left[_chosen(spline, left, generator)]
        predicted = spline(chosen)
        yield chosen
        errors.append(spline.error(predicted, chosen))
    if (survey.status == PENDING).any():
        held_out = torch.stack(errors[-_STREAK:]).amax(0).tolist()
        spline = Spline(survey, shape)
        names = ("accuracy", *survey.function.criterion.metrics)
        survey.about |= {
            # stairs show in a few points only, and those measured are more than those held out
            "interpolation_error": max(held_out[0], spline.left_out_error()),
            "interpolation_held_out": held_out[0],
            "interpolation_error_of": "log-loss" if spline.logarithmic else "loss",
            "interpolation_errors": dict(zip(names, held_out[1:], strict=True)),
        }


class Spline:
    """The smoothest function through all measured points of a grid: cubic radial basis and a linear part, float64.

    Loss (as log-loss where all are positive), accuracy and metrics are columns of one system.

    Source: Duchon 1977 (polyharmonic splines); Rippa 1999, eq. 6 (leaving one out without solving again).
    """

    def __init__(self, survey: Survey, shape: tuple[int, int]) -> None:
        # distances in steps of the grid: the two directions may be of very different lengths
        self.survey, self.places = survey, torch.cartesian_prod(*(torch.arange(n).double() for n in shape))
        self.known = (survey.status == COMPUTED).nonzero()[:, 0]
        self.logarithmic = bool((survey.values[self.known, 0] > 0).all())
        heights = self._heights(self.known)
        flat = 1e-5 * max(1.0, float(heights[:, 0].abs().max()))  # a range of rounding errors is none
        self.range = max(flat, float(heights[:, 0].max() - heights[:, 0].min()))
        basis, size = self._basis(self.known), len(self.known)
        system = torch.cat([basis, torch.cat([basis[:, size:].T, torch.zeros(3, 3).double()], 1)])
        inverse = torch.linalg.inv(system)
        self._coefficients = inverse[:, :size] @ heights
        self.left_out = self._coefficients[:size, 0].abs() / inverse.diagonal()[:size].abs()

    def __call__(self, points: Tensor) -> Tensor:
        """Interpolate: (points, columns), the first one in units of `_heights`."""
        return self._basis(points) @ self._coefficients

    def error(self, predicted: Tensor, points: Tensor) -> Tensor:
        """Return the largest error at points measured since: of the loss as a share of its range, of others plainly."""
        worst = (predicted - self._heights(points)).abs().amax(0)
        return torch.cat([(worst[:1] / self.range).nan_to_num(float("inf"), float("inf")), worst[1:]])

    def left_out_error(self) -> float:
        """Return the largest error at a measured point without it, as a share of the range; the border left out."""
        last = self.places[-1]
        inside = ((self.places[self.known] > 0) & (self.places[self.known] < last)).all(1)
        return float(self.left_out[inside].max()) / self.range if inside.any() else 0.0

    def fill(self) -> None:
        """Put interpolated values where nothing is measured; their standard error stays NaN."""
        points = (self.survey.status == PENDING).nonzero()[:, 0]
        values = self(points)
        values[:, 0] = values[:, 0].exp() if self.logarithmic else values[:, 0]
        values[:, 1].clamp_(0, 1)
        self.survey.values[points[:, None], self._columns()] = values
        self.survey.status[points] = INTERPOLATED

    def _columns(self) -> Tensor:
        return torch.tensor([0, 1, *range(len(COLUMNS), self.survey.values.shape[1])])

    def _heights(self, points: Tensor) -> Tensor:
        heights = self.survey.values[points][:, self._columns()]
        heights[:, 0] = heights[:, 0].log() if self.logarithmic else heights[:, 0]
        return heights

    def _basis(self, points: Tensor) -> Tensor:
        places = self.places[points]
        cubes = torch.cdist(places, self.places[self.known], compute_mode="donot_use_mm_for_euclid_dist") ** 3
        return torch.cat([cubes, torch.ones(len(places), 1).double(), places], 1)


def _coarse(alphas: Tensor, betas: Tensor) -> Tensor:
    """Return a grid five times coarser, with the model itself."""
    axes = []
    for axis in (alphas, betas):
        even = torch.linspace(0, len(axis) - 1, max(3, (len(axis) // _COARSE + 1) | 1)).round().long()
        axes.append(torch.cat([even, axis.abs().argmin()[None]]).unique())
    return (axes[0][:, None] * len(betas) + axes[1]).flatten()


def _beside_failed(status: Tensor) -> Tensor:
    """Mark the eight neighbours of every failed point."""
    failed = (status == FAILED).double()[None, None]
    return torch.nn.functional.max_pool2d(failed, 3, stride=1, padding=1).flatten() > 0


def _chosen(spline: Spline, left: Tensor, generator: torch.Generator) -> Tensor:
    """Return which of the points that are left to measure next."""
    nearest = torch.cdist(spline.places[left], spline.places[spline.known]).topk(4, largest=False)
    gap = nearest.values[:, 0]
    score = spline.left_out[nearest.indices].mean(1) * gap
    chosen: list[Tensor] = []
    for _ in range(min(TILE - TILE // 4, len(left))):
        best = score.argmax()
        chosen.append(best)
        away = (spline.places[left] - spline.places[left[best]]).norm(dim=1)
        score = score * (1 - torch.exp(-((away / gap[best]) ** 2)))  # the next one stands elsewhere
    anywhere = torch.randperm(len(left), generator=generator)[: TILE // 4]
    return torch.cat([torch.stack(chosen), anywhere]).unique()
