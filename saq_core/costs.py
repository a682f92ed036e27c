"""The cost of a network: multiplications, bit operations and bits of storage, layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from landscape.checking import numbers
from landscape.model.errors import translated

from .contexts import check_loaded
from .data.feeding import call, first_inputs, on_one, shapes_of
from .quantization import Bits, dequantize, find_layers, quantize
from .results import Shown

FLOAT_BITS = 32
COUNTED = (_ConvNd, nn.Linear, nn.RNNBase, nn.MultiheadAttention)  # others where their weights multiply
IMAGE_BITS = 8  # of the first convolution's input: images are 8-bit already


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer.

    Args:
        name: Of the module; "elsewhere" for multiplications outside of any layer: in attention of two activations.
        type: Of the module.
        weight_bits: Of the weight, or of the second operand in a product of two activations.
        activation_bits: Of the input; 8 in a first convolution with quantized weights whose input is an image.
        shape: Of the weight; () where there is none.
        parameters: Weights and biases, without steps and clips.
        macs: Multiply-accumulate operations for one sample, all uses of the layer together.
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
        """Multiply-accumulate operations for one sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations for one sample."""
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


def describe(model: nn.Module, example: Any = None, *, first_input_bits: int = IMAGE_BITS) -> Description:
    """Count what one sample costs in `model`, layer by layer, from one forward pass of a copy.

    ``BOPs = MACs · weight bits · activation bits``: a convolution has k²·(C_in/groups)·C_out·H·W MACs, a linear layer
    in·out per row, each of the two products of attention queries·keys·width, a recurrent layer its matrices times time
    steps. Norms, biases, pooling and additions
    cost nothing. Use it to compare networks of different bits, and to see what is not quantized.

    Args:
        model: Any network; float, quantized (calibrated or not). It is left as it is.
        example: The shape of one input, without the batch: (channels, height, width). Or a batch, of which the first
            sample is run: a tensor of inputs (n, …), tokens (n, length) too; a pair (x, y); a mapping, which becomes
            arguments by name (without its labels); or what holds batches (a list, a loader, `Data`, anything with a
            `.probe`), of which the first is taken. A network that refuses one sample alone runs the batch, and the
            counts are divided by n. None takes the probe of the model, or the shape that `build_model` noted.
        first_input_bits: What a first convolution with quantized weights counts as its input's bits, at most: images
            are 8-bit already. 32 counts an image that is not quantized as 32.

    Raises:
        ValueError: If no example is given and the model has none, if the example holds no sample or does not fit the
            network, or if there is no layer to count.

    Cost: a copy of the model and one forward pass of one sample.

    Source: Liu et al., Sharpness-aware Quantization (2021), released code, which has no attention.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 10))
        >>> saq_core.describe(model, (3, 8, 8)).frame["macs"].tolist()
        [7776, 2880]
        >>> model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7))
        >>> saq_core.describe(model, torch.randint(7, (2, 5))).macs  # of one text of 5 tokens
        140
    """
    numbers(whole=True, at_least=1, at_most=FLOAT_BITS, first_input_bits=first_input_bits)
    check_loaded(model, may_be_meta=True)
    macs, samples = on_one(partial(_count, model), model, first_inputs(model, example))
    macs = {name: count // samples for name, count in macs.items()}
    modules = dict(model.named_modules())
    rows = [_row(name, modules.get(name), count) for name, count in macs.items()]
    if isinstance(modules.get(rows[0].name), _ConvNd) and rows[0].weight_bits < FLOAT_BITS:
        rows[0] = replace(rows[0], activation_bits=min(rows[0].activation_bits, first_input_bits))
    steps = {id(p) for m in modules.values() if getattr(m, "is_quantizer", False) for p in m.parameters()}
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in steps)
    used = {id(m): (_weight(m), row.weight_bits) for row in rows if (m := modules.get(row.name)) is not None}
    sizes: dict[tuple[int, int], int] = {}  # by tensor and width: an embedding may share the weight of the head
    for module in modules.values():
        weight, width = used.get(id(module), (None, FLOAT_BITS))
        sizes |= {(id(p), width if p is weight else FLOAT_BITS): p.numel() for p in module.parameters(recurse=False)}
    bits = sum(width * size for (_, width), size in sizes.items())
    return Description(tuple(rows), parameters, bits, find_layers(model)[1])


def cost(
    model: nn.Module, example: Any = None, *, bits: Bits | None = None, first_input_bits: int = IMAGE_BITS
) -> Description:
    """Return ``.macs``, ``.bops``, ``.parameters`` and ``.size_bytes`` of a sample, of `model` or of it at other bits.

    Args:
        model: See `describe`; a float network where `bits` are given.
        example: See `describe`.
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
    return describe(network, example, first_input_bits=first_input_bits)


def _count(model: nn.Module, x: Any) -> dict[str, int]:
    """Return layer -> MACs in the order of first use; what was never used, and what is of no layer, comes last."""
    from torch.utils.flop_counter import FlopCounterMode

    model = dequantize(model).eval().requires_grad_()
    # attention is counted as one, because it never calls its own out_proj
    inside = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    named = {name: m for name, m in model.named_modules() if id(m) not in inside}
    layers = {name: m for name, m in named.items() if isinstance(m, COUNTED) or _has_matrix(m)}
    outputs: dict[str, int] = {}  # how many numbers each put out

    def note(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        first = next((t for t in tree_leaves(output) if isinstance(t, Tensor)), torch.empty(0))
        outputs[name] = outputs.get(name, 0) + first.numel()

    for name, layer in layers.items():
        layer.register_forward_hook(partial(note, name))
    # fused attention cannot be counted: nn.MultiheadAttention's needs gradients to be off, the other is switched off
    translating = translated(f"the forward pass of an example of shape {shapes_of(x)}", model)
    with translating, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model, x)
    paths = dict(model.named_modules(remove_duplicate=False))  # a module has one of its names in the counter
    counts = {id(paths.get(key.partition(".")[2])): ops for key, ops in counter.get_flop_counts().items()}
    rest, macs, kept = counter.get_total_flops() // 2, dict[str, int](), find_layers(model)[0]
    for name in sorted(layers, key=[*outputs, *layers].index):
        layer = layers[name]
        flops = Counter(counts.get(id(layer), {}))
        for child in layer.children():  # those of a parametrization: elsewhere
            flops.subtract(counts.get(id(child), {}))
        rest -= flops.total() // 2
        if isinstance(layer, COUNTED) or name in kept or flops.total():  # others' matrices need not multiply
            macs |= _parts(name, layer, outputs.get(name, 0), flops)
    if not macs:
        raise ValueError("model must have a convolution, linear or recurrent layer or attention to count, got none")
    return macs | ({"elsewhere": rest} if rest > 0 else {})


def _has_matrix(module: nn.Module) -> bool:
    return not [*module.children()] and any(p.ndim >= 2 for p in module.parameters(recurse=False))


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
