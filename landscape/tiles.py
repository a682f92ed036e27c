"""Many points of a surface: which ones, what they are worth, and a folder that keeps what is finished.

Three separate things, so that several processes can share the work: a *plan* yields tiles (the numbers of a few
points), `evaluate_points` measures them, `Tiles` writes and finds them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from . import parallel
from .coordinates import Point
from .directions import combined, fingerprint
from .objective import Evaluation, Objective
from .timing import progress

PENDING, COMPUTED, INTERPOLATED, FAILED = range(4)
TILE = 16  # points: what a kill loses at most, and what an adaptive surface chooses at a time
_COARSE = 5  # steps of the fine grid between two points of the coarse one
_STREAK = 5  # tiles below the tolerance before an interpolation is believed
COLUMNS = ("loss", "accuracy", "stderr")  # metrics follow


class Survey:
    """The points of one surface, as far as they are measured.

    Attributes:
        coordinates: (points, axes) steps along the directions.
        values: (points, 3 + metrics) loss, accuracy, standard error of the loss's difference to the centre, metrics.
        status: (points,) PENDING, COMPUTED, INTERPOLATED or FAILED, where the loss is not finite or raised an error.
        about: what is to be said of the points in the result's ``about``.
    """

    def __init__(self, function: Objective, steps: Sequence[Point], coordinates: Tensor) -> None:
        self.function, self.steps, self.coordinates = function, steps, coordinates
        width = len(COLUMNS) + len(function.metrics)
        self.values = torch.full((len(coordinates), width), float("nan"), dtype=torch.float64)
        self.status = torch.zeros(len(coordinates), dtype=torch.int8)
        self.about: dict[str, Any] = {}

    def run(self, plan: Iterator[Tensor], tiles: Tiles | None = None, total: int | None = None) -> Iterator[None]:
        """Measure what the plan asks for, or read it where it is finished; pause after each tile."""
        centre = self.function.evaluate()
        for number, points in enumerate(progress(plan, f"tiles of {TILE} points", total)):
            # as the first process finds it: a folder may look different from another machine
            found = parallel.gather(tiles.read(number, points))[0] if tiles else None
            if found is None:
                found = self._measured(points, centre)
                if tiles and parallel.rank() == 0:
                    tiles.write(number, points, *found)
            self.values[points], failure = found
            self.status[points] = torch.where(self.values[points, 0].isfinite(), COMPUTED, FAILED).to(torch.int8)
            if failure:
                self.about.setdefault("first_failure", failure)
            yield
        self.about["evaluated"] = int(((self.status == COMPUTED) | (self.status == FAILED)).sum())

    def _measured(self, points: Tensor, centre: Evaluation) -> tuple[Tensor, str]:
        """Measure a tile, its points dealt out to all processes."""
        mine = torch.arange(parallel.rank(), len(points), parallel.size())
        values = torch.zeros(len(points), self.values.shape[1], dtype=torch.float64)
        failure = ""
        if len(mine):
            coordinates = self.coordinates[points[mine]]
            values[mine], failure = evaluate_points(self.function, self.steps, coordinates, centre)
        return parallel.sum_(values), next(filter(None, parallel.gather(failure)), "")


def evaluate_points(
    function: Objective, steps: Sequence[Point], coefficients: Tensor, centre: Evaluation
) -> tuple[Tensor, str]:
    """Measure the points one after another: (points, columns) on the CPU, and the first error, if any.

    A point that raises an error is NaN. One by one, because a batch of points (`torch.vmap` over the weights) took 1.29
    times as long on a CPU; fetched once, so that an accelerator never waits.

    Raises:
        OutOfMemoryError: it would happen at every point.
    """
    rows, failure = [], ""
    with function.quiet():
        for row in coefficients.tolist():
            try:
                found = function.evaluate(combined(steps, row))
                rows.append(torch.stack([found.loss, found.accuracy, found.stderr(centre), *found.metrics]))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                failure = failure or f"{type(error).__name__}: {error}"
                nan = torch.full((len(COLUMNS) + len(function.metrics),), float("nan"), dtype=torch.float64)
                rows.append(nan.to(function.device))
        return torch.stack(rows).cpu(), failure


def rings(alphas: Tensor, betas: Tensor) -> Iterator[Tensor]:
    """Yield all points of a grid, tile by tile, from the model outwards: what is there early is what matters most."""
    middles = (int(alphas.abs().argmin()), int(betas.abs().argmin()))
    away = [(torch.arange(len(axis)) - middle).abs() for axis, middle in zip((alphas, betas), middles, strict=True)]
    distance = torch.maximum(away[0][:, None], away[1][None]).flatten()
    yield from distance.argsort(stable=True).split(TILE)


class Tiles:
    """A folder with one small file per finished tile, and a manifest of what it is that they are tiles of.

    Files appear under their names only when they are whole (written beside and renamed), so a kill at any moment
    loses the tile in progress and nothing else; a second call finds them and goes on.

    Args:
        path: the folder; made if it is not there.
        settings: everything that decides the numbers, as JSON: another surface's folder is refused.

    Raises:
        ValueError: the folder holds another surface, or something else.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        manifest = self.path / "manifest.json"
        wanted = json.loads(json.dumps(settings, default=lambda number: number.item()))  # of numpy's seeds, too
        if manifest.exists():
            self._check(json.loads(manifest.read_text()), wanted)
            return
        if others := [file.name for file in self.path.iterdir() if not file.name.endswith(".part")]:
            raise ValueError(f"path must be a new folder or one of a surface, but {path} holds {others[0]!r}")
        self._put("manifest.json", json.dumps(wanted, indent=1).encode())

    def read(self, number: int, points: Tensor) -> tuple[Tensor, str] | None:
        """Return a finished tile, or None: not there, or one of other points."""
        file = self.path / f"tile_{number:05d}.npz"
        if not file.exists():
            return None
        with np.load(file) as arrays:
            if not np.array_equal(arrays["points"], points.numpy()):
                return None
            return torch.from_numpy(arrays["values"]), str(arrays["failure"])

    def write(self, number: int, points: Tensor, values: Tensor, failure: str) -> None:
        """Keep a finished tile."""
        scratch = self._scratch(name := f"tile_{number:05d}.npz")
        with scratch.open("wb") as file:
            np.savez(file, points=points.numpy(), values=values.numpy(), failure=np.array(failure))
            _to_disk(file)
        scratch.replace(self.path / name)

    def _put(self, name: str, content: bytes) -> None:
        scratch = self._scratch(name)
        with scratch.open("wb") as file:
            file.write(content)
            _to_disk(file)
        scratch.replace(self.path / name)

    def _scratch(self, name: str) -> Path:
        return self.path / f"{name}.{os.getpid()}.part"  # two processes never write into one file

    def _check(self, there: dict[str, Any], wanted: dict[str, Any]) -> None:
        for key in [*wanted, *there]:
            if key == "centre_loss" and math.isclose(there.get(key, math.nan), wanted.get(key, math.nan), rel_tol=1e-3):
                continue  # its last digits depend on the machine
            if there.get(key) != wanted.get(key):
                raise ValueError(
                    f"path must be a new folder, or the one of this very surface: {self.path} holds one with "
                    f"{key} = {there.get(key)!r}, asked for is {wanted.get(key)!r}; choose another path"
                )


