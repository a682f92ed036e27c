"""What a sharpness-aware step tells about its own perturbation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..modes import device_of
from .step_policies import Stepper
from .targets import TINY, Point, Site, Weights, added, dot, gradients_at, in_both, norm, places


@torch.no_grad()
def diagnose(sam: Stepper, epsilon: Point, dtype: torch.dtype) -> dict[str, Tensor]:
    """Describe ε while the gradients that it came from stand; NaN where there is no such thing.

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
    found = dict.fromkeys(names, nan)
    if epsilon:
        weights = [site.parameter.detach() for site in sam.sites if site.parameter.grad is not None]
        found["epsilon_norm"] = norm(list(epsilon.values()))
        found["relative_norm"] = found["epsilon_norm"] / norm(weights)
        found["received_cosine"] = _received(sam, epsilon, dtype)
    if any(site.users for site in sam.sites):
        found["flip_rate"] = _flip_rate(sam)
        found["cosine_case1_case3"] = _cosine(
            *in_both(*(_hypothetical(sam, at, "quantized") for at in ("latent", "quantized")))
        )
    return found


def _hypothetical(sam: Stepper, measured_at: Weights, applied_to: Weights) -> Point:
    """Return the ε of another case from the gradients of this step."""
    at = places(sam.sites, measured_at, applied_to)
    return sam.epsilon(gradients_at(at), at)


def _flip_rate(sam: Stepper) -> Tensor:
    at = places(sam.sites, "latent", "latent")
    epsilon = sam.epsilon(gradients_at(at), at)
    before = _levels(sam.sites)
    with added([at[name].target for name in epsilon], list(epsilon.values())):
        after = _levels(sam.sites)
    # Half a step: a normalising quantizer moves all its levels a little with the mean and spread of the weights.
    flips = [(a - b).abs() > step / 2 for (b, step), (a, _) in zip(before, after, strict=True)]
    real = [(step > 0).expand_as(b) for b, step in before]
    flipped = torch.stack([(f & r).sum() for f, r in zip(flips, real, strict=True)]).sum()
    return flipped / torch.stack([r.sum() for r in real]).sum()


def _received(sam: Stepper, epsilon: Point, dtype: torch.dtype) -> Tensor:
    at = places(sam.sites, sam.measured_at, sam.applied_to)
    kept = {name: e for name, e in epsilon.items() if at[name].target.ndim >= 2}
    if not kept:
        return torch.full((), math.nan, device=device_of(sam.model))
    before = [_used(at[name].site, at[name].user).to(dtype) for name in kept]
    with added([at[name].target for name in kept], list(kept.values())):
        after = [_used(at[name].site, at[name].user).to(dtype) for name in kept]
    received = [a.to(e.dtype) - b.to(e.dtype) for a, b, e in zip(after, before, kept.values(), strict=True)]
    return _cosine(list(kept.values()), received)


def _used(site: Site, user: int) -> Tensor:
    """Return the tensor that the forward pass computes with."""
    if not site.users:
        return site.parameter.detach().clone()
    return site.quantized()[user] + site.deltas()[user]


def _levels(sites: list[Site]) -> list[tuple[Tensor, Tensor]]:
    found = (layer.quantized_weights()[name] for site in sites for layer, name, _ in site.users)  # type: ignore[operator]
    return [(q, step) for q, _, step in found]


def _cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return dot(a, b) / (norm(a) * norm(b)).clamp_min(TINY)
