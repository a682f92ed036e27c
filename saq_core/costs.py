"""The cost of a network: multiplications, bit operations and bits of storage, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd

from landscape.checking import numbers
from landscape.model.errors import translated

from .quantization import Bits, dequantize, find_layers, quantize, quantized_form
from .results import Shown

FLOAT_BITS = 32
COUNTED = (_ConvNd, nn.Linear, nn.RNNBase, nn.MultiheadAttention)
IMAGE_BITS = 8  # of the first convolution's input: images are 8-bit already


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer.

    Args:
        name: Of the module; "elsewhere" for multiplications outside of any layer that is known here.
        type: Of the module.
        weight_bits: Of the weight, or of the second operand in a product of two activations.
        activation_bits: Of the input; 8 in a first convolution with quantized weights whose input is an image.
        shape: Of the weight; () where there is none.
        parameters: Weights and biases, without steps and clips.
        macs: Multiply-accumulate operations for one input, all uses of the layer together.
    """

    name: str
    type: str
    weight_bits: int
    activation_bits: int
    shape: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0

    @property
    def bops(self) -> int:
        """Bit operations, macs · weight_bits · activation_bits."""
        return self.macs * self.weight_bits * self.activation_bits


@dataclass(frozen=True, repr=False)
class Description(Shown):
    """Result of `describe`: the cost of a network, layer by layer.

    Args:
        layers: In the order of their first use.
        parameters: All of the network's, norms and biases included, steps and clips not.
        bits: To store them: quantized weights at their bits, everything else (steps, clips and offsets that are
            parameters too) at 32; without buffers: BatchNorm's statistics, which fold into its two parameters, and
            ranges and zero points that are not trained.
        left_out: Layer -> why it cannot be quantized.

    Example:
        >>> import torch, saq_core
        >>> description = saq_core.describe(torch.nn.Linear(4, 3), (4,))
        >>> description
        Description(1 layers, 15 parameters, 0.0 M MACs, 0.0 M BOPs, 6e-05 MB)
        >>> description.macs, description.bops
        (12, 12288)
    """

    layers: tuple[LayerCost, ...]
    parameters: int
    bits: int
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one input."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations for one input."""
        return sum(layer.bops for layer in self.layers)

    @property
    def bops_ratio(self) -> float:
        """How many times fewer bit operations than the same network at 32x32 bits."""
        return self.macs * FLOAT_BITS**2 / max(self.bops, 1)

    @property
    def quantized_share(self) -> float:
        """Share of the multiplications of which both operands are quantized, 0 to 1."""
        quantized = (row.macs for row in self.layers if max(row.weight_bits, row.activation_bits) < FLOAT_BITS)
        return sum(quantized) / max(self.macs, 1)

    @property
    def size_bytes(self) -> float:
        """Bytes to store the parameters."""
        return self.bits / 8

    def _rows(self) -> list[dict[str, Any]]:
        return [asdict(layer) | {"bops": layer.bops} for layer in self.layers]

    def __repr__(self) -> str:
        counts = f"{len(self.layers)} layers, {self.parameters:,} parameters, {self.macs / 1e6:,.1f} M MACs"
        return f"Description({counts}, {self.bops / 1e6:,.1f} M BOPs, {self.size_bytes / 1e6:.3g} MB)"

    def __str__(self) -> str:
        lines = [
            self.frame.to_string(index=False),
            f"parameters  {self.parameters:,} in {self.size_bytes:,.0f} bytes, "
            f"{self.parameters * 4 / self.size_bytes:.1f} times fewer than at 32 bits",
            f"MACs        {self.macs:,}, {self.quantized_share:.1%} of them with both operands quantized",
            f"BOPs        {self.bops:,}, {self.bops_ratio:.1f} times fewer than at 32x32 bits",
            *(f"float       {name or 'model'}: {reason}" for name, reason in self.left_out.items()),
        ]
        return "\n".join(lines)


def describe(
    model: nn.Module, input_shape: Sequence[int] | None = None, *, first_input_bits: int = IMAGE_BITS
) -> Description:
    """Count what one input costs in `model`, layer by layer, from one forward pass of a copy.

    ``BOPs = MACs · weight bits · activation bits``: a convolution has k²·(C_in/groups)·C_out·H·W MACs, a linear layer
    in·out per row, each of the two products of attention queries·keys·width, a recurrent layer its matrices times time
    steps. Norms, biases, pooling and additions
    cost nothing. Use it to compare networks of different bits, and to see what is not quantized.

    Args:
        model: Any network that takes one tensor; float, quantized (calibrated or not). It is left as it is.
        input_shape: Of one input, without the batch: (channels, height, width). None takes the shape of the probe, or
            the one that `build_model` noted.
        first_input_bits: What a first convolution with quantized weights counts as its input's bits, at most: images
            are 8-bit already. 32 counts an image that is not quantized as 32.

    Raises:
        ValueError: If no shape is given and the model has none, or if it has no layer to count.

    Cost: a copy of the model and one forward pass of one input.

    Source: Liu et al., Sharpness-aware Quantization (2021), released code, which has no attention.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10))
        >>> saq_core.describe(model, (3, 8, 8)).frame["macs"].tolist()
        [7776, 2880]
    """
    numbers(whole=True, at_least=1, at_most=FLOAT_BITS, first_input_bits=first_input_bits)
    macs = _count(dequantize(model).eval().requires_grad_(), one_input(model, input_shape))
    modules = dict(model.named_modules())
    rows = [_row(name, modules.get(name), count) for name, count in macs.items()]
    if isinstance(modules.get(rows[0].name), _ConvNd) and rows[0].weight_bits < FLOAT_BITS:
        rows[0] = replace(rows[0], activation_bits=min(rows[0].activation_bits, first_input_bits))
    steps = {id(p) for m in modules.values() if getattr(m, "is_quantizer", False) for p in m.parameters()}
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in steps)
    widths = {id(_weight(modules.get(row.name))): row.weight_bits for row in rows}
    bits = sum(p.numel() * widths.get(id(p), FLOAT_BITS) for p in model.parameters())
    return Description(tuple(rows), parameters, bits, find_layers(model)[1])