# Where a surface was begun; and ‖w‖, whose last digit depends on the number of threads: the weights tell models apart.
_NOT_ASKED = ("torch", "device", "weight_norm")


def open_tiles(path: str | Path | None, survey: Survey, about: Mapping[str, Any]) -> Tiles | None:
    """Open the folder of a surface, with everything that decides its numbers as its manifest."""
    if path is None:
        return None
    function = survey.function
    settings = {key: value for key, value in function.about(**about).items() if key not in _NOT_ASKED}
    data = [fingerprint(_tensors(batch)) for batch in function.batches()] if function.same_order else ["in any order"]
    state = dict(function.model.named_parameters()) | dict(function.model.named_buffers())
    settings |= {
        "coordinates": fingerprint({"": survey.coordinates}),
        "model": fingerprint(state),
        "data": data,
        "batch_rows": function.batch_rows,
        "metrics": list(function.metrics),
    }
    return parallel.first_alone(lambda: Tiles(path, settings))


def known_batch_size(path: str | Path | None, batch_size: int | str | None) -> int | str | None:
    """Return the batch size that a surface in the folder was begun with, where the fastest one is asked for."""
    manifest = None if path is None else Path(path) / "manifest.json"
    if batch_size != "fastest" or manifest is None or not manifest.exists():
        return batch_size
    known: int | None = json.loads(manifest.read_text()).get("batch_size")
    return known


def bf16_error(survey: Survey) -> float:
    """Return the largest difference to the loss in full precision, at five measured points from end to end."""
    computed = (survey.status == COMPUTED).nonzero()[:, 0]
    points = computed[torch.linspace(0, len(computed) - 1, 5).long().unique()]
    displaced = [combined(survey.steps, row) for row in survey.coordinates[points].tolist()]
    exact = copy.copy(survey.function)
    exact.precision = "fp32"
    losses = [
        torch.stack([function.evaluate(step).loss for step in displaced]) for function in (survey.function, exact)
    ]
    return float((losses[0] - losses[1]).abs().max())


def _tensors(batch: Any) -> dict[str, Tensor]:
    leaves, _ = tree_flatten(batch)
    known = (Tensor, np.ndarray, int, float)
    return {
        str(number): torch.as_tensor(leaf if isinstance(leaf, known) else list(repr(leaf).encode()))
        for number, leaf in enumerate(leaves)
    }


def _to_disk(file: Any) -> None:
    file.flush()
    with contextlib.suppress(OSError):  # some network drives cannot
        os.fsync(file.fileno())


def adaptive_plan(survey: Survey, alphas: Tensor, betas: Tensor, tolerance: float) -> Iterator[Tensor]:
    """Yield a coarse grid, then the points where the surface bends, until the interpolation is as good as asked.

    Three quarters of a tile go to where leaving a measured point out hurts its own interpolation most, away from what
    is measured and from each other, and a quarter goes anywhere. Each tile is predicted *before* it is measured: its
    largest error, as a share of the range of the log-loss (of the loss, where one is not positive), is what counts.
    After five tiles in a row below the tolerance the rest may be interpolated; past half of all points it would not
    pay, and all are measured. Next to a loss that is not finite everything is measured too. Writes what it found into
    the survey's ``about``.

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
        names = ("accuracy", *survey.function.metrics)
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
        found = self(points)
        found[:, 0] = found[:, 0].exp() if self.logarithmic else found[:, 0]
        found[:, 1].clamp_(0, 1)
        self.survey.values[points[:, None], self._columns()] = found
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
    distances = torch.cdist(spline.places[left], spline.places[spline.known])
    nearest = distances.topk(4, largest=False)
    gap = nearest.values[:, 0]
    score = spline.left_out[nearest.indices].mean(1) * gap
    found: list[Tensor] = []
    for _ in range(min(TILE - TILE // 4, len(left))):
        best = score.argmax()
        found.append(best)
        away = (spline.places[left] - spline.places[left[best]]).norm(dim=1)
        score = score * (1 - torch.exp(-((away / gap[best]) ** 2)))  # the next one stands elsewhere
    anywhere = torch.randperm(len(left), generator=generator)[: TILE // 4]
    return torch.cat([torch.stack(found), anywhere]).unique()
