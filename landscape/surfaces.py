"""Loss and accuracy along one direction or over a plane through a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .coordinates import Point
from .directions import NORMALIZATIONS, checked_direction, direction_to, random_direction
from .objective import BatchObjective, Loss, Objective
from .results import Result
from .timing import progress, stopwatch

Directions = str | nn.Module | Point | Sequence[nn.Module | Point]


@dataclass(frozen=True, eq=False)
class Line(Result):
    """Loss and accuracy along a direction.

    Attributes:
        alphas: (points,) steps in units of the direction; the middle one is zero, the model itself.
        loss, accuracy: (points,) float64; NaN and inf stay what they are.
    """

    alphas: Tensor
    loss: Tensor
    accuracy: Tensor
    dims: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(("alphas", "loss", "accuracy"), ("alpha",))

    def plot(self, value: str = "loss", *, log: bool = False) -> Any:
        """Draw the curve as an interactive plotly figure."""
        from .plotting import interactive

        return interactive.lines({"": self}, value=value, log=log)

    def draw(self, ax: Any = None, *, value: str = "loss", log: bool = False) -> Any:
        """Draw the curve into matplotlib axes (new ones by default) and return them."""
        from .plotting import paper

        return paper.lines({"": self}, ax, value=value, log=log)

    def __repr__(self) -> str:
        middle = len(self.alphas) // 2
        return (
            f"Line({len(self.alphas)} points, loss {float(self.loss[middle]):.4g} at the centre, {_range(self.loss)})"
        )


@dataclass(frozen=True, eq=False)
class Surface(Result):
    """Loss and accuracy over a plane.

    Attributes:
        alphas, betas: (points,) steps in units of the first and the second direction.
        loss, accuracy: (points, points) float64, ``loss[i, j]`` at ``alphas[i]``, ``betas[j]``.
    """

    alphas: Tensor
    betas: Tensor
    loss: Tensor
    accuracy: Tensor
    dims: ClassVar[dict[str, tuple[str, ...]]] = {
        "alphas": ("alpha",),
        "betas": ("beta",),
        "loss": ("alpha", "beta"),
        "accuracy": ("alpha", "beta"),
    }

    def plot(self, value: str = "loss", *, log: bool = False) -> Any:
        """Draw the surface in interactive 3-D with contours (plotly)."""
        from .plotting import interactive

        return interactive.surfaces({"": self}, value=value, log=log)

    def draw(self, ax: Any = None, *, value: str = "loss", levels: Any = None) -> Any:
        """Draw labelled contours at logarithmic levels into matplotlib axes (new ones by default) and return them."""
        from .plotting import paper

        return paper.contours(self, ax, value=value, levels=levels)

    def __repr__(self) -> str:
        points, middle = len(self.alphas), len(self.alphas) // 2
        centre = float(self.loss[middle, middle])
        return f"Surface({points}×{points} points, loss {centre:.4g} at the centre, {_range(self.loss)})"


def line(
    model: nn.Module,
    data: Any = None,
    *,
    span: float = 1.0,
    points: int = 51,
    directions: Directions = "random",
    normalize: str = "filter",
    batchnorm: str | None = None,
    space: str | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Line:
    """Measure loss and accuracy from −span to span along a direction through the model.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        span: half the length of the line, in units of the (normalised) direction.
        points: odd, so that the middle one is the model exactly.
        directions: ``"random"``, a direction (name → tensor; missing names stay), or another network, which then lies
            at +1. Between quantized networks only what varies moves: steps and clips stay those of ``model``.
        normalize: ``"filter"``, ``"layer"`` or ``"none"``, for random directions; others are walked as they are.
        batchnorm: ``"fixed"`` statistics or ``"recomputed"`` at every point by one pass over the data; default
            recomputed between networks, fixed otherwise.
        space: ``"quantized"`` (default) or ``"latent"``, where a quantized network's line is a staircase.
        seed: of the random direction.
        loss, objective: see `Objective`.

    Raises:
        ValueError: points even or < 3, span ≤ 0, unknown settings, a direction that does not fit, bad data.

    Cost: one forward pass over the data per point (two with recomputed statistics).
    """
    elapsed = stopwatch()
    function, steps = _prepared(model, data, 1, directions, normalize, batchnorm, space, seed, loss, objective)
    alphas = grid(span, points)
    values = _evaluated(function, steps, alphas[:, None])
    about = _about(function, directions, normalize, seed, len(alphas), elapsed())
    return Line(about, alphas, values[:, 0], values[:, 1])


def surface(
    model: nn.Module,
    data: Any = None,
    *,
    span: float = 1.0,
    points: int = 25,
    directions: Directions = "random",
    normalize: str = "filter",
    batchnorm: str | None = None,
    space: str | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Surface:
    """Measure loss and accuracy over the square of ±span spanned by two directions through the model.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        span: half the side of the square, in units of the (normalised) directions.
        points: per side, odd, so that the middle one is the model exactly.
        directions: ``"random"``, or a pair, each a direction (name → tensor) or another network, which then lies at +1.
        normalize: ``"filter"``, ``"layer"`` or ``"none"``, for random directions; others are walked as they are.
        batchnorm: ``"fixed"`` or ``"recomputed"`` (see `line`).
        space: ``"quantized"`` (default) or ``"latent"``.
        seed: of the random directions.
        loss, objective: see `Objective`.

    Raises:
        ValueError: points even or < 3, span ≤ 0, unknown settings, directions that do not fit, bad data.

    Cost: points² forward passes over the data (twice that with recomputed statistics).
    Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets".
    """
    elapsed = stopwatch()
    function, steps = _prepared(model, data, 2, directions, normalize, batchnorm, space, seed, loss, objective)
    axis = grid(span, points)
    values = _evaluated(function, steps, torch.cartesian_prod(axis, axis)).view(points, points, 2)
    about = _about(function, directions, normalize, seed, points**2, elapsed())
    return Surface(about, axis, axis.clone(), values[..., 0], values[..., 1])


def plot_line(model: nn.Module, data: Any = None, **settings: Any) -> Any:
    """Return ``line(model, data, …).plot()``: the interactive curve."""
    return line(model, data, **settings).plot()


def plot_surface(model: nn.Module, data: Any = None, **settings: Any) -> Any:
    """Return ``surface(model, data, …).plot()``: the interactive surface."""
    return surface(model, data, **settings).plot()


def _prepared(
    model: nn.Module,
    data: Any,
    count: int,
    directions: Directions,
    normalize: str,
    batchnorm: str | None,
    space: str | None,
    seed: int,
    loss: Loss | None,
    objective: BatchObjective | None,
) -> tuple[Objective, list[Point]]:
    """Build the objective and as many directions as the picture has axes."""
    given = [directions] if isinstance(directions, nn.Module | dict | str) else list(directions)
    between = any(isinstance(part, nn.Module) for part in given)
    policy = batchnorm or ("recomputed" if between else "fixed")
    function = Objective(model, data, loss=loss, objective=objective, space=space, batchnorm=policy)
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    if given == ["random"]:
        # seeds of the axes are spread out, so that seed=1 does not share a direction with seed=0
        steps = [random_direction(function.coordinates, seed * 1_000_003 + axis, normalize) for axis in range(count)]
    elif len(given) != count or any(isinstance(part, str) for part in given):
        raise ValueError(f'directions must be "random" or {count} of directions and networks, got {_shown(directions)}')
    else:
        steps = [_step(function, part) for part in given]
    function.centre()
    return function, steps


def _step(function: Objective, part: Any) -> Point:
    if isinstance(part, nn.Module):
        return direction_to(function.coordinates, part)
    return checked_direction(function.coordinates, part)


def _evaluated(function: Objective, steps: list[Point], coefficients: Tensor) -> Tensor:
    """Return (points, 2) losses and accuracies on the CPU; fetched once, so that an accelerator never waits."""
    values = []
    with function.quiet():
        for row in progress(coefficients.tolist(), "points"):
            values.append(torch.stack(function.evaluate(_combined(steps, row))[:2]))
        return torch.stack(values).cpu()


def _combined(steps: list[Point], coefficients: list[float]) -> Point:
    total: Point = {}
    for step, coefficient in zip(steps, coefficients, strict=True):
        for name, part in step.items():
            total[name] = total[name] + coefficient * part if name in total else coefficient * part
    return total


def grid(span: float, points: int) -> Tensor:
    """Return the steps −span…span, the middle one exactly zero."""
    if not span > 0 or span == float("inf"):
        raise ValueError(f"span must be > 0 and finite, got {span}")
    if not isinstance(points, int) or points < 3 or points % 2 == 0:
        raise ValueError(f"points must be odd and >= 3, so that the middle one is the model itself, got {points}")
    half = torch.arange(-(points // 2), points // 2 + 1, dtype=torch.float64)
    return half * (span / (points // 2))


def _about(
    function: Objective, directions: Directions, normalize: str, seed: int, points: int, seconds: float
) -> dict[str, Any]:
    random = isinstance(directions, str)
    passes = points * (2 if function.batchnorm == "recomputed" else 1)
    return function.about(
        directions=f"random, {normalize} normalisation" if random else _shown(directions),
        seed=seed if random else None,
        forward_passes=passes,
        seconds=seconds,
    )


def _shown(directions: Directions) -> str:
    if isinstance(directions, str):
        return repr(directions)
    parts = [directions] if isinstance(directions, nn.Module | dict) else list(directions)
    return " and ".join("towards a network" if isinstance(part, nn.Module) else "given" for part in parts)


def _range(values: Tensor) -> str:
    finite = values[values.isfinite()]
    gaps = len(values.flatten()) - len(finite)
    if not len(finite):
        return "no finite value"
    return f"{float(finite.min()):.4g}…{float(finite.max()):.4g}" + (f", {gaps} not finite" if gaps else "")
