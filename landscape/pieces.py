"""Long vectors a piece at a time: what is drawn, or added up, in float64 needs no second vector in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_PIECE = 2**18  # numbers


def drawn_into(vector: Tensor, sample: Callable[[int], Tensor]) -> Tensor:
    """Fill a vector with random numbers, ``sample(count)`` giving the next so many, and return it.

    PyTorch draws normal numbers by sixteens: draws of such sizes, one after the other, are those of one draw.
    """
    start = 0
    while (left := len(vector) - start) > 0:
        count = _PIECE if left >= _PIECE + 16 else left
        vector[start : start + count] = sample(count)
        start += count
    return vector


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two tensors, detached, in float64."""
    a, b = a.detach(), b.detach()
    if a.numel() <= _PIECE:
        return (a.double() * b.double()).sum()
    pieces = zip(a.reshape(-1).split(_PIECE), b.reshape(-1).split(_PIECE), strict=True)
    return torch.stack([(part.double() * other.double()).sum() for part, other in pieces]).sum()