def cost(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    bits: Bits | None = None,
    first_input_bits: int = IMAGE_BITS,
) -> Description:
    """Return ``.macs``, ``.bops``, ``.parameters`` and ``.size_bytes`` of one input, of `model` or of it at other bits.

    Args:
        model: See `describe`; a float network where `bits` are given.
        input_shape: See `describe`.
        bits: As `quantize` takes them, the first and the last layer at 8; None = those the model has. The size is then
            without steps and clips, whose number depends on the quantizer.
        first_input_bits: See `describe`.

    Raises:
        ValueError: As `describe`, and as `quantize` for bits that do not fit.

    Cost: that of `describe`.

    Source: Liu et al., Sharpness-aware Quantization (2021), released code: its table of BOPs to the digit.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> saq_core.cost(model, (4,), bits="W2A2").bops  # first and last layer at 8 bits, the input at 32
        5184
    """
    network = model if bits is None else quantize(model, bits, quantizer="dorefa")  # no step to calibrate
    return describe(network, input_shape, first_input_bits=first_input_bits)


def one_input(model: nn.Module, input_shape: Sequence[int] | None) -> Tensor:
    """Return one input: zeros of the shape given, an image of the probe, or zeros of the shape noted."""
    first = next(model.parameters(), torch.empty(0))
    if input_shape is None and hasattr(model, "probe"):
        probe = cast(Any, model).probe[0][:1]
        return probe.to(first if probe.is_floating_point() else first.device)
    shape = getattr(model, "architecture", {}).get("input_shape") if input_shape is None else input_shape
    if shape is None:
        raise ValueError("input_shape must be given for this model, got None: pass that of one input, without a batch")
    numbers(whole=True, at_least=1, input_shape=min(shape, default=1))
    return torch.zeros(1, *shape).to(first)


def _count(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return name -> MACs in a float network, in the order of first use; what was never used comes last."""
    from torch.utils.flop_counter import FlopCounterMode

    # attention is counted as one, because it never calls its own out_proj
    inside = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    counted = {name: m for name, m in model.named_modules() if isinstance(m, COUNTED) or quantized_form(m)}
    layers = {name: m for name, m in counted.items() if id(m) not in inside}
    if not layers:
        raise ValueError("model must have a convolution, linear or recurrent layer or attention to count, got none")
    outputs: dict[str, int] = {}  # how many numbers each put out

    def note(name: str, _: nn.Module, inputs: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0].data  # of a packed sequence too
        outputs[name] = outputs.get(name, 0) + first.numel()

    for name, layer in layers.items():
        layer.register_forward_hook(partial(note, name))
    # fused attention cannot be counted: nn.MultiheadAttention's needs gradients to be off, the other is switched off
    translating = translated(f"the forward pass of one input of input_shape {tuple(x.shape[1:])}", model)
    with translating, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    paths = dict(model.named_modules(remove_duplicate=False))  # a module has one of its names in the counter
    counts = {id(paths.get(key.partition(".")[2])): ops for key, ops in counter.get_flop_counts().items()}
    rest, macs = counter.get_total_flops() // 2, dict[str, int]()
    for name in sorted(layers, key=[*outputs, *layers].index):
        layer = layers[name]
        flops = Counter(counts.get(id(layer), {}))
        for child in layer.children():  # those of a parametrization: elsewhere
            flops.subtract(counts.get(id(child), {}))
        rest -= flops.total() // 2
        macs |= _parts(name, layer, outputs.get(name, 0), flops)
    return macs | ({"elsewhere": rest} if rest > 0 else {})


def _parts(name: str, layer: Any, outputs: int, flops: Counter[Any]) -> dict[str, int]:
    """Return name -> MACs of a layer, of its parts where it is attention: two FLOPs each."""
    total = flops.total() // 2
    if isinstance(layer, nn.RNNBase):  # by formula: fused kernels are not counted
        width = layer.proj_size or layer.hidden_size
        steps = outputs // (width * (2 if layer.bidirectional else 1))
        return {name: steps * sum(p.numel() for p in layer.parameters() if p.ndim == 2)}
    if not isinstance(layer, nn.MultiheadAttention):
        return {name: total}
    products = sum(count for op, count in flops.items() if "bmm" in str(op)) // 2
    last = outputs * layer.embed_dim
    counts = {"": total - products - last, ".products": products, ".out_proj": last}
    return {f"{name}{part}".removeprefix("."): count for part, count in counts.items()}


def _row(name: str, layer: Any, macs: int) -> LayerCost:
    weight = _weight(layer)
    return LayerCost(
        name=name,
        type="" if layer is None else type(layer).__name__,
        weight_bits=_bits(layer, "weight_quantizer", "q_weight_quantizer", "map_quantizer"),
        activation_bits=_bits(layer, "input_quantizer", "map_quantizer"),
        shape=() if weight is None else tuple(weight.shape),
        parameters=0 if layer is None else sum(p.numel() for p in layer.parameters(recurse=False)),
        macs=macs,
    )


def _weight(layer: Any) -> Tensor | None:
    return getattr(layer, "in_proj_weight", getattr(layer, "weight", None))


def _bits(layer: Any, *quantizers: str) -> int:
    return next((getattr(layer, name).bits for name in quantizers if hasattr(layer, name)), FLOAT_BITS)
