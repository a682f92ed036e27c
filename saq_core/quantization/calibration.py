"""Calibration: steps, clips and signs of activation quantizers from data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from landscape.checking import numbers
from landscape.model.errors import translated
from landscape.model.measuring import measurement_mode

from ..contexts import device_of
from .base import Method, Quantizer
from .convert import leave_float


@torch.no_grad()
def calibrate(model: nn.Module, data: Any, *, batches: int = 8, method: Method | None = None) -> nn.Module:
    """Set sign and step, clip or offset of every activation quantizer from data; return the model.

    Every quantizer passes the values through and records a sample of them, and their extremes; then each becomes
    unsigned if no value was negative (unless it was made with a sign), and sets its range by `method`. A quantizer that
    no value reaches is left unchanged, with a warning; so is, in full precision, a layer whose weight the network reads
    without calling it. Every module's mode is restored; after an error the model is as
    before.

    Args:
        model: A network from `quantize`.
        data: Anything with a `.probe`, as `Data` has (un-augmented training images), a tensor of inputs, a tuple
            (x, y), or an iterable (a list, a loader) of such batches, or of mappings, which become arguments by name
            (without their labels). Floating inputs are cast to the model's dtype.
        batches: Number of batches used, at most (128 samples each where the split is ours).
        method: "mse" (the range of least squared error), "minmax" (all values), "percentile" (99.99 % of the sample),
            or None: "minmax" for `MinMax`, "mse" for every other quantizer.

    Raises:
        ValueError: If there are no data, if an input or activation is NaN or infinite, if values are negative where a
            1-bit quantizer has no level on one side of zero, or if the method is unknown.

    Cost: `batches` forward passes; for "mse" 80 quantizations of a sample per layer, 240 where the range has two ends.

    Example:
        >>> import torch, saq_core
        >>> layers = torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        >>> model = saq_core.quantize(torch.nn.Sequential(*layers))
        >>> saq_core.calibrate(model, torch.randn(16, 4))[2].input_quantizer
        LSQ(bits=8, signed=False)
    """
    numbers(whole=True, at_least=1, batches=batches)
    quantizers = {n: m for n, m in model.named_modules() if isinstance(m, Quantizer) and m.activation}
    try:
        with measurement_mode(model):  # which takes back what its forward passes leave, so the records as well
            for quantizer in quantizers.values():
                quantizer.observe_()
            first = _run(model, data, batches)
            records = [quantizer.records for quantizer in quantizers.values()]
        for quantizer, seen in zip(quantizers.values(), records, strict=True):
            quantizer.records = seen
        missed = [name for name, q in quantizers.items() if q.observed() is None]  # all are checked before one is set
        for quantizer in quantizers.values():
            quantizer.finish_(method=method)
    finally:
        for quantizer in quantizers.values():
            quantizer.finish_(keep=False)  # without effect after a success
    for name in bypassed_layers(model, first):
        warnings.warn(
            f"{name} stays in full precision: the network reads its weight directly, not through the layer",
            stacklevel=4,
        )
        leave_float(model, name)
        missed = [other for other in missed if not other.startswith(f"{name}.")]
    if missed:
        warnings.warn(f"calibration never reached {', '.join(missed)}: left as they were", stacklevel=4)
    return model


def _run(model: nn.Module, data: Any, batches: int) -> Any:
    """Run the model on the batches; return the first."""
    device = device_of(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    first = None
    for _, x in zip(range(batches), _inputs(data), strict=False):
        x = tree_map_only(Tensor, lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), x)
        if not all(part.isfinite().all() for part in tree_leaves(x) if isinstance(part, Tensor)):
            raise ValueError("data must be finite, got NaN or infinity in the inputs: leave these samples out")
        with translated("calibration on a batch of data", model):
            call(model, x)
        first = x if first is None else first
    if first is None:
        raise ValueError("data must hold at least one sample, got none")
    return first


def call(model: nn.Module, x: Any) -> Any:
    """Return the network's output for the inputs of a batch: those of a mapping by name."""
    if not isinstance(x, Mapping):
        return model(x)
    try:
        return model(**x)
    except TypeError as error:
        names = ", ".join(map(repr, x))
        raise ValueError(f"a batch is a mapping, whose entries must be arguments of the model, got {names}") from error


def bypassed_layers(model: nn.Module, x: Any) -> list[str]:
    """Name the quantized layers whose weight the network reads without calling them: delta does not reach the output.

    Args:
        model: quantized and calibrated.
        x: inputs of a batch; one forward and backward pass of its first sample.
    """
    x = tree_map_only(Tensor, lambda tensor: tensor[:1], x)
    layers = {name: cast(Any, m) for name, m in model.named_modules() if hasattr(m, "quantized_weights")}
    pairs = {name: [getattr(layer, layer.weight_name), layer.delta] for name, layer in layers.items()}
    with measurement_mode(model), torch.enable_grad():
        tensors = [tensor.requires_grad_() for pair in pairs.values() for tensor in pair]
        outputs = [o for o in tree_leaves(call(model, x)) if isinstance(o, Tensor) and o.requires_grad]
        sums = [output.double().sum() for output in outputs]
        slopes = torch.autograd.grad(sums, tensors, allow_unused=True) if sums and tensors else ()
    used = [slope is not None for slope in slopes]
    return [name for name, weight, delta in zip(pairs, used[::2], used[1::2], strict=False) if weight and not delta]


def _without_labels(batch: Any) -> Any:
    return {k: v for k, v in batch.items() if k != "labels"} if isinstance(batch, Mapping) else batch


def _inputs(data: Any) -> Iterator[Tensor]:
    data = getattr(data, "probe", data)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        data = data[0]
    if isinstance(data, Tensor):
        yield from data.split(128) if data.ndim and len(data) else ()
    elif isinstance(data, Iterable):
        for batch in data:
            whole = isinstance(batch, Tensor | Mapping)
            if not whole and not (isinstance(batch, Sequence) and len(batch)):
                raise ValueError(f"data must hold batches (x, y), mappings or tensors, got {type(batch).__name__}")
            yield _without_labels(batch) if whole else batch[0]
    else:
        rule = "data must be (x, y), an iterable of batches, or carry a .probe as Data does"
        raise ValueError(f"{rule}, got {type(data).__name__}")
