"""Loss, accuracy and metrics along one direction or over a plane through a network."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import numbers
from ..model import (
    BatchNorm,
    BatchObjective,
    Loss,
    Objective,
    Point,
    Precision,
    Space,
    coordinates,
    fingerprint,
    generator,
    measurement_mode,
    random_axis,
    stacked,
    translated,
)
from ..plotting import thumbnail
from ..progress import stopwatch
from ..results import Result
from .adaptive import Spline, adaptive_plan
from .axes import Directions, setup_axes
from .survey import COLUMNS, FAILED, TILE, Survey, bf16_error, rings
from .tiles import open_tiles

if TYPE_CHECKING:
    import pandas as pd

Span = float | tuple[float, float]


class Directed(Result):
    """What results along directions offer."""

    axes_count: ClassVar[int] = 2
    stored: Point

    def directions(self, model: nn.Module | Objective | None = None) -> list[Point]:
        """Give the direction of every axis, name → tensor: those that are stored, and those that a seed draws again.

        Args:
            model: the network that was measured, which random directions are scaled by; or its `Objective`. Not needed
                where all directions are stored, or where the network is still there in the session that measured it.

        Raises:
            ValueError: another network, or the same with other weights; another generator; nothing to draw from.
        """
        count = len(next(iter(self.stored.values()), ()))
        rows = [{name: stack[row] for name, stack in self.stored.items()} for row in range(count)]
        if len(rows) == self.axes_count:
            return rows
        known, names = _measured.get(self, (lambda: None, None))
        network = known() if model is None else model
        if "generator" not in self.about:
            raise ValueError("the result holds no directions, nor a seed that draws them: measure the network again")
        if network is None:
            raise ValueError(
                "directions are not stored here, a seed draws them for the network that was measured: pass it, as "
                "result.directions(model), or save the result with save(path, directions=True) while it is there"
            )
        if self.about["generator"] != generator():
            kinds = f"{self.about['generator']!r}, and here it is {generator()!r}"
            raise ValueError(f"directions were drawn on another generator, {kinds}: measure again")
        model = network.model if isinstance(network, Objective) else getattr(network, "_orig_mod", network)
        with measurement_mode(model), translated("reading the weights of the model", model):
            space: Space | None = "latent" if self.about["space"] == "latent" else None
            centre = network.coordinates if isinstance(network, Objective) else coordinates(model, space, names)
            found = fingerprint(centre.results(centre.centre))
        if found != self.about["model"]:
            raise ValueError(
                f"model must be the network that was measured, of fingerprint {self.about['model']}, got {found}: its "
                "weights, or which of them vary, are others. To walk other networks along the same directions store "
                "them while it is there, with save(path, directions=True)"
            )
        stored = iter(rows)
        return [
            random_axis(centre, self.about["seed"], index, str(axis["normalize"]))
            if axis["kind"] == "random"
            else next(stored)
            for index, axis in enumerate(self.about["axes"])
        ]

    def direction(self, axis: int = 0, model: nn.Module | Objective | None = None) -> Point:
        """Give the direction of an axis, name → tensor; see `directions`."""
        numbers(whole=True, at_least=-self.axes_count, below=self.axes_count, axis=axis)
        return self.directions(model)[axis]

    def save(self, path: str | Path, *, directions: bool = False) -> Path:
        """Write the result to a file, see `Result.save`.

        Args:
            path: of the file.
            directions: store those as well that a seed draws again from the network, see `directions`.
        """
        if not directions:
            return super().save(path)
        return Result.save(replace(self, stored=stacked(self.directions())), path)  # type: ignore[call-arg]

    def _of(self, function: Objective) -> Self:
        """Keep in mind which network was measured, as long as it is there."""
        _measured[self] = weakref.ref(function.model), function.coordinates.names
        return self


_measured: weakref.WeakKeyDictionary[Directed, tuple[Any, list[str]]] = weakref.WeakKeyDictionary()


class _Sampled(Directed):
    """What lines and surfaces share: they are drawn as one of several, and a picture of them says more than a table."""

    def _drawn(self) -> dict[str, Any]:
        return {"": self}

    def _cells(self) -> dict[str, list[str]]:
        """Return loss and accuracy at the centre, where the loss is lowest and where it is highest."""
        result: Any = self
        finite = result.loss.isfinite()
        rows: dict[str, Any] = {} if result.centre is None else {"centre": result.centre}
        if finite.any():
            low, high = (result.loss.where(finite, fill) for fill in (math.inf, -math.inf))
            ends = {"lowest": low.argmin(), "highest": high.argmax()}
            rows |= {name: np.unravel_index(int(index), result.loss.shape) for name, index in ends.items()}
        values = {"loss": result.loss, "accuracy": result.accuracy, **result.metrics}
        columns = {name: [f"{float(part[index]):.4g}" for index in rows.values()] for name, part in values.items()}
        return {"": list(rows)} | columns

    def _thumbnail(self) -> bytes:
        return thumbnail(self.draw)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Line(_Sampled):
    """Loss and accuracy along a direction.

    Attributes:
        alphas: (points,) steps in units of the direction; the model itself is at zero.
        loss, accuracy: (points,) float64; NaN and inf stay what they are.
        stderr: (points,) standard error, over the data, of the loss's difference to the model's.
        status: (points,) int8: 0 pending, 1 computed, 2 interpolated, 3 failed (not finite, or it raised an error).
        metrics: name → (points,).
        stored: name → (1, *shape), the direction, where no seed draws it again; see `directions`.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> line = landscape.line(model, data, points=3)
        >>> line.frame['loss'].tolist() == line.loss.tolist()
        True
    """

    alphas: Tensor
    loss: Tensor
    accuracy: Tensor
    stderr: Tensor | None = None
    status: Tensor | None = None
    metrics: Point = field(default_factory=dict)
    stored: Point = field(default_factory=dict)
    dims = dict.fromkeys(("alphas", "loss", "accuracy", "stderr", "status"), ("alpha",))
    columns = ("alphas", "loss", "accuracy", "stderr", "status", "metrics")
    picture: ClassVar[str] = "lines.lines"
    axes_count: ClassVar[int] = 1

    @property
    def centre(self) -> int | None:
        """Where the model itself stands in the arrays, if it does."""
        return _zero(self.alphas)

    def __repr__(self) -> str:
        return f"Line({len(self.alphas)} points, {_range(self.loss, self.centre)})"


@dataclass(frozen=True, eq=False)
class Surface(_Sampled):
    """Loss and accuracy over a plane.

    Attributes:
        alphas, betas: (points,) steps in units of the first and the second direction.
        loss, accuracy: (alphas, betas) float64, ``loss[i, j]`` at ``alphas[i]``, ``betas[j]``.
        stderr: (alphas, betas) standard error, over the data, of the loss's difference to the model's; NaN where
            interpolated.
        status: (alphas, betas) int8: 0 pending, 1 computed, 2 interpolated, 3 failed (not finite, or it raised).
        metrics: name → (alphas, betas).
        stored: name → (axes, *shape), those of the two directions that no seed draws again; see `directions`. They
            need not be orthogonal.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> surface = landscape.surface(model, data, points=3)
        >>> surface.loss[surface.centre].shape, list(surface.direction(1))
        (torch.Size([]), ['weight'])
    """

    alphas: Tensor
    betas: Tensor
    loss: Tensor
    accuracy: Tensor
    stderr: Tensor | None = None
    status: Tensor | None = None
    metrics: Point = field(default_factory=dict)
    stored: Point = field(default_factory=dict)
    dims = dict.fromkeys(("loss", "accuracy", "stderr", "status"), ("alpha", "beta"))
    dims |= {"alphas": ("alpha",), "betas": ("beta",)}
    picture: ClassVar[str] = "surfaces.surfaces"

    @property
    def centre(self) -> tuple[int, int] | None:
        """Where the model itself stands in the arrays, if it does."""
        i, j = _zero(self.alphas), _zero(self.betas)
        return None if i is None or j is None else (i, j)

    @property
    def frame(self) -> pd.DataFrame:
        """The points as a pandas DataFrame: a row each, alpha and beta first."""
        import pandas

        alphas, betas = torch.meshgrid(self.alphas, self.betas, indexing="ij")
        columns: dict[str, Tensor | None] = {"alpha": alphas, "beta": betas, "loss": self.loss}
        columns |= {"accuracy": self.accuracy, "stderr": self.stderr, "status": self.status, **self.metrics}
        return pandas.DataFrame({name: part.flatten().tolist() for name, part in columns.items() if part is not None})

    def __repr__(self) -> str:
        error, count = self.about.get("interpolation_error"), self.about.get("evaluated")
        adaptive = "" if error is None else f", {count} evaluated, interpolated to {100 * error:.2g} %"
        return f"Surface({len(self.alphas)}×{len(self.betas)} points{adaptive}, {_range(self.loss, self.centre)})"


def line(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    span: Span = 1.0,
    points: int = 51,
    directions: Directions = "random",
    normalize: str = "filter",
    batchnorm: BatchNorm | None = None,
    space: Space | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    metrics: Mapping[str, Loss] | None = None,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    path: str | Path | None = None,
) -> Line:
    """Measure loss, accuracy and metrics along a direction through the model.

    ``line(a, directions=b, span=(0, 1))`` goes from one network to another and ends at both, to rounding.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        span: half the length of the line, in units of the (normalised) direction, or its two ends.
        points: where span is a number odd, so that the middle one is the model exactly.
        directions: ``"random"``; ``"gradient"`` (one unit is a step at learning rate 1); ``"eigenvectors"`` of the
            Hessian, or a result of `top_eigenvalues`; a direction (name → tensor; missing names stay); or another
            network, which then lies at 1. Between quantized networks only what varies moves: steps and clips stay
            those of ``model``. Only random directions are rescaled.
        normalize: ``"filter"``, ``"layer"`` or ``"none"``, for random directions.
        batchnorm: ``"fixed"`` statistics or ``"recomputed"`` at every point by one pass over the data; default
            recomputed between networks, fixed otherwise; `batchnorm_check` shows the difference.
        space: ``"quantized"`` (default) or ``"latent"``, where a quantized network's line is a staircase.
        seed: of the random direction.
        loss, objective, metrics, precision: see `Objective`; bf16's difference to fp32 is measured at five points.
        batch_size: rows per batch where data is ``(x, y)``.
        path: folder that keeps every finished tile of 16 points; a second call goes on from there.

    Raises:
        ValueError: points even or < 3, span ≤ 0, unknown settings, a direction that does not fit, bad data, a path
            that holds something else.

    Cost: one forward pass over the data per point (two with recomputed statistics).

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> line = landscape.line(model, data, points=5, span=0.5)
        >>> line.alphas.tolist(), line.centre
        ([-0.5, -0.25, 0.0, 0.25, 0.5], 2)
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    alphas = grid(span, points)
    arguments: dict[str, Any] = {"loss": loss, "objective": objective, "metrics": metrics, "space": space}
    arguments |= {"batchnorm": batchnorm, "precision": precision, "batch_size": batch_size}
    function, steps, stored, about = setup_axes(model, data, directions, 1, normalize, seed, **arguments)
    survey = Survey(function, steps, alphas[:, None], about["plane"])
    plan = partial(rings, alphas, torch.zeros(1))
    for _ in survey.run(plan, open_tiles(path, function, survey.coordinates, about), -(-len(alphas) // TILE)):
        pass
    about = _about(survey, about, elapsed())
    return Line(about, alphas, **_fields(survey, (len(alphas),)), stored=stored)._of(function)


def surface(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    span: Span | tuple[Span, Span] = 1.0,
    points: int | tuple[int, int] = 25,
    directions: Directions = "random",
    normalize: str = "filter",
    batchnorm: BatchNorm | None = None,
    space: Space | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    metrics: Mapping[str, Loss] | None = None,
    precision: Precision = "fp32",
    batch_size: int | None = None,
    adaptive: bool = False,
    tolerance: float = 0.01,
    path: str | Path | None = None,
    watch: Callable[[Surface], Any] | None = None,
) -> Surface:
    """Measure loss, accuracy and metrics over a rectangle spanned by two directions through the model.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        span: half the side of the square, in units of the directions; or the two ends of both axes; or a pair of
            either, for each axis its own.
        points: per side, or a pair; odd where span is a number, so that the middle one is the model exactly.
        directions: ``"random"``, ``"gradient"`` or ``"eigenvectors"`` (the top two), or a pair of what `line` takes.
            Two networks give the plane through all three, at (0, 0), (1, 0) and (0, 1): its axes are oblique. A
            `Trajectory` gives its plane.
        normalize, batchnorm, space, seed, loss, objective, metrics, precision, batch_size: see `line`.
        adaptive: measure where the surface bends and interpolate the rest (``status`` says which).
            ``about["interpolation_error"]`` is the largest error that was seen: at the last 80 points, each predicted
            before it was measured (they decide when to stop), or at a measured point left out; a stair between two
            points may be missed. Accuracy and metrics are interpolated too, their errors
            (``about["interpolation_errors"]``) are not controlled.
        tolerance: of the interpolation, as a share of the range of the log-loss.
        path: folder that keeps every finished tile of 16 points: a kill loses the tile in progress, and a second call
            goes on from there. Without it, an interrupted surface is lost.
        watch: called with the unfinished surface after each tile; what it raises stops the measurement.

    Raises:
        ValueError: points even or < 3, span ≤ 0, unknown settings, directions that do not fit, bad data, a path that
            holds something else.

    Cost: one forward pass over the data per point (two with recomputed statistics). Adaptive, 10 % of 51 × 51 points
        were enough for a float network, 15–25 % for a W4A4 one; stairs (W2A2 on few data) take all of them.
    Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets".

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> surface = landscape.surface(model, data, points=(3, 5))
        >>> surface.loss.shape, surface.centre
        (torch.Size([3, 5]), (1, 2))
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    alphas, betas = _axes(span, points)
    numbers(above=0, below=1, note="a share of the range of the log-loss", tolerance=tolerance)
    arguments: dict[str, Any] = {"loss": loss, "objective": objective, "metrics": metrics, "space": space}
    arguments |= {"batchnorm": batchnorm, "precision": precision, "batch_size": batch_size}
    function, steps, stored, about = setup_axes(model, data, directions, 2, normalize, seed, **arguments)
    survey = Survey(function, steps, torch.cartesian_prod(alphas, betas), about["plane"])
    plan = partial(rings, alphas, betas)
    if adaptive:
        plan = partial(adaptive_plan, survey, alphas, betas, tolerance)
    tiles = open_tiles(path, function, survey.coordinates, about | {"tolerance": tolerance if adaptive else None})
    shape = len(alphas), len(betas)

    def result(about: dict[str, Any]) -> Surface:
        return Surface(about, alphas, betas, **_fields(survey, shape), stored=stored)._of(function)

    for _ in survey.run(plan, tiles, None if adaptive else -(-len(survey.status) // TILE)):
        if watch is not None:
            watch(result(function.about(**about)))
    if "interpolation_error" in survey.about:
        Spline(survey, shape).fill()
    return result(_about(survey, about, elapsed()))


def grid(span: Span, points: int) -> Tensor:
    """Return the steps −span…span, the middle one exactly zero; or those between two ends, zero exactly zero."""
    if isinstance(span, tuple | list):
        if len(span) != 2 or not -float("inf") < span[0] < span[1] < float("inf"):
            raise ValueError(f"span must be a number > 0 or two finite ends, the lower one first, got {span}")
        if not isinstance(points, int) or points < 2:
            raise ValueError(f"points must be >= 2 between two ends, got {points}")
        steps = torch.arange(points, dtype=torch.float64) / (points - 1)
        alphas = span[0] * (1 - steps) + span[1] * steps  # both ends exactly
        return torch.where(alphas.abs() < 1e-12 * (span[1] - span[0]), 0.0, alphas)
    if not span > 0 or span == float("inf"):
        raise ValueError(f"span must be > 0 and finite, got {span}")
    if not isinstance(points, int) or points < 3 or points % 2 == 0:
        raise ValueError(f"points must be odd and >= 3, so that the middle one is the model itself, got {points}")
    return torch.arange(-(points // 2), points // 2 + 1, dtype=torch.float64) * (span / (points // 2))


def _axes(span: Any, points: Any) -> tuple[Tensor, Tensor]:
    paired = isinstance(span, tuple | list) and any(isinstance(part, tuple | list) for part in span)
    spans = span if paired else (span, span)
    counts = points if isinstance(points, tuple | list) else (points, points)
    return grid(spans[0], counts[0]), grid(spans[1], counts[1])


def _fields(survey: Survey, shape: tuple[int, ...]) -> dict[str, Any]:
    columns = [column.reshape(shape).clone() for column in survey.values.T]
    metrics = dict(zip(survey.function.criterion.metrics, columns[len(COLUMNS) :], strict=True))
    return dict(zip(COLUMNS, columns, strict=False)) | {"status": survey.status.view(shape).clone(), "metrics": metrics}


def _about(survey: Survey, about: dict[str, Any], seconds: float) -> dict[str, Any]:
    about = survey.function.about(**about) | survey.about
    passes = about["evaluated"] * (2 if survey.function.network.batchnorm == "recomputed" else 1)
    if failed := int((survey.status == FAILED).sum()):
        about["failed"] = failed
    if survey.function.network.precision == "bf16":
        about["bf16_error"] = bf16_error(survey)
    return about | {"forward_passes": passes, "seconds": seconds}


def _zero(axis: Tensor) -> int | None:
    middle = int(axis.abs().argmin())
    return middle if axis[middle] == 0 else None


def _range(values: Tensor, centre: Any) -> str:
    at = "" if centre is None else f"loss {float(values[centre]):.4g} at the centre, "
    finite = values[values.isfinite()]
    if not len(finite):
        return f"{at}no finite value"
    gaps = values.numel() - len(finite)
    return f"{at}{float(finite.min()):.4g}…{float(finite.max()):.4g}" + (f", {gaps} not finite" if gaps else "")
