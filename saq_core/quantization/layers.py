"""Convolution and linear layer with quantized weights and inputs."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .base import Method
from .quantizers import QuantizerName, input_quantizer, weight_quantizer


class _QuantizedLayer(nn.Module):
    """Base class of quantized layers: ``w = weight_quantizer(weight) + delta``.

    `delta` is zero except while the quantized weights are displaced: by SAM's perturbation, or to a point of a loss
    surface in quantized coordinates.
    """

    parts: tuple[str, ...] = ("",)  # with bits of their own, as suffixes of the layer's name
    weight_name = "weight"
    float_type: type[nn.Module]  # of the layer when not quantized
    weight: Tensor
    delta: Tensor
    weight_quantizer: nn.Module
    input_quantizer: nn.Module

    @staticmethod
    def refusal(layer: Any) -> str | None:
        """Return why a float layer of this kind cannot be quantized, or None."""
        return None

    def attach_(
        self, bits: list[tuple[int, int]], quantizer: QuantizerName, per_channel: bool, method: Method | None
    ) -> None:
        """Add quantizers and delta; `bits` has (weight bits, input bits) of each of the parts."""
        settings: Any = {"per_channel": per_channel, "method": method}
        self.weight_quantizer = weight_quantizer(quantizer, bits[0][0], self.weight, **settings)
        self.input_quantizer = input_quantizer(quantizer, bits[0][1], self.weight)
        self.register_buffer("delta", torch.zeros_like(self.weight, requires_grad=False), persistent=False)

    def detach_(self) -> None:
        """Remove what `attach_` added."""
        del self.weight_quantizer, self.input_quantizer, self.delta

    def quantized_parts(self) -> dict[str, tuple[Any, Tensor]]:
        """Return name -> (quantizer, the part of the weight that it quantizes); the whole is their concatenation."""
        return {"weight": (self.weight_quantizer, self.weight)}

    def used_weight(self) -> Tensor:
        """Return the weight that the forward pass uses."""
        return self.weight_quantizer(self.weight) + self.delta

    @torch.no_grad()
    def quantized_weights(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return name -> (Q(w) without delta, the delta buffer itself, step between levels)."""
        quantizer = cast(Any, self.weight_quantizer)
        return {"weight": (quantizer(self.weight).detach(), self.delta, quantizer.step_size(self.weight))}


class QConv2d(_QuantizedLayer, nn.Conv2d):
    """A convolution that quantizes its weight and its input; `quantize` makes it out of an `nn.Conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the quantized input with the quantized weight."""
        return self._conv_forward(self.input_quantizer(x), self.used_weight(), self.bias)


class QLinear(_QuantizedLayer, nn.Linear):
    """A linear layer that quantizes its weight and its input; `quantize` makes it out of an `nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of the quantized input with the quantized weight."""
        return nn.functional.linear(self.input_quantizer(x), self.used_weight(), self.bias)
