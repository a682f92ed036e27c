"""Quantized layers in the place of float ones, and back."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from landscape.model import copied, measurement_mode, quantized_layers

from ..contexts import check_loaded
from ..data.feeding import feed
from .attention import QMultiheadAttention
from .base import Method, Quantizer, check_latent
from .functional import check_bits
from .layers import LAYERS, QLinear, QTransposedLinear
from .quantizers import QuantizerLike, quantizer_classes, quantizer_name
from .usage import Usage, is_matrix

Bits = str | int | Mapping[str, str | int]
Ends = tuple[str | None, list[str]]  # the first layer, if one is, and the last ones
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NAMED = 5  # of what stays float, in a warning
# modules and tensors of those who quantize in their own way; torch.ao's quantizable and FloatFunctional are float
FOREIGN = re.compile(
    r"(torchao|brevitas|bitsandbytes)\b|torch\.ao\.(quantization\.fake_quantize|nn\.(\w+\.)*(qat|quantized)\b(?!.*functional))"
)

# What is swapped (these types exactly: a subclass may compute something else), and for what.
SWAPS: dict[type[nn.Module], Any] = {
    **LAYERS,
    NonDynamicallyQuantizableLinear: QLinear,  # the out_proj of attention
    nn.MultiheadAttention: QMultiheadAttention,
}


def quantized_form(layer: nn.Module) -> Any:
    """Return the class that a float layer becomes when it is quantized, None if there is none.

    The `Conv1D` of Hugging Face's GPT-2, a linear layer whose weight is (in, out), is known by its name and shape.
    """
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.ndim == 2:
        return QTransposedLinear if weight.shape[1] == getattr(layer, "nf", None) else None
    return SWAPS.get(type(layer))


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
    quantizer: QuantizerLike = "lsq",
    first_last_bits: int | None = 8,
    input_bits: int | None = None,
    per_channel: bool = False,
    skip: Sequence[str] = (),
    method: Method | None = None,
    example: Any = None,
) -> nn.Module:
    """Return a copy of `model` whose convolutions, linear layers and attention quantize weights and inputs.

    Weights and biases keep names, shapes and values; weight quantizers are calibrated on them at once. Activation
    quantizers (below 32 bits) wait for `calibrate`. What is 32 bits stays as it is, first and last layer included.

    Attention is quantized as a whole: the weights of q, k, v and out, their inputs, and the operands of both of its
    products (q, k, v and the softmax map). Where other people's modules multiply activations with each other, in plain
    operations or by `scaled_dot_product_attention`, those products stay float; `calibrate` names them, `describe`
    counts them. Norms, biases, embeddings, class tokens and position embeddings stay float. GELU has a small negative
    tail: the input of the layer after it counts as signed, and half of the levels serve the tail. With an offset,
    "lsq+" leaves a quarter of the squared error there ("vit" on digits, 4 bits: 0.7 to 1.0 % of the input's square,
    "lsq" 3.0 to 4.5 %).

    Args:
        model: Any network; convolutions of one to three dimensions and transposed ones, `nn.Linear`,
            `nn.MultiheadAttention` (these types exactly) and transformers' `Conv1D` are swapped, in a copy. What else
            has weights that multiply stays float, with a warning that says why, and how much it is where it is most.
        bits: "W4A4", "W4A32" (weights only), a number for both, or {layer name: either of these}; layers that a dict
            does not name stay float, except the first and the last. An attention "attn" has three names: "attn" (q, k
            and v: weights and inputs), "attn.products" (operands; as "attn" unless named) and "attn.out_proj".
        quantizer: "lsq" (`LSQ`), "lsq+" (`LSQPlus`), "lsq-asymmetric" (`AsymmetricLSQ`), "pact" (`PACT`), "dorefa"
            (`DoReFa`), "liq" (`LIQ`) or "minmax" (`MinMax`); or a subclass of `Quantizer`, or two: one for weights, one
            for activations.
        first_last_bits: Bits of the first layer's weights and of the last layer's weights and input; None treats them
            like the others. A dict that names them wins. First and last go by `example`, without it by registration;
            where an embedding is registered before the first layer, which then takes no input of the network's, no
            layer counts as the first.
        input_bits: Bits of the first layer's input; None leaves it (images are 8-bit already).
        per_channel: One weight step per filter instead of one per layer.
        skip: Names of layers that stay float.
        method: How the weights' quantizers are calibrated: "mse", "minmax" or "percentile"; None = the quantizer's own.
        example: A batch, as `calibrate` takes one. A forward pass then shows which layer is the first to take the
            network's input, and which are the last before its outputs (before the logits where it returns such):
            every head of several.

    Raises:
        ValueError: If bits are malformed, a name is unknown, or the network is quantized already (by whom is said) or
            has nothing to quantize.

    Cost: 80 quantizations of each weight ("mse"; the others one), and one forward pass of the example.

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
    check_loaded(model)
    check_float(model)
    quantizer_classes(quantizer)
    model = copy_model(model)
    layers, left_out = find_layers(model)
    share = _share(model, layers)
    for name in skip:
        if layers.pop(name, None) is None:
            raise ValueError(f"skip must name layers that can be quantized, got {name!r}: there are {list(layers)[:5]}")
    reasons = [f"{name or 'model'} ({reason})" for name, reason in left_out.items()]
    if not layers:
        rule = "model must have a convolution, linear layer or attention to quantize"
        raise ValueError(f"{rule}, got none{': ' if reasons else ''}{'; '.join(reasons[:3])}")
    if reasons:
        loud = f"only {share:.1%} of the weights that multiply are in quantized layers\n" if share < 0.5 else ""
        more = [f"and {len(reasons) - NAMED} more"] if len(reasons) > NAMED else []
        shown = "\n  ".join(["these stay in full precision:", *reasons[:NAMED], *more])
        warnings.warn(f"{loud}{shown}", stacklevel=3)
    names = [f"{name}{part}" for name, layer in layers.items() for part in quantized_form(layer).parts]
    plan = _layer_bits(names, bits, find_ends(model, names, example), first_last_bits, input_bits)
    for name, layer in layers.items():
        _swap(name, layer, plan, quantizer, per_channel, method)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # the fused path alone can read them
    if example is not None:  # what it showed is kept, for it is not
        bits, first_last_bits, input_bits = {name: f"W{w}A{a}" for name, (w, a) in plan.items()}, None, None
    cast(Any, model).quantization = {
        "bits": dict(bits) if isinstance(bits, Mapping) else bits,
        "quantizer": quantizer_name(quantizer),
        "first_last_bits": first_last_bits,
        "input_bits": input_bits,
        "per_channel": per_channel,
        "skip": list(skip),
    }
    return model


