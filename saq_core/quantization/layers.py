"""Convolutions and linear layers with quantized weights and inputs."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .base import Method, Quantizer
from .quantizers import QuantizerLike, input_quantizer, weight_quantizer


class _QuantizedLayer(nn.Module):
    """Base class of quantized layers: ``w = weight_quantizer(weight) + delta``.

    `delta` is zero except while the quantized weights are displaced: by SAM's perturbation, or to a point of a loss
    surface in quantized coordinates.
    """

    parts: tuple[str, ...] = ("",)  # with bits of their own, as suffixes of the layer's name
    weight_name = "weight"
    transposed = False  # whether the filters lie along dimension 1 of the weight
    float_type: type[nn.Module]  # of the layer when not quantized
    weight: Tensor
    bias: Any
    delta: Tensor
    weight_quantizer: nn.Module
    input_quantizer: nn.Module

    @staticmethod
    def refusal(layer: Any) -> str | None:
        """Return why a float layer of this kind cannot be quantized, or None."""
        return None

    def attach_(
        self, bits: list[tuple[int, int]], quantizer: QuantizerLike, per_channel: bool, method: Method | None
    ) -> None:
        """Add quantizers and delta; `bits` has (weight bits, input bits) of each of the parts."""
        settings: Any = {"per_channel": per_channel, "method": method}
        self.weight_quantizer = weight_quantizer(quantizer, bits[0][0], self.filters_first(self.weight), **settings)
        self.input_quantizer = input_quantizer(quantizer, bits[0][1], self.weight)
        self.register_buffer("delta", torch.zeros_like(self.weight, requires_grad=False), persistent=False)

    def detach_(self) -> None:
        """Remove what `attach_` added."""
        del self.weight_quantizer, self.input_quantizer, self.delta

    def filters_first(self, weight: Tensor) -> Tensor:
        """Return the weight with its filters along dimension 0, as quantizers take it, or back (its own inverse)."""
        if not self.transposed:
            return weight
        return weight.unflatten(0, (getattr(self, "groups", 1), -1)).transpose(1, 2).flatten(0, 1)

    def quantized_parts(self) -> dict[str, tuple[Any, Tensor]]:
        """Return name -> (quantizer, the filters that it quantizes); the whole is their concatenation."""
        return {"weight": (self.weight_quantizer, self.filters_first(self.weight))}

    def used_weight(self) -> Tensor:
        """Return the weight that the forward pass uses."""
        return self.filters_first(self.weight_quantizer(self.filters_first(self.weight))) + self.delta

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return two tensors whose product is that of the quantized input and weight.

        The input's step may be in the second: it has fewer values, and every pass over them costs time.
        """
        quantizer = self.input_quantizer
        factors = quantizer.factors(x) if isinstance(quantizer, Quantizer) else None
        if factors is None:
            return quantizer(x), self.used_weight()
        return factors[0], self.used_weight() * factors[1]

    @torch.no_grad()
    def quantized_weights(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return name -> (Q(w) without delta, the delta buffer itself, step between levels)."""
        quantizer, filters = self.quantized_parts()["weight"]
        step = quantizer.step_size(filters)
        if self.transposed and step.ndim:
            step = self.filters_first(step.expand_as(filters))
        return {"weight": (self.filters_first(quantizer(filters)).detach(), self.delta, step)}


class _QuantizedConvolution(_QuantizedLayer):
    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the quantized input with the quantized weight."""
        return cast(Any, self)._conv_forward(*self.operands(x), self.bias)


class QConv1d(_QuantizedConvolution, nn.Conv1d):
    """A convolution that quantizes its weight and its input; `quantize` makes it out of an `nn.Conv1d`."""


class QConv2d(_QuantizedConvolution, nn.Conv2d):
    """A convolution that quantizes its weight and its input; `quantize` makes it out of an `nn.Conv2d`."""


class QConv3d(_QuantizedConvolution, nn.Conv3d):
    """A convolution that quantizes its weight and its input; `quantize` makes it out of an `nn.Conv3d`."""


class _QuantizedTransposedConvolution(_QuantizedLayer):
    transposed = True

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of the quantized input with the quantized weight."""
        m, n = cast(Any, self), self.weight.ndim - 2
        more = m._output_padding(x, output_size, m.stride, m.padding, m.kernel_size, n, m.dilation)
        convolve = getattr(nn.functional, f"conv_transpose{n}d")
        return convolve(*self.operands(x), self.bias, m.stride, m.padding, more, m.groups, m.dilation)


class QConvTranspose1d(_QuantizedTransposedConvolution, nn.ConvTranspose1d):
    """A transposed convolution; `quantize` makes it out of an `nn.ConvTranspose1d`."""


class QConvTranspose2d(_QuantizedTransposedConvolution, nn.ConvTranspose2d):
    """A transposed convolution; `quantize` makes it out of an `nn.ConvTranspose2d`."""


class QConvTranspose3d(_QuantizedTransposedConvolution, nn.ConvTranspose3d):
    """A transposed convolution; `quantize` makes it out of an `nn.ConvTranspose3d`."""


class QTransposedLinear(_QuantizedLayer):
    """A linear layer whose weight is (in, out); `quantize` makes it out of the `Conv1D` of Hugging Face's GPT-2."""

    transposed = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of the quantized input with the quantized weight."""
        x, weight = self.operands(x)
        return nn.functional.linear(x, weight.t(), self.bias)

    def extra_repr(self) -> str:
        """Show the sizes, as the float layer does."""
        return "in_features={}, out_features={}".format(*self.weight.shape)


class QLinear(_QuantizedLayer, nn.Linear):
    """A linear layer that quantizes its weight and its input; `quantize` makes it out of an `nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of the quantized input with the quantized weight."""
        return nn.functional.linear(*self.operands(x), self.bias)


CONVOLUTIONS = (QConv1d, QConv2d, QConv3d, QConvTranspose1d, QConvTranspose2d, QConvTranspose3d)
# Type of a float layer -> that of its quantized form.
LAYERS: dict[type[nn.Module], Any] = {getattr(nn, kind.__name__[1:]): kind for kind in (*CONVOLUTIONS, QLinear)}
