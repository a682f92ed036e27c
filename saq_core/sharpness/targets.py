"""What a sharpness-aware step perturbs: trainable tensors, and the quantized layers that use them."""

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
class PerturbedParameter:
    """A trainable tensor, and the quantized layers (with its name there) that use it."""

    name: str
    tensor: nn.Parameter
    users: list[tuple[nn.Module, str, str]]  # layer, weight's name, name of its delta

    def deltas(self) -> list[Tensor]:
        """Return the buffers that are added to its quantized values."""
        return [layer.get_buffer(delta) for layer, _, delta in self.users]

    def quantized(self) -> list[Tensor]:
        """Return its quantized values, one for each user."""
        return [cast(Any, layer).quantized_weights()[name][0] for layer, name, _ in self.users]


@dataclass
class Target:
    """A tensor that gets its ε, and the one whose gradient determines it."""

    tensor: Tensor
    source: Tensor
    parameter: PerturbedParameter
    user: int


def find_parameters(model: nn.Module, kinds: Sequence[Kind]) -> list[PerturbedParameter]:
    """Return the trainable parameters of these kinds."""
    users: dict[int, list[tuple[nn.Module, str, str]]] = {}
    kind_of: dict[int, str] = {}
    for layer in model.modules():
        direct = list(layer.parameters(recurse=False))
        if getattr(layer, "is_quantizer", False):
            kind = "input_step" if getattr(layer, "activation", False) else "weight_step"
            kind_of.update({id(p): kind for p in direct})
        elif isinstance(layer, NORMS):
            kind_of.update({id(p): "norm" for p in direct})
        if hasattr(layer, "quantized_weights"):
            for name, (_, delta, _) in cast(Any, layer).quantized_weights().items():
                buffer_name = next(key for key, buffer in layer.named_buffers() if buffer is delta)
                users.setdefault(id(layer.get_parameter(name)), []).append((layer, name, buffer_name))
    return [
        PerturbedParameter(name, p, users.get(id(p), []))
        for name, p in model.named_parameters()
        if p.requires_grad and p.is_floating_point()
        if kind_of.get(id(p), "bias" if name.endswith("bias") else "weight") in kinds
    ]


def find_targets(parameters: list[PerturbedParameter], measured_at: Weights, applied_to: Weights) -> dict[str, Target]:
    """Return name -> target; a weight that several quantized layers share has one for each."""
    targets = {}
    for parameter in parameters:
        deltas = parameter.deltas()
        quantized = applied_to == "quantized" and bool(deltas)
        tensors: list[Tensor] = deltas if quantized else [parameter.tensor]
        sources = deltas if measured_at == "quantized" and quantized else [parameter.tensor] * len(tensors)
        for k, (tensor, source) in enumerate(zip(tensors, sources, strict=True)):
            targets[f"{parameter.name}#{k}" if k else parameter.name] = Target(tensor, source, parameter, k)
    return targets


def gradients_at(targets: dict[str, Target]) -> Point:
    """Return the gradient of every target that has one."""
    grads = ((name, target.source.grad) for name, target in targets.items() if target.parameter.tensor.requires_grad)
    return {name: grad.detach() for name, grad in grads if grad is not None}


@contextmanager
def restored(tensors: list[Tensor]) -> Iterator[None]:
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
def displaced(tensors: list[Tensor], by: list[Tensor]) -> Iterator[None]:
    """Add to the tensors, and restore them at the end."""
    with restored(tensors):
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
    """Return the coefficient of the projection of a onto b, ⟨a, b⟩/‖b‖²."""
    return dot(a, b) / norm(b).square().clamp_min(TINY)


def common_grads(a: dict[Any, Tensor], b: dict[Any, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the names that both have: a pass may leave a parameter without one."""
    names = [name for name in a if name in b]
    return [a[name] for name in names], [b[name] for name in names]