def check_float(model: nn.Module) -> None:
    """Raise if a network is quantized, by whomever."""
    for name, module in model.named_modules():
        if hasattr(module, "quantized_weights"):
            raise ValueError("model must be a float network, got one that is quantized already: use dequantize() first")
        for kind in (type(module), *map(type, module.parameters(recurse=False))):
            if FOREIGN.match(kind.__module__):
                by = f"{kind.__name__} of {kind.__module__} in {name or 'model'}"
                raise ValueError(f"model must be a float network, got one that is quantized already ({by})")


def _share(model: nn.Module, layers: Mapping[str, nn.Module]) -> float:
    """Return the share of the weights that multiply which some layers hold."""

    def size(modules: Iterable[nn.Module]) -> int:
        return sum(p.numel() for p in {p for m in modules for p in m.parameters(recurse=False) if is_matrix(p)})

    return size(layers.values()) / max(size(m for m in model.modules() if not isinstance(m, EMBEDDINGS)), 1)


def leave_float(model: nn.Module, name: str) -> None:
    """Take the quantization of one layer back, in place."""
    _unswap(cast(Any, model.get_submodule(name)))
    settings = cast(Any, model).quantization
    settings["skip"] = [*settings.get("skip", ()), name]
    if isinstance(settings["bits"], dict):
        settings["bits"] = {k: v for k, v in settings["bits"].items() if k.removesuffix(".products") != name}


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
        ours = hasattr(module, "quantized_weights") or getattr(module, "is_quantizer", False)
        if ours or name.startswith(closed) or "parametrizations" in name.split("."):
            continue
        reason = _refusal(module)
        if reason is not None:
            left_out[name] = reason
            if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
                closed += (f"{name}." if name else "",)  # they read the weights of the layers in them directly
        elif quantized_form(module):
            layers[name] = module
        elif not isinstance(module, EMBEDDINGS):
            kind = type(module).__name__
            matrices = [key for key, p in module.named_parameters(recurse=False) if is_matrix(p)]
            if any(True for _ in module.children()):
                left_out |= {f"{name}.{key}".removeprefix("."): f"a parameter of {kind}" for key in matrices}
            elif matrices:
                left_out[name] = f"{kind}: there is no quantized form of it"
    return layers, left_out


