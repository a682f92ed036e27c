"""How much the loss increases when the weights are rounded, and under noise as large as rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import check_draws
from ..model import BatchObjective, Evaluation, Loss, Objective, Point, gaussian, objective_of, stderr_of_mean
from ..progress import stopwatch
from ..results import Result, with_errors
from .balls import mean_increases


@dataclass(frozen=True, eq=False)
class RoundingSharpness(Result):
    """The loss increase under noise as large as rounding, and under rounding itself.

    Attributes:
        bits: the number of bits of each row; 0 for the steps that the network itself has.
        delta_loss: (rows,) mean loss increase under independent uniform noise of ± half a step on every weight.
        stderr: (rows,) its standard error over the draws.
        samples: (rows, num_samples) the single increases.
        stderr_data: (rows,) its standard error over the data, the noise held fixed.
        rounded: (rows,) the increase when the weights are rounded at those steps.
        rounded_stderr_data: (rows,) its standard error over the data.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> rounding = landscape.rounding_sharpness(model, data, bits=(4, 2), num_samples=3)
        >>> rounding.bits, rounding.samples.shape
        ([4, 2], torch.Size([2, 3]))
    """

    bits: list[int]
    delta_loss: Tensor
    stderr: Tensor
    samples: Tensor
    stderr_data: Tensor
    rounded: Tensor
    rounded_stderr_data: Tensor
    columns = ("bits", "delta_loss", "stderr", "stderr_data", "rounded", "rounded_stderr_data")
    picture: ClassVar[str] = "radii.increases"

    def _cells(self) -> dict[str, list[str]]:
        noise = with_errors(self.delta_loss, self.stderr, self.stderr_data)
        rounded = with_errors(self.rounded, self.rounded_stderr_data)
        return {"": list(map(bits_label, self.bits)), "loss increase, noise": noise, "rounded": rounded}

    def __repr__(self) -> str:
        rows = zip(self.bits, self.delta_loss.tolist(), self.stderr.tolist(), self.rounded.tolist(), strict=True)
        parts = [f"{mean:.3g} ± {error:.1g} (rounded {exact:.3g}) {bits_label(b)}" for b, mean, error, exact in rows]
        return f"RoundingSharpness({', '.join(parts)})"


def rounding_sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    bits: Sequence[int] | None = None,
    num_samples: int = 20,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> RoundingSharpness:
    """Measure the loss increase under uniform noise of ± half a rounding step per weight, and under rounding.

    To second order the noise increases the loss by Σ H_ii·s_i²/24 for steps s. It stands for rounding where the errors
    of the weights are independent of each other and of the gradient; rounding itself stands beside it to show how far.

    Every weight of two or more dimensions moves, each tensor with one step: levels −(2^{b−1}−1)·s … (2^{b−1}−1)·s, s of
    least squared error. Its clipping is in the rounding, not in the noise. At ``bits=0`` the layers that are quantized
    move, by their own steps, and "rounded" is the loss of the network minus that at its weights before rounding.

    Args:
        model: any network; not touched. A quantized one is taken at its rounded weights.
        data: ``(x, y)`` or batches; default ``model.probe``.
        bits: 2 to 16, or 0 for the network's own steps; default (0,) where it is quantized, else (8, 4, 3, 2).
        num_samples: draws of the noise, each with both signs, the same at every number of bits.
        seed: of the draws.
        loss, objective: see `Objective`.

    Raises:
        ValueError: bits outside of that, 0 where nothing is quantized, num_samples < 2, bad data.

    Cost: bits·(2·num_samples + 1) forward passes.   Source: uniform noise model of rounding, Widrow and Kollár 2008.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> landscape.rounding_sharpness(model, data, bits=(8, 2)).delta_loss.shape
        torch.Size([2])
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    check_draws(num_samples, seed)
    function = objective_of(model, data, loss=loss, objective=objective)
    if function.rounded and function.coordinates.space != "quantized":
        raise ValueError("rounding_sharpness starts from the rounded weights: pass an objective in space='quantized'")
    unknown = [name for name, weight in function.rounded.items() if weight.step.isnan().any()]
    bits = list(bits if bits is not None else (0,) if function.rounded and not unknown else (8, 4, 3, 2))
    if unknown and 0 in bits:
        raise ValueError(f"bits=0: the step of {unknown[0]} is not known; pass bits of 2 to 16")
    if not bits or not all(2 <= b <= 16 or b == 0 and function.rounded for b in bits):
        raise ValueError(f"bits must be 2 to 16, or 0 for the steps of a network that is quantized, got {bits}")
    centre, steps = _matrices(function), [_steps(function, b) for b in bits]

    def displacements(draw: int) -> Iterable[Point]:
        # the error function makes a Gaussian uniform, between −1 and 1
        draws = gaussian(centre, seed * 1_000_003 + draw, function.coordinates.layouts)
        even = {name: function.coordinates.masked(name, torch.erf(z / 2**0.5)) for name, z in draws}
        return ({name: step / 2 * even[name] for name, step in row.items()} for row in steps)

    mean, stderr, samples, by_sample, weights = mean_increases(function, len(bits), num_samples, displacements)
    stderr_data = torch.stack([stderr_of_mean(row, weights) for row in by_sample])
    here = function.centre
    rounded = [_rounded(function, here, b, row) for b, row in zip(bits, steps, strict=True)]
    increases, errors = (torch.stack(parts).cpu() for parts in zip(*rounded, strict=True))
    about = function.about(measure=f"average of {num_samples} draws", seed=seed, seconds=elapsed())
    return RoundingSharpness(about, bits, mean, stderr, samples, stderr_data, increases, errors)


