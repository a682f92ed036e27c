"""What a sharpness-aware step perturbs: trainable tensors, the quantized layers that use them, and the units of ε."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from landscape.model import quantized_layers

Kind = Literal["weight", "bias", "norm", "weight_step", "input_step"]
Weights = Literal["latent", "quantized"]
Metric = Literal["plain", "adaptive", "normalised"]
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
ADAPTIVE_OFFSET = 0.01  # ASAM's eta

Point = dict[str, Tensor]


@dataclass
class PerturbedParameter:
    """A trainable tensor, and the quantized layers (with its name there) that use it."""

    name: str
    tensor: nn.Parameter
    users: list[tuple[nn.Module, str, str]]  # layer, weight's name, name of its delta

    def deltas(self) -> list[Tensor]:
        """Return the buffers that are added to its quantized values."""
        return [attrgetter(delta)(layer) for layer, _, delta in self.users]

    def quantized(self, user: int) -> Tensor:
        """Return its quantized values in one of the layers."""
        layer, name, _ = self.users[user]
        return cast(Any, layer).quantized_weights()[name][0]


@dataclass
class Target:
    """A tensor that gets its ε, and the one whose gradient determines it."""

    tensor: Tensor
    source: Tensor
    parameter: PerturbedParameter
    user: int

    def weight(self) -> Tensor:
        """Return the values at which the gradient is taken."""
        latent = self.source is self.parameter.tensor
        return self.source.detach() if latent else self.parameter.quantized(self.user)


def kinds_of(model: nn.Module) -> dict[str, Kind]:
    """Return the kind of every parameter, by name."""
    special: dict[int, Kind] = {}
    for layer in model.modules():
        if getattr(layer, "is_quantizer", False):
            kind: Kind = "input_step" if getattr(layer, "activation", False) else "weight_step"
            special.update({id(p): kind for p in layer.parameters(recurse=False)})
        elif isinstance(layer, NORMS):
            special.update({id(p): "norm" for p in layer.parameters(recurse=False)})
    return {n: special.get(id(p), "bias" if n.endswith("bias") else "weight") for n, p in model.named_parameters()}


def find_parameters(model: nn.Module, kinds: Sequence[Kind]) -> list[PerturbedParameter]:
    """Return the trainable parameters of these kinds."""
    users: dict[int, list[tuple[nn.Module, str, str]]] = {}
    kind_of = kinds_of(model)
    for layer in quantized_layers(model).values():
        for name, (_, delta, _) in layer.quantized_weights().items():
            buffer_name = next(key for key, buffer in layer.named_buffers() if buffer is delta)
            users.setdefault(id(layer.get_parameter(name)), []).append((layer, name, buffer_name))
    return [
        PerturbedParameter(name, p, users.get(id(p), []))
        for name, p in model.named_parameters()
        if p.requires_grad and p.is_floating_point() and kind_of[name] in kinds
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
