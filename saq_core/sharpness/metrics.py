"""The units in which a sharpness-aware step measures ε."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .targets import Target

Metric = Literal["plain", "adaptive", "normalised"]
ADAPTIVE_OFFSET = 0.01  # ASAM's eta


def scaled(gradients: list[Tensor], targets: list[Target], metric: Metric) -> tuple[list[Tensor], list[Tensor]]:
    """Return T·g and T²·g for the T of the metric."""
    once, twice = list(gradients), list(gradients)
    matrices = [k for k, t in enumerate(targets) if t.parameter.tensor.ndim > 1 and t.parameter.tensor.numel() > 1]
    if metric == "plain" or not matrices:
        return once, twice
    if metric == "normalised":
        scales = [targets[k].parameter.tensor.detach().std() for k in matrices]
    else:
        weights = [targets[k].weight() for k in matrices]
        scales = list(torch._foreach_add(torch._foreach_abs(weights), ADAPTIVE_OFFSET))
    products = torch._foreach_mul([gradients[k] for k in matrices], scales)
    for k, first, second in zip(matrices, products, torch._foreach_mul(products, scales), strict=True):
        once[k], twice[k] = first, second
    return once, twice
