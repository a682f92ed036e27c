"""How much the loss rises within, or at, a given relative distance of the weights.

All radii are filter-relative: ε with ‖ε_f‖ = r·‖w_f‖ in every filter f; biases and norm parameters stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .coordinates import Point, filter_norms
from .directions import random_direction
from .objective import BatchObjective, Loss, Objective
from .results import Result
from .timing import progress, stopwatch

RADII = (0.01, 0.05, 0.1)


@dataclass(frozen=True, eq=False)
class Sharpness(Result):
    """The rise of the loss at each relative radius.

    Attributes:
        radii: (radii,) r in ‖ε_f‖ = r·‖w_f‖.
        rise: (radii,) loss at the perturbed weights minus loss of the model.
        stderr: (radii,) standard error over the draws; NaN for the worst case, which has none.
        samples: (radii, draws or 1) the single rises.
    """

    radii: Tensor
    rise: Tensor
    stderr: Tensor
    samples: Tensor

    def __repr__(self) -> str:
        parts = zip(self.radii.tolist(), self.rise.tolist(), self.stderr.tolist(), strict=True)
        rises = ", ".join(
            f"{rise:.3g}{f' ± {error:.1g}' if error == error else ''} at {r:g}" for r, rise, error in parts
        )
        return f"Sharpness({self.about['measure']}: {rises})"


def average_sharpness(
    model: nn.Module,
    data: Any = None,
    *,
    radii: Sequence[float] = RADII,
    draws: int = 20,
    space: str | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Sharpness:
    """Measure the mean rise of the loss over random perturbations with ‖ε_f‖ = r·‖w_f‖.

    The draws depend on names, shapes and the seed alone, so networks of one architecture are perturbed alike.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        radii: relative radii r.
        draws: random perturbations per radius, the same directions at every radius.
        space: ``"quantized"`` (default) or ``"latent"``.
        seed: of the draws.
        loss, objective: see `Objective`.

    Raises:
        ValueError: a radius that is not > 0, draws < 2, bad data.

    Cost: draws·radii forward passes over the data.   Source: average-case sharpness, Andriushchenko et al. 2023, §2.
    """
    elapsed = stopwatch()
    if draws < 2:
        raise ValueError(f"draws must be >= 2, for a standard error, got {draws}")
    function = _prepared(model, data, radii, space, loss, objective)
    centre, _ = function.centre()
    rises = torch.empty(len(radii), draws, dtype=torch.float64, device=function.device)
    with function.quiet():
        for draw in progress(range(draws), "average sharpness"):
            direction = random_direction(function.coordinates, seed * 1_000_003 + draw)
            for row, radius in enumerate(radii):
                rises[row, draw] = function.evaluate({n: radius * d for n, d in direction.items()}).loss - centre
    rises = rises.cpu()
    about = function.about(measure=f"average of {draws} draws", seed=seed, seconds=elapsed())
    return Sharpness(about, torch.tensor(radii, dtype=torch.float64), rises.mean(1), rises.std(1) / draws**0.5, rises)


def worst_case_sharpness(
    model: nn.Module,
    data: Any = None,
    *,
    radii: Sequence[float] = RADII,
    steps: int = 10,
    space: str | None = None,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Sharpness:
    """Measure the largest rise of the loss that projected gradient ascent finds within ‖ε_f‖ ≤ r·‖w_f‖.

    Every step moves each filter along its own gradient by a share of its radius that falls from 1 to 1/steps, and
    projects it back onto its ball; the largest loss met counts, the centre's included. It is a lower bound of the true
    worst case.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        radii: relative radii r.
        steps: gradient steps per radius.
        space: ``"quantized"`` (default) or ``"latent"``.
        loss, objective: see `Objective`.

    Raises:
        ValueError: a radius that is not > 0, steps < 1, bad data.

    Cost: radii·steps gradients and as many forward passes over the data.
    """
    elapsed = stopwatch()
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    function = _prepared(model, data, radii, space, loss, objective)
    centre, _ = function.centre()
    with function.quiet():
        worst = [_ascend(function, radius, steps) for radius in progress(radii, "worst-case sharpness")]
    rises = (torch.stack(worst).cpu() - centre).clamp_min(0)  # the centre lies in every ball
    about = function.about(measure=f"worst of {steps} ascent steps", seconds=elapsed())
    return Sharpness(
        about, torch.tensor(radii, dtype=torch.float64), rises, torch.full_like(rises, float("nan")), rises[:, None]
    )


def _ascend(function: Objective, radius: float, steps: int) -> Tensor:
    """Return the largest loss met on the way up."""
    weights = {name: w for name, w in function.coordinates.centre.items() if w.ndim > 1}
    balls = {name: radius * filter_norms(w) for name, w in weights.items()}
    epsilon: Point = {name: torch.zeros_like(w) for name, w in weights.items()}
    losses = []
    for step in range(steps):
        gradient = function.gradient(epsilon)
        share = 1 - step / steps
        epsilon = {n: _projected(e + share * balls[n] * _unit(gradient[n]), balls[n]) for n, e in epsilon.items()}
        losses.append(function.evaluate(epsilon).loss)
    # amax lets a NaN through: a loss that broke is not hidden
    return torch.stack(losses).amax()


def _unit(gradient: Tensor) -> Tensor:
    return gradient / filter_norms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


def _projected(epsilon: Tensor, ball: Tensor) -> Tensor:
    norms = filter_norms(epsilon).clamp_min(torch.finfo(epsilon.dtype).tiny)
    return epsilon * (ball / norms).clamp_max(1)


def _prepared(
    model: nn.Module,
    data: Any,
    radii: Sequence[float],
    space: str | None,
    loss: Loss | None,
    objective: BatchObjective | None,
) -> Objective:
    if not radii or not all(0 < r < float("inf") for r in radii):
        raise ValueError(f"radii must be finite numbers > 0, relative to the filters' norms, got {radii}")
    return Objective(model, data, loss=loss, objective=objective, space=space)
