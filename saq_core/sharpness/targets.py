"""Where perturbations go: the trainable tensors, and the quantized layers that use them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

TINY = 1e-30  # keeps a zero gradient from dividing by zero; far below any norm in float32
Kind = Literal["weight", "bias", "norm", "weight_step", "input_step"]
Weights = Literal["latent", "quantized"]
Metric = Literal["plain", "adaptive", "normalised"]
Combination = Literal["perturbed", "mean", "gsam"]
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Point = dict[str, Tensor]


@dataclass
class Site:
    """A trainable tensor, and the quantized layers (with its name there) that use it."""

    name: str
    parameter: nn.Parameter
    users: list[tuple[nn.Module, str, str]]  # layer, weight's name, name of its delta

    def deltas(self) -> list[Tensor]:
        """Return the buffers that are added to its quantized values."""
        return [layer.get_buffer(delta) for layer, _, delta in self.users]

    def quantized(self) -> list[Tensor]:
        """Return its quantized values, one for each user."""
        return [cast(Any, layer).quantized_weights()[name][0] for layer, name, _ in self.users]


@dataclass
class Place:
    """Where the gradient of one tensor is read, and what gets its ε."""

    source: Tensor
    target: Tensor
    site: Site
    user: int


def find_sites(model: nn.Module, kinds: Sequence[Kind]) -> list[Site]:
    """Find the trainable parameters of these kinds ("weight", "bias", "norm", "weight_step", "input_step")."""
    users: dict[int, list[tuple[nn.Module, str, str]]] = {}
    kind_of: dict[int, str] = {}
    for layer in model.modules():
        own = list(layer.parameters(recurse=False))
        if getattr(layer, "is_quantizer", False):
            kind = "input_step" if getattr(layer, "activation", False) else "weight_step"
            kind_of.update({id(p): kind for p in own})
        elif isinstance(layer, NORMS):
            kind_of.update({id(p): "norm" for p in own})
        if hasattr(layer, "quantized_weights"):
            for name, (_, delta, _) in cast(Any, layer).quantized_weights().items():
                place = next(key for key, buffer in layer.named_buffers() if buffer is delta)
                users.setdefault(id(layer.get_parameter(name)), []).append((layer, name, place))
    sites = []
    for name, p in model.named_parameters():
        kind = kind_of.get(id(p), "bias" if name.endswith("bias") else "weight")
        if p.requires_grad and p.is_floating_point() and kind in kinds:
            sites.append(Site(name, p, users.get(id(p), [])))
    return sites


def places(sites: list[Site], measured_at: Weights, applied_to: Weights) -> dict[str, Place]:
    """Return name -> place; a weight that several quantized layers share has one for each."""
    found = {}
    for site in sites:
        deltas = site.deltas()
        spread = applied_to == "quantized" and bool(deltas)
        targets: list[Tensor] = deltas if spread else [site.parameter]
        sources = deltas if measured_at == "quantized" and spread else [site.parameter] * len(targets)
        for k, (source, target) in enumerate(zip(sources, targets, strict=True)):
            found[f"{site.name}#{k}" if k else site.name] = Place(source, target, site, k)
    return found


def gradients_at(places: dict[str, Place]) -> Point:
    """Return the gradient of every place that has one."""
    found = ((name, place.source.grad) for name, place in places.items() if place.site.parameter.requires_grad)
    return {name: grad.detach() for name, grad in found if grad is not None}


@contextmanager
def kept(tensors: list[Tensor]) -> Iterator[None]:
    """Copy the tensors back at the end, whatever happens: subtracting what was added would drift."""
    with torch.no_grad():
        saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)


@contextmanager
def added(tensors: list[Tensor], by: list[Tensor]) -> Iterator[None]:
    """Add to the tensors for a while."""
    with kept(tensors):
        with torch.no_grad():
            for tensor, e in zip(tensors, by, strict=True):
                tensor.add_(e)
        yield


def norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the inner product of all tensors together."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def projection(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return how many times b is contained in a."""
    return dot(a, b) / norm(b).square().clamp_min(TINY)


def in_both(a: dict[Any, Tensor], b: dict[Any, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of the names that both have: a pass may leave a parameter without a gradient."""
    names = [name for name in a if name in b]
    return [a[name] for name in names], [b[name] for name in names]
