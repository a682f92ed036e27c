"""Distillation of standardised features from a float network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quantization import QConv2d, copy_model, dequantize
from .noise import FPQ

EPSILON = 1e-5  # of the standardisation; the paper gives none


def distillation_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Return L_CSD, the distance of the features of two networks, each channel standardised.

    ``Σ_l mean(Norm(z_s) - Norm(z_t))²``, ``Norm(z) = (z - μ)/√(σ² + 1e-5)`` for each channel over batch and space:
    in a layer 2·(1 - correlation), averaged over its channels.

    Args:
        student: Features (n, channels, height, width), or any (n, channels, …), layer by layer; gradients flow here.
        teacher: As many of the same shapes, without gradients.

    Raises:
        ValueError: If shapes differ, or a channel has a single value.

    Source: Pang and Cai (2025), eq. 15-17, whose squares are summed over everything; see `FPQ`.

    Example:
        >>> import torch, saq_core
        >>> z = [torch.randn(8, 3, 4, 4)]
        >>> saq_core.distillation_loss(z, [5 * z[0] + 2]).item() < 1e-6  # scale and shift do not count
        True
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"student and teacher must have as many features, got {len(student)} and {len(teacher)}")
    pairs = list(zip(student, teacher, strict=True))
    for z, t in pairs:
        if z.shape != t.shape:
            raise ValueError(
                f"teacher must have features of shape {tuple(z.shape)}, got {tuple(t.shape)}: other strides"
            )
        if z.ndim < 2 or z[:, 0].numel() < 2:
            raise ValueError(f"features must have more than one value per channel, got shape {tuple(z.shape)}")
    return torch.stack([F.mse_loss(_standardised(z), _standardised(t)) for z, t in pairs]).sum()


def _standardised(features: Tensor) -> Tensor:
    return F.batch_norm(features.float(), None, None, training=True, eps=EPSILON)


class Features(nn.Module):
    """A network that returns, beside its output, the outputs of some of its modules.

    Args:
        model: Called as it is; `close` removes the hooks.
        names: Of modules that are called once in a forward pass.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self._outputs: dict[str, Tensor] | None = None  # only during a forward pass of this module
        modules = [model.get_submodule(name) for name in names]
        self._handles = [m.register_forward_hook(self._hook(n)) for n, m in zip(names, modules, strict=True)]

    def _hook(self, name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            if self._outputs is not None:
                self._outputs[name] = output

        return note

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the output and the features, in the order of the names."""
        outputs: dict[str, Tensor] = {}
        self._outputs = outputs
        try:
            output = self.model(x)
        finally:
            self._outputs = None
        if unused := [name for name in self.names if name not in outputs]:
            raise ValueError(f"model must call every layer that is distilled in its forward pass, got none of {unused}")
        return output, [outputs[name] for name in self.names]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


class Student(nn.Module):
    """A network that returns, beside its output, the weighted distillation loss of its features: one compiled graph.

    Args:
        fpq: How to distill.
        features: Of the network.
    """

    def __init__(self, fpq: FPQ, features: Features) -> None:
        super().__init__()
        self.fpq, self.features = fpq, features

    def forward(self, x: Tensor, teacher: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the output and the loss against the teacher's features."""
        output, features = self.features(x)
        return output, self.fpq.weight * distillation_loss(features, teacher)


class Teacher:
    """The teacher of a training: its features, once per batch.

    Args:
        network: The teacher.
        features: The function that returns its output and features.
    """

    def __init__(self, network: nn.Module, features: Any) -> None:
        self.network, self.features = network, features
        self._cache: dict[Any, list[Tensor]] = {}

    def next_batch(self) -> None:
        """Drop the features of the batch before."""
        self._cache.clear()

    def of(self, x: Tensor, part: Any) -> list[Tensor]:
        """Return the features; `part` names these rows of the batch."""
        if part not in self._cache:
            with torch.no_grad():
                self._cache[part] = self.features(x)[1]
        return self._cache[part]


def distilled_layers(model: nn.Module) -> list[str]:
    """Return the names of the quantized convolutions, whose outputs are distilled.

    Raises:
        ValueError: If there are none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, QConv2d)]
    if not names:
        raise ValueError("model must have quantized convolutions to distill, got none: use FPQ(distill=False) or none")
    return names


def teacher_of(model: nn.Module, teacher: nn.Module | None, names: list[str]) -> nn.Module:
    """Return a copy of `teacher` in evaluation mode, or `model` itself in floating point with its latent weights.

    Raises:
        ValueError: If it lacks a layer of those names, or has it in another shape.
    """
    network = dequantize(model, latent=True) if teacher is None else copy_model(teacher)
    layers = dict(network.named_modules())
    for name in names:
        pair = (model.get_submodule(name), layers.get(name))
        expected, shape = (tuple(getattr(layer, "weight", torch.empty(0)).shape) for layer in pair)
        if shape != expected:
            raise ValueError(f"teacher must have the layer {name} with weights of shape {expected}, got {shape}")
    like = next(p for p in model.parameters() if p.is_floating_point())
    return network.to(like.device, like.dtype).eval().requires_grad_(False)
