"""Up to which curvature an optimizer's steps are stable, and the curvature that its step meets."""

from __future__ import annotations

import math
from typing import Any

import torch

from .model import Objective, Point

_PASSES = 10
_LOOSE = 0.01  # of the critical step
_SGD = {"momentum", "dampening", "nesterov"}
_UNLIKE = ("NAdam", "RAdam")  # they keep what Adam keeps, and step otherwise


def stability_threshold(optimizer: Any) -> dict[str, float]:
    """Return the largest learning rate of an optimizer's groups, and the λ₁ beyond which steps at it grow.

    On a quadratic, where λ₁ is the Hessian's for SGD, and that of P^(−½)HP^(−½) for Adam (see `preconditioner`). NaN
    for optimizers without a formula here, and for Adam before its first step.

    Source: Cohen et al. 2021, appendix B (momentum, Nesterov); 2022, section 2 (Adam).

    Example:
        >>> import torch
        >>> weights = [torch.nn.Parameter(torch.zeros(2))]
        >>> stability_threshold(torch.optim.SGD(weights, lr=0.5, momentum=0.5))
        {'learning_rate': 0.5, 'threshold': 6.0}
    """
    if optimizer is None:
        return {"learning_rate": math.nan, "threshold": math.nan}
    group = max(optimizer.param_groups, key=lambda one: float(one["lr"]))
    lr, factor = float(group["lr"]), math.nan
    if "betas" in group:
        beta = float(group["betas"][0])
        factor = (2 + 2 * beta) / (1 - beta) if _second_moments(optimizer) else math.nan
    elif group.keys() >= _SGD:
        beta = float(group["momentum"])
        dampened = 1 - float(group["dampening"]) if beta else 1.0
        factor = (2 + 2 * beta) / (1 + 2 * beta if group["nesterov"] else dampened)
    return {"learning_rate": lr, "threshold": factor / lr if lr else math.inf}


def preconditioner(optimizer: Any, function: Objective) -> Point | None:
    """Return P^(−½) of Adam's steps w ← w − lr·P⁻¹·m, P = (1 − β₁ᵗ)·(√(v/(1 − β₂ᵗ)) + ε), m the mean gradient.

    Zero for weights that the optimizer does not move; None for optimizers that keep no second moments v.
    """
    if optimizer is None or not _second_moments(optimizer):
        return None
    states = {id(p): (optimizer.state.get(p, {}), group) for group in optimizer.param_groups for p in group["params"]}
    weights, roots = dict(function.model.named_parameters()), {}
    for name, centre in function.coordinates.centre.items():
        state, group = states.get(id(weights[name]), ({}, {}))
        if "exp_avg_sq" not in state:
            roots[name] = torch.zeros_like(centre)
            continue
        (first, second), step = group["betas"], float(state["step"])
        moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        divisor = (1 - first**step) * ((moment / (1 - second**step)).sqrt() + group.get("eps", 0.0))
        roots[name] = function.coordinates.cut(name, divisor.rsqrt().to(centre.dtype))
    return roots


def critical_sharpness(
    function: Objective, gradient: Point, direction: Point, first: float = math.nan
) -> tuple[float, int]:
    """Return 2/η_c, η_c > 0 the smallest step with f(w − η·direction) ≥ f(w), and the forward passes that it took.

    (f(w − ηd) − f(w))/η is −gᵀd at 0, known, and linear in η where f is quadratic: its root is found by secants within
    a bracket, then, to 1 %, after two passes. On a quadratic 2/η_c is dᵀHd/gᵀd. NaN where 10 passes do not find it,
    or where the loss has too few digits.

    Args:
        function: what is measured.
        gradient: at its centre.
        direction: with a positive inner product with the gradient.
        first: the sharpness to begin with, of a measurement before; default f/gᵀd as a step.
    """
    slope, here = float(function.coordinates.inner(direction, gradient)), float(function.centre.loss)
    if not 0 < slope < math.inf:
        return math.nan, 0
    low, high = (0.0, -slope), (math.inf, math.nan)
    step = 2 / first if first > 0 else (abs(here) or 1.0) / slope
    for passes in range(1, _PASSES + 1):
        there = float(function.evaluate({name: -step * part for name, part in direction.items()}).loss)
        value = (there - here) / step
        if abs(value) <= _LOOSE * slope:
            noise = torch.finfo(function.dtype).eps * max(abs(here), abs(there)) / step
            return (2 / step if noise < _LOOSE * slope else math.nan), passes
        if value < 0:
            low, high = (step, value), (high[0], high[1] / 2)  # Illinois: else one end of the bracket would stay
        else:  # NaN is an increase
            low, high = (low[0], low[1] / (2 if high[0] < math.inf else 1)), (step, value)
        secant = low[0] - low[1] * (high[0] - low[0]) / (high[1] - low[1])
        if math.isinf(high[0]):  # from the value at 0
            secant = step * slope / (slope + value)
            step = min(max(secant, 1.5 * step), 10 * step)
        else:
            step = secant if low[0] < secant < high[0] else (low[0] + high[0]) / 2
    return math.nan, _PASSES


def _second_moments(optimizer: Any) -> bool:
    base = getattr(optimizer, "optimizer", optimizer)
    return type(base).__name__ not in _UNLIKE and any("exp_avg_sq" in state for state in optimizer.state.values())
