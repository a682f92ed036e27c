"""Quantized layers in the place of float ones, and back."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from landscape.model.measuring import copied

from .attention import QMultiheadAttention
from .base import Method, check_latent
from .functional import check_bits
from .layers import QConv2d, QLinear
from .quantizers import QuantizerName

Bits = str | int | Mapping[str, str | int]


# What is swapped (these types exactly: a subclass may compute something else), and for what.
SWAPS: dict[type[nn.Module], Any] = {
    nn.Conv2d: QConv2d,
    nn.Linear: QLinear,
    NonDynamicallyQuantizableLinear: QLinear,  # the out_proj of attention
    nn.MultiheadAttention: QMultiheadAttention,
}


def parse_bits(bits: str | int, name: str = "bits") -> tuple[int, int]:
    """Return (weight bits, activation bits) of "W4A8" or of a number that means both."""
    if isinstance(bits, str):
        match = re.fullmatch(r"W(\d+)A(\d+)", bits.strip().upper())
        if match is None:
            raise ValueError(f'{name} must look like "W4A4" or be a whole number, got {bits!r}')
        return check_bits(int(match[1]), name), check_bits(int(match[2]), name)
    return (check_bits(bits, name),) * 2


def quantize(
    model: nn.Module,
    bits: Bits = "W4A4",
    *,
    quantizer: QuantizerName = "lsq",
    first_last_bits: int | None = 8,
    input_bits: int | None = None,
    per_channel: bool = False,
    skip: Sequence[str] = (),
    method: Method | None = None,
) -> nn.Module:
    """Return a copy of `model` whose convolutions, linear layers and attention quantize weights and inputs.

    Weights and biases keep names, shapes and values; weight quantizers are calibrated on them at once. Activation
    quantizers (below 32 bits) wait for `calibrate`. What is 32 bits stays as it is, first and last layer included.

    Attention is quantized as a whole: the weights of q, k, v and out, their inputs, and the operands of both of its
    products (q, k, v and the softmax map). Norms, biases, class tokens and position embeddings stay float. GELU has a
    small negative tail: the input of the layer after it counts as signed, and half of the levels serve the tail. With
    an offset, "lsq+" leaves a quarter of the squared error there ("vit" on digits, 4 bits: 0.7 to 1.0 % of the
    input's square, "lsq" 3.0 to 4.5 %).

    Args:
        model: Any network; `nn.Conv2d`, `nn.Linear` and `nn.MultiheadAttention` (these types exactly) are swapped, in
            a copy. What else has weights stays float, with a warning that says why.
        bits: "W4A4", "W4A32" (weights only), a number for both, or {layer name: either of these}; layers that a dict
            does not name stay float, except the first and the last. An attention "attn" has three names: "attn" (q, k
            and v: weights and inputs), "attn.products" (operands; as "attn" unless named) and "attn.out_proj".
        quantizer: "lsq" (`LSQ`), "lsq+" (`LSQPlus`), "lsq-asymmetric" (`AsymmetricLSQ`), "pact" (`PACT`), "dorefa"
            (`DoReFa`), "liq" (`LIQ`) or "minmax" (`MinMax`).
        first_last_bits: Bits of the first layer's weights and of the last layer's weights and input, in order of
            registration; None treats them like the others. A dict that names them wins.
        input_bits: Bits of the first layer's input; None leaves it (images are 8-bit already).
        per_channel: One weight step per filter instead of one per layer.
        skip: Names of layers that stay float.
        method: How the weights' quantizers are calibrated: "mse", "minmax" or "percentile"; None = the quantizer's own.

    Raises:
        ValueError: If bits are malformed, a name is unknown, or the network is quantized already or has nothing to
            quantize.

    Cost: 80 quantizations of each weight ("mse"; the others one).

    Source: first and last layer as in Liu et al. (2021), released code.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> saq_core.quantize(model, "W4A2")[1]
        QLinear(
          in_features=4, out_features=4, bias=True
          (weight_quantizer): LSQ(bits=4, signed=True)
          (input_quantizer): LSQ(bits=2, signed=None)
        )
    """
    if any(hasattr(module, "quantized_weights") for module in model.modules()):
        raise ValueError("model must be a float network, got one that is quantized already: use dequantize() first")
    model = copy_model(model)
    layers, left_out = find_layers(model)
    for name in skip:
        if layers.pop(name, None) is None:
            raise ValueError(f"skip must name layers that can be quantized, got {name!r}: there are {list(layers)[:5]}")
    if not layers:
        reasons = "".join(f"; {name or 'model'} ({reason})" for name, reason in list(left_out.items())[:3])
        raise ValueError(
            f"model must have an nn.Conv2d, nn.Linear or nn.MultiheadAttention to quantize, got none{reasons}"
        )
    if left_out:
        reasons = ", ".join(f"{name or 'model'} ({reason})" for name, reason in left_out.items())
        warnings.warn(f"these layers stay in full precision: {reasons}", stacklevel=3)
    names = {name: [f"{name}{part}" for part in SWAPS[type(layer)].parts] for name, layer in layers.items()}
    plan = _layer_bits([part for parts in names.values() for part in parts], bits, first_last_bits, input_bits)
    for name, layer in layers.items():
        _swap(layer, [plan[part] for part in names[name]], quantizer, per_channel, method)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # the fused path alone can read them
    stored = {name: bits[name] for name in bits} if isinstance(bits, Mapping) else bits
    cast(Any, model).quantization = {
        "bits": stored,
        "quantizer": quantizer,
        "first_last_bits": first_last_bits,
        "input_bits": input_bits,
        "per_channel": per_channel,
        "skip": list(skip),
    }
    return model


def leave_float(model: nn.Module, name: str) -> None:
    """Take the quantization of one layer back, in place."""
    _unswap(cast(Any, model.get_submodule(name)))
    cast(Any, model).quantization["skip"] = [*model.quantization.get("skip", ()), name]  # type: ignore[union-attr, operator, misc]


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares the probe and leaves the training history behind."""
    shared = [getattr(model, name) for name in ("probe", "history") if hasattr(model, name)]
    result = copied(model, shared)
    for name in ("history", "recipe"):
        result.__dict__.pop(name, None)
    return result


def find_layers(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return (name -> float layer that can be quantized, name -> why another one cannot)."""
    layers: dict[str, nn.Module] = {}
    left_out: dict[str, str] = {}
    closed: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(closed):
            continue
        reason = _refusal(module)
        if reason is not None:
            left_out[name] = reason
            if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
                closed += (f"{name}." if name else "",)  # they read the weights of the layers in them directly
        elif type(module) in SWAPS:
            layers[name] = module
    return layers, left_out


def _refusal(module: nn.Module) -> str | None:
    """Return why a module that has weights cannot be quantized; None if it can, is already, or has none."""
    kind = type(module).__name__
    if hasattr(module, "quantized_weights") or getattr(module, "is_quantizer", False):
        return None
    if isinstance(module, nn.TransformerEncoderLayer):
        whole = "its fused evaluation reads the weights of all its layers"
        return f"{kind}: {whole}" if _refusal(module.self_attn) else None
    if (how := _made_weight(module)) is not None:
        return f"{kind}: {how}"
    if type(module) in SWAPS:
        reason = SWAPS[type(module)].refusal(module)
        return reason and f"{kind}: {reason}"
    # one row is a class token or a position embedding, which is added and multiplies nothing
    weights = any(p.ndim >= 2 and len(p) > 1 for p in module.parameters(recurse=False))
    return f"{kind}: there is no quantized form of it" if weights else None


def _made_weight(module: nn.Module) -> str | None:
    """Return what makes the weight of a layer from other tensors, and how to end that; None where nothing does."""
    if is_parametrized(module):
        by = ", ".join(sorted({type(p).__name__ for ps in module.parametrizations.values() for p in ps}))  # type: ignore[union-attr, operator]
        return f"its weight is parametrized ({by}): call torch.nn.utils.parametrize.remove_parametrizations first"
    if type(module) not in SWAPS or "weight" not in module.__dict__:
        return None
    if "weight_orig" in module._parameters and "weight_mask" in module._buffers:
        return "its weight is pruned: call torch.nn.utils.prune.remove first"
    return "a hook computes its weight (weight_norm, spectral_norm): remove it first"


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
        key = name if name in named else name.removesuffix(".products")
        plan[name] = parse_bits(named[key], f"bits[{key!r}]") if key in named else (weight, activation)
    return plan


def _swap(
    layer: Any, bits: list[tuple[int, int]], quantizer: QuantizerName, per_channel: bool, method: Method | None
) -> None:
    """Turn a layer into its quantized form in place: hooks, tied modules and attributes stay as they are."""
    layer.float_type = type(layer)
    layer.__class__ = SWAPS[type(layer)]
    layer.attach_(bits, quantizer, per_channel, method)


def _unswap(layer: Any) -> None:
    layer.detach_()
    layer.__class__ = layer.__dict__.pop("float_type")


@torch.no_grad()
def dequantize(model: nn.Module, *, latent: bool = False) -> nn.Module:
    """Return a float copy whose weights are the values that the quantized network computes with, Q(w) + delta.

    Activations are no longer quantized.

    Args:
        model: Quantized; it is left as it is.
        latent: Take the floats that the optimizer updates as weights instead.

    Raises:
        ValueError: If latent weights are asked of a network that was read from integers.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> quantized = saq_core.quantize(model, "W2A2")
        >>> torch.equal(saq_core.dequantize(quantized, latent=True)[0].weight, model[0].weight)
        True
    """
    if latent:
        check_latent(model, "use latent=False")
    model = copy_model(model)
    for layer in [cast(Any, m) for m in model.modules() if hasattr(m, "quantized_weights")]:
        if not latent:  # a new one: whoever was tied to it keeps the float weight
            old = getattr(layer, layer.weight_name)
            setattr(layer, layer.weight_name, nn.Parameter(layer.used_weight(), requires_grad=old.requires_grad))
        _unswap(layer)
    for name in ("quantization", "gptq"):
        model.__dict__.pop(name, None)
    return model
