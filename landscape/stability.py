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


def stability_threshold(optimizer: Any, function: Objective | None = None) -> dict[str, float]:
    """Return the largest learning rate of an optimizer's groups, and the λ₁ beyond which steps at it grow.

    On a quadratic, where λ₁ is the Hessian's for SGD, and that of P^(−½)HP^(−½) for Adam (see `preconditioner`). NaN
    for optimizers without a formula here, for steps that maximise, and for Adam before its first step.

    Args:
        optimizer: any, or None.
        function: groups without a weight that varies in it do not count.

    Source: Cohen et al. 2021, appendix B (momentum, Nesterov); 2022, section 2 (Adam).

    Example:
        >>> import torch
        >>> weights = [torch.nn.Parameter(torch.zeros(2))]
        >>> stability_threshold(torch.optim.SGD(weights, lr=0.5, momentum=0.5))
        {'learning_rate': 0.5, 'threshold': 6.0}
    """
    groups = [] if optimizer is None else [group for group in optimizer.param_groups if group.get("lr") is not None]
    if function is not None:
        varying = {id(weight) for weight in _varying(function).values()}
        groups = [group for group in groups if not varying.isdisjoint(map(id, group["params"]))]
    if not groups:
        return {"learning_rate": math.nan, "threshold": math.nan}
    group = max(groups, key=lambda one: float(one["lr"]))
    lr, factor = float(group["lr"]), math.nan
    if group.get("maximize"):
        return {"learning_rate": lr, "threshold": math.nan}
    if "betas" in group:
        beta = float(group["betas"][0])
        factor = (2 + 2 * beta) / (1 - beta) if keeps_second_moments(optimizer) else math.nan
    elif group.keys() >= _SGD:
        beta = float(group["momentum"])
        dampened = 1 - float(group["dampening"]) if beta else 1.0
        factor = (2 + 2 * beta) / (1 + 2 * beta if group["nesterov"] else dampened)
    return {"learning_rate": lr, "threshold": factor / lr if lr else math.inf}


def preconditioner(optimizer: Any, function: Objective) -> Point | None:
    """Return P^(−½) of an optimizer's steps w ← w − lr·P⁻¹·m, zero for weights that it does not move.

    Of Adam's, P = (1 − β₁ᵗ)·(√(v/(1 − β₂ᵗ)) + ε), m the mean gradient; of others that move a part of the weights, one
    on that part. None where all move alike, where second moments are kept in a form that is not Adam's, and in float16,
    whose range P^(−½) leaves.
    """
    if optimizer is None or function.dtype == torch.float16:
        return None
    states = {id(p): (optimizer.state.get(p, {}), group) for group in optimizer.param_groups for p in group["params"]}
    weights, centre = _varying(function), function.coordinates.centre
    if not keeps_second_moments(optimizer):
        kept = {name: id(weight) in states for name, weight in weights.items()}
        parts = {name: torch.full_like(centre[name], float(moves)) for name, moves in kept.items()}
        return None if all(kept.values()) else parts
    roots = {}
    for name, weight in weights.items():
        state, group = states.get(id(weight), ({}, {}))
        if "exp_avg_sq" not in state:
            roots[name] = torch.zeros_like(centre[name])
            continue
        moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        moment = moment.dequantize() if type(moment).dequantize is not torch.Tensor.dequantize else moment
        if "betas" not in group or moment.shape != weight.shape:
            return None
        (first, second), step = group["betas"], float(state["step"])
        root = ((moment if moment.dtype.itemsize > 2 else moment.float()) / (1 - second**step)).sqrt()
        divisor = (1 - first**step) * (root + group.get("eps", 0.0))
        roots[name] = function.coordinates.cut(name, divisor.rsqrt().to(centre[name].dtype))
    return roots if torch.stack([part.isfinite().all() for part in roots.values()]).all() else None


def _varying(function: Objective) -> dict[str, torch.Tensor]:
    """Return the model's own tensors of what varies."""
    weights = dict(function.model.named_parameters())
    return {name: weights[name] for name in function.coordinates.names if name in weights}


def critical_sharpness(
    function: Objective, gradient: Point, direction: Point, first: float = math.nan
) -> tuple[float, int]:
    """Return 2/η_c, η_c > 0 a step at which f(w − η·direction) rises above f(w), and the forward passes that it took.

    (f(w − ηd) − f(w))/η is −gᵀd at 0, known, and linear in η where f is quadratic: its root is found by secants within
    a bracket, and seen from both sides, at steps that differ by 1 %; half of it must still descend, or the search goes
    on below. On a quadratic 2/η_c is dᵀHd/gᵀd, after four passes. NaN where 10 passes do not find it, or where the loss
    has too few digits. Of several steps at which a loss rises above f(w), it need not be the least.

    Args:
        function: what is measured.
        gradient: at its centre.
        direction: with a positive inner product with the gradient.
        first: the sharpness to begin with, of a measurement before; default f/gᵀd as a step.
    """
    slope, here = float(function.coordinates.inner(direction, gradient)), float(function.centre.loss)
    if not 0 < slope < math.inf:
        return math.nan, 0
    low, high, found = (0.0, -slope), (math.inf, math.nan), math.nan
    step = 2 / first if 0 < first < math.inf else (abs(here) or 1.0) / slope
    for passes in range(1, _PASSES + 1):
        there = float(function.evaluate({name: -step * part for name, part in direction.items()}).loss)
        value = (there - here) / step
        if not math.isnan(found):  # half of what was found
            if value < 0:
                return 2 / found, passes
            low, high, found = (0.0, -slope), (step, value), math.nan
        elif value < 0:
            low, high = (step, value), (high[0], high[1] / 2)  # Illinois: else one end of the bracket would stay
        else:  # NaN is an increase
            low, high = (low[0], low[1] / (2 if high[0] < math.inf else 1)), (step, value)
        secant = low[0] - low[1] * (high[0] - low[0]) / (high[1] - low[1])
        secant = min(max(secant, low[0]), high[0]) if math.isfinite(high[1]) else (low[0] + high[0]) / 2
        if high[0] <= (1 + 2 * _LOOSE) * low[0]:
            noise = torch.finfo(function.dtype).eps * max(abs(here), abs(there)) / step
            if noise >= _LOOSE * slope:
                return math.nan, passes
            found, step = secant, secant / 2
        elif math.isinf(high[0]):  # from the value at 0; farther where that has not sufficed
            secant, least = step * slope / (slope + value), 1.5 if passes > 2 else 1 + _LOOSE
            step = min(max(secant, least * step), 10 * step)
        else:
            step = min(max(secant, (1 + _LOOSE) * low[0]), (1 - _LOOSE) * high[0])
    return math.nan, _PASSES


def keeps_second_moments(optimizer: Any) -> bool:
    """Return whether an optimizer divides its steps as Adam does, once it has made one."""
    base = getattr(optimizer, "optimizer", optimizer)
    is_like = not any(kind.__name__ in _UNLIKE for kind in type(base).__mro__)
    return is_like and any("exp_avg_sq" in state for state in optimizer.state.values())
