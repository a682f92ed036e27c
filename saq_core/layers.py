"""Layers with quantized weights and inputs, and the functions that put them into a network."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .quantizers import QUANTIZERS, check_bits, input_quantizer, weight_quantizer

Bits = str | int | Mapping[str, str | int]


class _QuantizedLayer(nn.Module):
    """The part that quantized layers share: ``w = weight_quantizer(weight) + delta``.

    `delta` is zero except while somebody stands beside the quantized weights: SAM's perturbation, or a point of a
    loss surface in quantized coordinates.
    """

    weight: Tensor
    delta: Tensor
    weight_quantizer: nn.Module
    input_quantizer: nn.Module

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


SWAPS: dict[type[nn.Module], type[_QuantizedLayer]] = {nn.Conv2d: QConv2d, nn.Linear: QLinear}


def parse_bits(bits: str | int, name: str = "bits") -> tuple[int, int]:
    """Return (weight bits, activation bits) of "W4A8" or of a number that means both."""
    if isinstance(bits, str):
        match = re.fullmatch(r"W(\d+)A(\d+)", bits.strip().upper())
        if match is None:
            raise ValueError(f'{name} must look like "W4A4" or be a whole number, got {bits!r}')
        return check_bits(int(match[1]), name), check_bits(int(match[2]), name)
    return check_bits(bits, name), bits


def quantize(
    model: nn.Module,
    bits: Bits = "W4A4",
    *,
    quantizer: str = "lsq",
    first_last_bits: int | None = 8,
    input_bits: int | None = None,
    per_channel: bool = False,
) -> nn.Module:
    """Return a copy of `model` whose convolutions and linear layers quantize weights and inputs.

    Weights and biases keep names, shapes and values; weight quantizers are calibrated on them at once. Activation
    quantizers (below 32 bits) wait for `calibrate`. What is 32 bits stays as it is, first and last layer included.

    Args:
        model: Any network; `nn.Conv2d` and `nn.Linear` (these types exactly) are swapped, in a copy.
        bits: "W4A4", "W4A32" (weights only), a number for both, or {layer name: either of these}; layers that a dict
            does not name stay float, except the first and the last.
        quantizer: "lsq", "liq", or "liq-authors" (LIQ whose weights stay in normalised units).
        first_last_bits: Bits of the first layer's weights and of the last layer's weights and input, in order of
            registration; None treats them like the others. A dict that names them wins.
        input_bits: Bits of the first layer's input; None leaves it (images are 8-bit already).
        per_channel: One weight step per filter instead of one per layer.

    Raises:
        ValueError: For malformed bits, unknown names, a network that is quantized already or has nothing to quantize.

    Cost: 80 quantizations of each weight.

    Source: first and last layer as in Liu et al. (2021), released code.
    """
    if quantizer not in QUANTIZERS:
        raise ValueError(f"quantizer must be one of {sorted(QUANTIZERS)}, got {quantizer!r}")
    if any(isinstance(module, _QuantizedLayer) for module in model.modules()):
        raise ValueError("model must be a float network, got one that is quantized already: use dequantize() first")
    model = copy_model(model)
    layers = _swappable(model)
    plan = _layer_bits(list(layers), bits, first_last_bits, input_bits)
    for name, layer in layers.items():
        _swap(layer, *plan[name], quantizer, per_channel)
    stored = {name: bits[name] for name in bits} if isinstance(bits, Mapping) else bits
    cast(Any, model).quantization = {
        "bits": stored,
        "quantizer": quantizer,
        "first_last_bits": first_last_bits,
        "input_bits": input_bits,
        "per_channel": per_channel,
    }
    return model


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares the probe and leaves the training history behind."""
    kept = [getattr(model, name) for name in ("probe", "history") if hasattr(model, name)]
    twin = copy.deepcopy(model, {id(value): value for value in kept})
    for name in ("history", "recipe"):
        twin.__dict__.pop(name, None)
    return twin


def _swappable(model: nn.Module) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    left_out: list[str] = []
    closed: tuple[str, ...] = ()  # the layer's fused eval path reads the weights of its linear layers directly
    for name, module in model.named_modules():
        inside = name.startswith(closed) if closed else False
        if isinstance(module, nn.TransformerEncoderLayer):
            closed += (f"{name}.",)
            left_out.append(f"{name or 'model'} ({type(module).__name__})")
        elif type(module) in SWAPS and not inside:
            layers[name] = module
        elif not inside and any(p.ndim >= 2 for p in module.parameters(recurse=False)):
            left_out.append(f"{name or 'model'} ({type(module).__name__})")
    if not layers:
        raise ValueError("model must have an nn.Conv2d or nn.Linear to quantize, got none")
    if left_out:
        warnings.warn(f"these layers stay in full precision: {', '.join(left_out)}", stacklevel=3)
    return layers


def _layer_bits(
    names: list[str], bits: Bits, first_last_bits: int | None, input_bits: int | None
) -> dict[str, tuple[int, int]]:
    named = bits if isinstance(bits, Mapping) else {}
    for name in set(named) - set(names):
        close = difflib.get_close_matches(name, names) or names[:5]
        raise ValueError(f"bits must name layers of the model, got {name!r}: close are {close}")
    unnamed = (32, 32) if isinstance(bits, Mapping) else parse_bits(bits)
    ends = None if first_last_bits is None else check_bits(first_last_bits, "first_last_bits")
    plan = {}
    for name in names:
        weight, activation = unnamed
        if ends is not None and name in (names[0], names[-1]):
            float_plan = isinstance(bits, Mapping)
            weight = ends if float_plan or weight < 32 else 32
            activation = ends if float_plan or activation < 32 else 32
        if name == names[0]:
            activation = 32 if input_bits is None else check_bits(input_bits, "input_bits")
        plan[name] = parse_bits(named[name], f"bits[{name!r}]") if name in named else (weight, activation)
    return plan


def _swap(layer: nn.Module, weight_bits: int, input_bits: int, quantizer: str, per_channel: bool) -> None:
    """Turn a layer into its quantized form in place: hooks, tied modules and attributes stay as they are."""
    weight = cast(Tensor, layer.weight)
    layer.__class__ = cast(Any, SWAPS[type(layer)])
    layer.weight_quantizer = weight_quantizer(quantizer, weight_bits, weight, per_channel=per_channel)
    layer.input_quantizer = input_quantizer(quantizer, input_bits, weight)
    layer.register_buffer("delta", torch.zeros_like(weight, requires_grad=False), persistent=False)


@torch.no_grad()
def dequantize(model: nn.Module) -> nn.Module:
    """Return a float copy whose weights are the values that the quantized network computes with, Q(w) + delta.

    Activations are no longer quantized.
    """
    model = copy_model(model)
    backwards: dict[type[nn.Module], type[nn.Module]] = {quantized: plain for plain, quantized in SWAPS.items()}
    for layer in [m for m in model.modules() if isinstance(m, _QuantizedLayer)]:
        cast(nn.Parameter, layer.weight).data = layer.used_weight().detach()
        del layer.weight_quantizer, layer.input_quantizer, layer.delta
        layer.__class__ = cast(Any, backwards[type(layer)])
    model.__dict__.pop("quantization", None)
    return model
