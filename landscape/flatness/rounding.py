"""How much the loss rises when the weights are rounded, and under noise as large as rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..model import BatchObjective, Evaluation, Loss, Objective, Point, gaussian, quantized_layers, stderr_of_mean
from ..progress import stopwatch
from ..results import Result, with_errors
from .balls import check_draws, mean_rises


@dataclass(frozen=True, eq=False)
class RoundingSharpness(Result):
    """The rise of the loss under noise as large as rounding, and under rounding itself.

    Attributes:
        bits: the number of bits of each row; 0 for the steps that the network itself has.
        rise: (rows,) mean rise under independent uniform noise of ± half a step on every weight.
        stderr: (rows,) its standard error over the draws.
        samples: (rows, draws) the single rises.
        stderr_data: (rows,) its standard error over the data, the noise held fixed.
        rounded: (rows,) the rise when the weights are rounded at those steps.
        rounded_stderr_data: (rows,) its standard error over the data.
    """

    bits: list[int]
    rise: Tensor
    stderr: Tensor
    samples: Tensor
    stderr_data: Tensor
    rounded: Tensor
    rounded_stderr_data: Tensor
    columns: ClassVar[tuple[str, ...]] = ("bits", "rise", "stderr", "stderr_data", "rounded", "rounded_stderr_data")
    picture: ClassVar[str] = "radii.rounding"

    def _cells(self) -> dict[str, list[str]]:
        noise = with_errors(self.rise, self.stderr, self.stderr_data)
        rounded = with_errors(self.rounded, self.rounded_stderr_data)
        labels = list(map(bits_label, self.bits))
        return {"": labels, "increase of the loss, noise": noise, "rounded": rounded}

    def __repr__(self) -> str:
        rows = zip(self.bits, self.rise.tolist(), self.stderr.tolist(), self.rounded.tolist(), strict=True)
        parts = [f"{rise:.3g} ± {error:.1g} (rounded {own:.3g}) {bits_label(b)}" for b, rise, error, own in rows]
        return f"RoundingSharpness({', '.join(parts)})"


def rounding_sharpness(
    model: nn.Module,
    data: Any = None,
    *,
    bits: Sequence[int] | None = None,
    draws: int = 20,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> RoundingSharpness:
    """Measure the rise of the loss under uniform noise of ± half a rounding step per weight, and under rounding.

    To second order the noise raises the loss by Σ H_ii·s_i²/24 for steps s. It stands for rounding where the errors of
    the weights are independent of each other and of the gradient; rounding itself stands beside it to show how far.

    Every weight of two or more dimensions moves, each tensor with one step: levels −(2^{b−1}−1)·s … (2^{b−1}−1)·s, s of
    least squared error. Its clipping is in the rounding, not in the noise. At ``bits=0`` the layers that are quantized
    move, by their own steps, and "rounded" is the loss of the network minus that at its weights before rounding.

    Args:
        model: any network; not touched. A quantized one is taken at its rounded weights.
        data: ``(x, y)`` or batches; default ``model.probe``.
        bits: 2 to 16, or 0 for the network's own steps; default (0,) where it is quantized, else (8, 4, 3, 2).
        draws: of the noise, the same at every number of bits.
        seed: of the draws.
        loss, objective: see `Objective`.

    Raises:
        ValueError: bits outside of that, 0 where nothing is quantized, draws < 2, bad data.

    Cost: bits·(draws + 1) forward passes.   Source: uniform noise model of rounding, Widrow and Kollár 2008.
    """
    elapsed = stopwatch()
    check_draws(draws)
    own = _own_steps(model)
    bits = list(bits if bits is not None else (0,) if own else (8, 4, 3, 2))
    if not bits or not all(2 <= b <= 16 or b == 0 and own for b in bits):
        raise ValueError(f"bits must be 2 to 16, or 0 for the steps of a network that is quantized, got {bits}")
    function = Objective(model, data, loss=loss, objective=objective)
    function.centre()
    centre = {name: w for name, w in function.coordinates.centre.items() if w.ndim > 1}
    steps = [{n: own[n] for n in centre if n in own} if b == 0 else _best_steps(centre, b) for b in bits]

    def displacements(draw: int) -> Iterable[Point]:
        # the error function makes a Gaussian uniform, between −1 and 1
        even = {name: torch.erf(z / 2**0.5) for name, z in gaussian(centre, seed * 1_000_003 + draw)}
        return ({name: step / 2 * even[name] for name, step in row.items()} for row in steps)

    rise, stderr, samples, moved, weights = mean_rises(function, len(bits), draws, displacements)
    stderr_data = torch.stack([stderr_of_mean(row, weights) for row in moved])
    here = function.evaluate()
    rounded = [_rounded(function, here, b, row) for b, row in zip(bits, steps, strict=True)]
    rises, errors = (torch.stack(parts).cpu() for parts in zip(*rounded, strict=True))
    about = function.about(measure=f"average of {draws} draws", seed=seed, seconds=elapsed())
    return RoundingSharpness(about, bits, rise, stderr, samples, stderr_data, rises, errors)


def bits_label(bits: int) -> str:
    """Say to how many bits a row rounds."""
    return f"to {bits} bits" if bits else "at its own steps"


def _own_steps(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{leaf}".removeprefix("."): step
        for name, layer in quantized_layers(model).items()
        for leaf, (_, _, step) in layer.quantized_weights().items()
    }


def _best_steps(weights: Point, bits: int) -> Point:
    """Return for each tensor the step of least squared error, among clips of 0.02 to 1 times its largest weight."""
    top = 2 ** (bits - 1) - 1
    steps = {}
    for name, w in weights.items():
        largest = w.abs().amax().clamp_min(torch.finfo(w.dtype).tiny * 2**20)
        candidates = largest / top * torch.arange(1, 51, device=w.device) / 50
        errors = torch.stack([(_at_levels(w, step, bits) - w).square().sum() for step in candidates])
        steps[name] = candidates[errors.argmin()].to(w)
    return steps


def _at_levels(w: Tensor, step: Tensor, bits: int) -> Tensor:
    top = 2 ** (bits - 1) - 1
    return (w / step).round().clamp(-top, top) * step


def _rounded(function: Objective, here: Evaluation, bits: int, steps: Point) -> tuple[Tensor, Tensor]:
    """Return the rise that rounding the weights makes, and its standard error over the data."""
    centre = function.coordinates.centre
    if bits:
        there = function.evaluate({name: _at_levels(centre[name], s, bits) - centre[name] for name, s in steps.items()})
        return there.loss - here.loss, there.stderr(here)
    units = {getattr(module, "weight_units", "plain") for module in function.model.modules()}
    if units != {"plain"}:  # weights in other units before rounding than after: the step between them means nothing
        return torch.full_like(here.loss, math.nan), torch.full_like(here.loss, math.nan)
    before = {name: function.model.get_parameter(name).detach() for name in steps}
    delta = {name: function.coordinates.base[name] for name in steps}
    there = function.evaluate({name: w + delta[name] - centre[name] for name, w in before.items()})
    return here.loss - there.loss, here.stderr(there)
