"""Lists of tensors as vectors: norms and products, displacing them and putting them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

TINY = 1e-30  # keeps a zero gradient from dividing by zero; far below any norm in float32


@torch.no_grad()
def copied(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies of tensors, of one kind each: kernels over lists take what has one device and dtype."""
    copies = [torch.empty_like(tensor) for tensor in tensors]
    if tensors:
        torch._foreach_copy_(copies, tensors)
    return copies


@contextmanager
def restored(tensors: list[Tensor]) -> Iterator[None]:
    """Copy the tensors back at the end, whatever happens: subtracting what was added would drift."""
    alike: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    saved = [copied(group) for group in alike.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for group, values in zip(alike.values(), saved, strict=True):
                torch._foreach_copy_(group, values)


@contextmanager
def displaced(tensors: list[Tensor], by: list[Tensor]) -> Iterator[None]:
    """Add to the tensors, and restore them at the end."""
    with restored(tensors):
        if tensors:
            with torch.no_grad():
                torch._foreach_add_(tensors, by)
        yield


def norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the inner product of all tensors together."""
    return torch.cat([product.flatten() for product in torch._foreach_mul(a, b)]).sum()


def cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the cosine between a and b; 0 where one of them is 0."""
    return dot(a, b) / (norm(a) * norm(b)).clamp_min(TINY)


def projection(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the coefficient of the projection of a onto b, ⟨a, b⟩/‖b‖²."""
    return dot(a, b) / norm(b).square().clamp_min(TINY)


def common_grads(a: dict[Any, Tensor], b: dict[Any, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the names that both have: a pass may leave a parameter without one."""
    names = [name for name in a if name in b]
    return [a[name] for name in names], [b[name] for name in names]
