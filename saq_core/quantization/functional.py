"""Rounding, clipping and gradient scaling with straight-through gradients.

Everything here is differentiable twice, works under ``torch.func`` and fuses under ``torch.compile``: rounding is
written as ``x + (round(x) - x).detach()`` and not as a custom autograd function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from landscape.checking import numbers

SMALLEST_STEP = 1e-8  # a step or clip below this is read as this, so that it never reaches 0 or flips sign


def smallest_step(like: Tensor) -> float:
    """Return `SMALLEST_STEP`, or the smallest number that float16 has."""
    return max(SMALLEST_STEP, torch.finfo(like.dtype).tiny)


def round_ste(x: Tensor) -> Tensor:
    """Round half to even, with gradient 1 (straight-through estimator).

    ``x + (round(x) - x)`` with the bracket held constant, in place: each new tensor costs time in eager PyTorch.
    """
    constant = x.detach()
    return constant.round().sub_(constant).add_(x)


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp, with gradient 1 strictly inside and 0 at the bounds and beyond.

    The same as `torch.clamp` in one pass backward instead of five, and with the same gradient at the bounds everywhere.
    """
    return nn.functional.hardtanh(x, low, high)


def scale_gradient(s: Tensor, factor: float) -> Tensor:
    """Return s unchanged, to the bit, with its gradient multiplied by `factor`.

    A backward hook would be wrong when gradients accumulate over several uses; this is part of the graph.
    """
    constant = s.detach()
    return constant.add(s - constant, alpha=factor)


def check_bits(bits: int, name: str = "bits") -> int:
    """Return `bits` if it is a whole number from 1 to 32."""
    named: dict[str, Any] = {name: bits}
    numbers(whole=True, at_least=1, at_most=32, note="32 = leave as it is", **named)
    return int(bits)
