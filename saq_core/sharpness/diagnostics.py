"""Diagnostics of a sharpness-aware step, and the freezing of quantizers' steps by one of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import processes
from ..contexts import device_of
from .targets import PerturbedParameter, Point, Target, Weights, find_targets, gradients_at
from .vectors import common_grads, copied, cosine, displaced, norm

WINDOW = 50  # steps over which disorder is averaged


@torch.no_grad()
def diagnose(sam: Any, epsilon: Point, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return diagnostics of ε while the gradients that it came from stand; NaN where one is not defined.

    Args:
        sam: In the middle of a step.
        epsilon: By the names of the weights.
        dtype: Of the forward passes.

    Returns:
        "epsilon_norm": ‖ε‖; "relative_norm": ‖ε‖/‖w‖; "received_cosine": between ε and what rounding and the dtype let
        through, over tensors of two or more dimensions; "flip_rate": share of weights whose level changes at Q(w + ε),
        the diminishment of Case 2; "cosine_case1_case3": between the ε of these cases. The second pass adds those of
        `StepFreezing`.
    """
    nan = torch.full((), math.nan, device=device_of(sam.model))
    names = ("epsilon_norm", "relative_norm", "received_cosine", "flip_rate", "cosine_case1_case3")
    result = dict.fromkeys(names, nan)
    if epsilon:
        weights = [p.tensor.detach() for p in sam.parameters if p.tensor.grad is not None]
        result["epsilon_norm"] = norm(list(epsilon.values()))
        result["relative_norm"] = result["epsilon_norm"] / norm(weights)
        result["received_cosine"] = _received(sam, epsilon, dtype)
    if any(parameter.users for parameter in sam.parameters):
        result["flip_rate"] = _flip_rate(sam)
        case1, case3 = _hypothetical(sam, "latent"), _hypothetical(sam, "quantized")
        result["cosine_case1_case3"] = cosine(*common_grads(case1, case3))
    return result


def _hypothetical(sam: Any, measured_at: Weights) -> Point:
    """Return the ε of another case, added to the quantized weights, from the gradients of this step."""
    targets = find_targets(sam.parameters, measured_at, "quantized")
    return sam.epsilon(gradients_at(targets), targets)


def _flip_rate(sam: Any) -> Tensor:
    targets = find_targets(sam.parameters, "latent", "latent")
    epsilon = sam.epsilon(gradients_at(targets), targets)
    before = _levels(sam.parameters)
    with displaced([targets[name].tensor for name in epsilon], list(epsilon.values())):
        after = _levels(sam.parameters)
    # Half a step: a normalising quantizer moves all its levels a little with the mean and spread of the weights.
    flips = [(a - b).abs() > step / 2 for (b, step), (a, _) in zip(before, after, strict=True)]
    real = [(step > 0).expand_as(b) for b, step in before]
    flipped = torch.stack([(f & r).sum() for f, r in zip(flips, real, strict=True)]).sum()
    return flipped / torch.stack([r.sum() for r in real]).sum()


def _received(sam: Any, epsilon: Point, dtype: torch.dtype) -> Tensor:
    targets = find_targets(sam.parameters, sam.measured_at, sam.applied_to)
    matrices = {name: e for name, e in epsilon.items() if targets[name].tensor.ndim >= 2}
    if not matrices:
        return torch.full((), math.nan, device=device_of(sam.model))
    before = [_used(targets[name]).to(dtype) for name in matrices]
    with displaced([targets[name].tensor for name in matrices], list(matrices.values())):
        after = [_used(targets[name]).to(dtype) for name in matrices]
    received = [a.to(e.dtype) - b.to(e.dtype) for a, b, e in zip(after, before, matrices.values(), strict=True)]
    return cosine(list(matrices.values()), received)


def _used(target: Target) -> Tensor:
    """Return the tensor that the forward pass computes with."""
    parameter, user = target.parameter, target.user
    return parameter.quantized(user) + parameter.deltas()[user] if parameter.users else parameter.tensor.clone()


def _levels(parameters: list[PerturbedParameter]) -> list[tuple[Tensor, Tensor]]:
    weights = (layer.quantized_weights()[name] for p in parameters for layer, name, _ in p.users)  # type: ignore[operator]
    return [(q, step) for q, _, step in weights]


class StepFreezing:
    """Compare the gradients of quantizers' steps at w (of the task) and at w + ε, and zero those with much disorder.

    Args:
        steps: Steps, clips and offsets that are trained.
        share: See `SAQ`, freeze_steps; None only compares.
    """

    def __init__(self, steps: list[Tensor], share: float | None) -> None:
        self.steps, self.share = steps, share
        self.disorder: Tensor | None = None

    def gradients(self) -> list[Tensor]:
        """Return copies of the gradients of all steps, their means over the processes."""
        gradients = copied([torch.zeros_like(p) if p.grad is None else p.grad for p in self.steps])
        processes.average_(gradients)
        return gradients

    @torch.no_grad()
    def compare(self, task: list[Tensor]) -> Point:
        """Take in the gradients of the task, while those at w + ε stand; return what is said of them.

        "step_cosine": between both, over all steps together; "steps_opposed": the share of steps, each for itself, in
        which the two point against each other.
        """
        perturbed = self.gradients()
        products = torch.stack([product.sum() for product in torch._foreach_mul(task, perturbed)])
        opposed = (products < 0).to(products.dtype)
        self.disorder = (0 * opposed if self.disorder is None else self.disorder).lerp(opposed, 1 / WINDOW)
        return {"step_cosine": cosine(task, perturbed), "steps_opposed": opposed.mean()}

    def freeze(self) -> None:
        """Zero the gradients of the steps with more disorder than `share`, without waiting for the device."""
        if self.share is not None and self.disorder is not None:
            for p, moves in zip(self.steps, self.disorder <= self.share, strict=True):
                p.grad = None if p.grad is None else p.grad.mul_(moves)
