"""Diagnostics of the perturbation of a sharpness-aware step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..contexts import device_of
from .targets import PerturbedParameter, Point, Weights, find_targets, gradients_at
from .vectors import TINY, common_grads, displaced, dot, norm


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
        the diminishment of Case 2; "cosine_case1_case3": between the ε of these cases.
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
        case1, case3 = _hypothetical(sam, "latent", "quantized"), _hypothetical(sam, "quantized", "quantized")
        result["cosine_case1_case3"] = _cosine(*common_grads(case1, case3))
    return result


def _hypothetical(sam: Any, measured_at: Weights, applied_to: Weights) -> Point:
    """Return the ε of another case from the gradients of this step."""
    targets = find_targets(sam.parameters, measured_at, applied_to)
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
    before = [_used(targets[name].parameter, targets[name].user).to(dtype) for name in matrices]
    with displaced([targets[name].tensor for name in matrices], list(matrices.values())):
        after = [_used(targets[name].parameter, targets[name].user).to(dtype) for name in matrices]
    received = [a.to(e.dtype) - b.to(e.dtype) for a, b, e in zip(after, before, matrices.values(), strict=True)]
    return _cosine(list(matrices.values()), received)


def _used(parameter: PerturbedParameter, user: int) -> Tensor:
    """Return the tensor that the forward pass computes with."""
    if not parameter.users:
        return parameter.tensor.detach().clone()
    return parameter.quantized(user) + parameter.deltas()[user]


def _levels(parameters: list[PerturbedParameter]) -> list[tuple[Tensor, Tensor]]:
    weights = (layer.quantized_weights()[name] for p in parameters for layer, name, _ in p.users)  # type: ignore[operator]
    return [(q, step) for q, _, step in weights]


def _cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return dot(a, b) / (norm(a) * norm(b)).clamp_min(TINY)