def _refusal(module: nn.Module) -> str | None:
    """Return why a module that could be quantized by its type cannot be; None for every other."""
    kind = type(module).__name__
    if isinstance(module, nn.TransformerEncoderLayer):
        whole = "its fused evaluation reads the weights of all its layers"
        return f"{kind}: {whole}" if _refusal(module.self_attn) else None
    if (how := _made_weight(module)) is not None:
        return f"{kind}: {how}"
    if isinstance(module, nn.MultiheadAttention) and type(module) is not nn.MultiheadAttention:
        return f"{kind}: there is no quantized form of it"
    form = quantized_form(module)
    reason = form and form.refusal(module)
    return reason and f"{kind}: {reason}"


def _made_weight(module: nn.Module) -> str | None:
    """Return what makes the weight of a layer from other tensors, and how to end that; None where nothing does."""
    if is_parametrized(module):
        by = ", ".join(sorted({type(p).__name__ for ps in module.parametrizations.values() for p in ps}))  # type: ignore[union-attr, operator]
        return f"its weight is parametrized ({by}): call torch.nn.utils.parametrize.remove_parametrizations first"
    if not quantized_form(module) or "weight" not in module.__dict__:
        return None
    if "weight_orig" in module._parameters and "weight_mask" in module._buffers:
        return "its weight is pruned: call torch.nn.utils.prune.remove first"
    return "a hook computes its weight (weight_norm, spectral_norm): remove it first"


def find_ends(model: nn.Module, names: Sequence[str], example: Any = None) -> Ends:
    """Return the first layer, None where no layer takes the network's input, and the last ones.

    Args:
        model: Float.
        names: Of layers that can be quantized and of their parts, in order of registration.
        example: See `quantize`.
    """
    if example is None:
        order = [n for n, m in model.named_modules() if n == names[0] or isinstance(m, EMBEDDINGS)]
        return names[0] if order[0] == names[0] else None, [names[-1]]
    with measurement_mode(model), torch.enable_grad(), Usage(model, names) as usage:
        feed(model, example, 1, name="example")
    return usage.first, [f"{n}.out_proj" if f"{n}.out_proj" in names else n for n in usage.last()]


def _layer_bits(
    names: list[str], bits: Bits, ends: Ends, first_last_bits: int | None, input_bits: int | None
) -> dict[str, tuple[int, int]]:
    named = bits if isinstance(bits, Mapping) else {}
    for name in set(named) - set(names):
        close = difflib.get_close_matches(name, names) or names[:5]
        raise ValueError(f"bits must name layers of the model, got {name!r}: close are {close}")
    unnamed = (32, 32) if isinstance(bits, Mapping) else parse_bits(bits)
    edge, (first, last) = list(unnamed), ends
    if first_last_bits is not None:
        outer = check_bits(first_last_bits, "first_last_bits")
        edge = [outer if isinstance(bits, Mapping) or inner < 32 else 32 for inner in unnamed]
    if first is None and input_bits is not None:
        rule = "input_bits must be None for a network none of whose layers takes its input, say tokens"
        raise ValueError(f"{rule}, got {input_bits}")
    plan = {}
    for name in names:
        weight, activation = edge if name in (first, *last) else unnamed
        if name == first:
            activation = 32 if input_bits is None else check_bits(input_bits, "input_bits")
        key = name if name in named else name.removesuffix(".products")
        plan[name] = parse_bits(named[key], f"bits[{key!r}]") if key in named else (weight, activation)
    return plan


def _swap(name: str, layer: Any, plan: dict[str, tuple[int, int]], *settings: Any) -> None:
    """Turn a layer into its quantized form in place: hooks, tied modules and attributes stay as they are."""
    layer.float_type = type(layer)
    layer.__class__ = quantized_form(layer)
    layer.attach_([plan[f"{name}{part}"] for part in layer.parts], *settings)
    for part in layer.modules():
        if isinstance(part, Quantizer):
            part.layer = name


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
    for layer in quantized_layers(model).values():
        if not latent:  # a new one: whoever was tied to it keeps the float weight
            old = getattr(layer, layer.weight_name)
            setattr(layer, layer.weight_name, nn.Parameter(layer.used_weight(), requires_grad=old.requires_grad))
        _unswap(layer)
    for name in ("quantization", "gptq"):
        model.__dict__.pop(name, None)
    return model