def rounding_gap(function: Objective, bits: int) -> tuple[float, float]:
    """Return the loss increase under rounding to so many bits, as `rounding_sharpness` rounds, and its error over data.

    Cost: a forward pass, and 50 candidates of the step for each tensor.
    """
    gap, stderr = _rounded(function, function.centre, bits, _steps(function, bits))
    return float(gap), float(stderr)


def _matrices(function: Objective) -> Point:
    return {name: w for name, w in function.coordinates.centre.items() if w.ndim > 1}


def _steps(function: Objective, bits: int) -> Point:
    """Return the steps of least squared error, at 0 bits those that the network itself has."""
    weights = _matrices(function)
    if not bits:
        return {name: function.rounded[name].step for name in weights if name in function.rounded}
    return {name: best_step(function.coordinates.whole(name, w), bits) for name, w in weights.items()}


def bits_label(bits: int) -> str:
    """Name the rounding of a row."""
    return f"to {bits} bits" if bits else "at its own steps"


def best_step(w: Tensor, bits: int) -> Tensor:
    """Return the step of least squared error for a tensor, among clips of 0.02 to 1 times its largest weight."""
    wide = w if w.dtype == torch.float64 else w.float()  # squares of float16 overflow
    largest = wide.abs().amax().clamp_min(torch.finfo(wide.dtype).tiny * 2**20)
    candidates = largest / (2 ** (bits - 1) - 1) * torch.arange(1, 51, device=w.device) / 50
    errors = torch.stack([(at_levels(wide, step, bits) - wide).square().sum() for step in candidates])
    return candidates[errors.argmin()].to(w).clamp_min(torch.finfo(w.dtype).tiny)


def at_levels(w: Tensor, step: Tensor, bits: int) -> Tensor:
    """Return a tensor rounded to the levels −(2^{b−1}−1)·step … (2^{b−1}−1)·step."""
    top = 2 ** (bits - 1) - 1
    return (w / step).round().clamp(-top, top) * step


def _rounded(function: Objective, here: Evaluation, bits: int, steps: Point) -> tuple[Tensor, Tensor]:
    """Return the loss increase that rounding the weights causes, and its standard error over the data."""
    if bits:
        centre = function.coordinates.centre
        there = function.evaluate({name: at_levels(centre[name], s, bits) - centre[name] for name, s in steps.items()})
        return there.loss - here.loss, there.stderr(here)
    before = {name: function.model.get_parameter(name).detach() for name in steps}
    there = function.evaluate({name: w - function.rounded[name].quantized for name, w in before.items()})
    return here.loss - there.loss, here.stderr(there)
