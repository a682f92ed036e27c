"""The points of a surface, as far as they are measured: by one process or by many."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import parallel
from ..model import Along, Objective, Point, Replay, fingerprint
from ..progress import progress
from .tiles import Tiles

PENDING, COMPUTED, INTERPOLATED, FAILED = range(4)
TILE = 16  # points: what a kill loses at most, and what an adaptive surface chooses at a time
COLUMNS = ("loss", "accuracy", "stderr")  # metrics follow


class Survey:
    """The points of one surface, as far as they are measured.

    Attributes:
        coordinates: (points, axes) steps along the directions, whose fingerprint is ``plane``.
        values: (points, 3 + metrics) loss, accuracy, standard error of the loss's difference to the centre, metrics.
        status: (points,) PENDING, COMPUTED, INTERPOLATED or FAILED, where the loss is not finite or raised an error.
        about: entries for the result's ``about``.
    """

    def __init__(self, function: Objective, steps: Sequence[Point], coordinates: Tensor, plane: str) -> None:
        parallel.check_agreement(directions=plane, points=fingerprint({"": coordinates}))
        self.function, self.steps, self.coordinates = function, steps, coordinates
        width = len(COLUMNS) + len(function.criterion.metrics)
        self.values = torch.full((len(coordinates), width), float("nan"), dtype=torch.float64)
        self.status = torch.zeros(len(coordinates), dtype=torch.int8)
        self.about: dict[str, Any] = {}
        self._replay = Replay(function, steps, coordinates)

    def run(
        self, plan: Callable[[], Iterator[Tensor]], tiles: Tiles | None = None, total: int | None = None
    ) -> Iterator[None]:
        """Measure what the plan asks for, or read it where it is finished; pause after each tile.

        Where the last point shows that a replay went wrong, all is measured again without.
        """
        measured_here = yield from self._run(plan(), tiles, total, set())
        if not all(parallel.gather(self._replay.is_confirmed())):
            self.status.zero_()
            self.about.clear()
            self._replay = Replay(self.function, self.steps, self.coordinates[:0])
            yield from self._run(plan(), tiles, total, measured_here)
        self.about["evaluated"] = int(((self.status == COMPUTED) | (self.status == FAILED)).sum())

    def _run(
        self, plan: Iterator[Tensor], tiles: Tiles | None, total: int | None, unread: set[int]
    ) -> Generator[None, None, set[int]]:
        measured_here = set()
        for index, points in enumerate(progress(plan, f"tiles of {TILE} points", total)):
            # as the first process finds it: a folder may look different from another machine
            measured = parallel.gather(tiles.read(index, points))[0] if tiles and index not in unread else None
            if measured is None:
                measured = self._measure(points)
                measured_here.add(index)
                if tiles and parallel.rank() == 0:
                    tiles.write(index, points, *measured)
            self.values[points], failure = measured
            self.status[points] = torch.where(self.values[points, 0].isfinite(), COMPUTED, FAILED).to(torch.int8)
            if failure:
                self.about.setdefault("first_failure", failure)
            yield
        return measured_here

    def _measure(self, points: Tensor) -> tuple[Tensor, str]:
        """Measure a tile, its points dealt out to all processes; they measure each together if the model is sharded."""
        if self.function.coordinates.layouts:
            return evaluate_points(self._replay, self.coordinates[points])
        mine = torch.arange(parallel.rank(), len(points), parallel.size())
        values = torch.zeros(len(points), self.values.shape[1], dtype=torch.float64)
        failure = ""
        if len(mine):
            values[mine], failure = evaluate_points(self._replay, self.coordinates[points[mine]])
        return parallel.sum_(values), next(filter(None, parallel.gather(failure)), "")


def evaluate_points(replay: Replay, coefficients: Tensor) -> tuple[Tensor, str]:
    """Measure points: (points, columns) on the CPU, and the first error, if any; a point that raises one is NaN.

    One by one, because a batch of points (`torch.vmap` over the weights) took 1.29 times as long on a CPU; fetched
    once, so that an accelerator never waits.

    Raises:
        OutOfMemoryError: it would happen at every point.
    """
    rows, failure, function = [], "", replay.objective
    replayed = replay(coefficients.tolist())
    if replayed is not None:
        return replayed.cpu(), ""
    with function.measurement_mode():
        for row in coefficients.tolist():
            try:
                rows.append(replay.row(row))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                failure = failure or f"{type(error).__name__}: {error}"
                nan = torch.full((len(COLUMNS) + len(function.criterion.metrics),), float("nan"), dtype=torch.float64)
                rows.append(nan.to(function.device))
        return torch.stack(rows).cpu(), failure


def rings(alphas: Tensor, betas: Tensor) -> Iterator[Tensor]:
    """Yield all points of a grid, tile by tile, from the model outwards: what is there early is what matters most."""
    middles = (int(alphas.abs().argmin()), int(betas.abs().argmin()))
    away = [(torch.arange(len(axis)) - middle).abs() for axis, middle in zip((alphas, betas), middles, strict=True)]
    yield from torch.maximum(away[0][:, None], away[1][None]).flatten().argsort(stable=True).split(TILE)


def bf16_error(survey: Survey) -> float:
    """Return the largest difference to the loss in full precision, at five measured points from end to end."""
    computed = (survey.status == COMPUTED).nonzero()[:, 0]
    points = computed[torch.linspace(0, len(computed) - 1, 5).long().unique()]
    displaced = [Along(survey.steps, row) for row in survey.coordinates[points].tolist()]
    function, exact = survey.function, survey.function.variant(precision="fp32")
    errors = [function.evaluate(step).loss - exact.evaluate(step).loss for step in displaced]
    return float(torch.stack(errors).abs().max())
