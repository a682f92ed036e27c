"""Lists of tensors as vectors: norms and products, displacing them and putting them back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


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
    """Return the Euclidean norm of all tensors together, float64: squares of small gradients leave float32."""
    dtype = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, 2, dtype)))


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the inner product of all tensors together."""
    return torch.cat([product.flatten() for product in torch._foreach_mul(a, b)]).sum()


def cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the cosine between a and b; 0 where one of them is 0."""
    length = norm(a)
    return torch.where(length > 0, projection(a, b) * norm(b) / length, 0.0)


def projection(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the coefficient of the projection of a onto b, ⟨a, b⟩/‖b‖²; 0 where b is 0."""
    length = norm(b)
    scale = torch.where(length > 0, 1 / length, 0.0)  # of both alike: b lies along itself to the bit
    a, b = (list(torch._foreach_mul(part, scale)) for part in (a, b))
    return torch.where(length > 0, dot(a, b) / dot(b, b), 0.0)


def common_grads(a: dict[Any, Tensor], b: dict[Any, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the names that both have: a pass may leave a parameter without one."""
    names = [name for name in a if name in b]
    return [a[name] for name in names], [b[name] for name in names]
