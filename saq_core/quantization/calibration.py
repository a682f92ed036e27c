"""Calibration: steps, clips and signs of activation quantizers from data."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from landscape.checking import numbers
from landscape.model import measurement_mode, quantized_layers

from ..contexts import check_loaded
from ..data.feeding import Forward, call, feed, on_one
from .attention import AttentionProducts
from .base import Method, Quantizer
from .convert import leave_float
from .usage import Usage


@torch.no_grad()
def calibrate(
    model: nn.Module, data: Any, *, forward: Forward | None = None, batches: int = 8, method: Method | None = None
) -> nn.Module:
    """Set sign and step, clip or offset of every activation quantizer from data; return the model.

    Every quantizer passes the values through and records a sample of them, and their extremes; then each becomes
    unsigned if no value was negative (unless it was made with a sign), and sets its range by `method`. A quantizer that
    no value reaches is left unchanged, with a warning; so is, in full precision, a layer whose weight the network reads
    without calling it. A warning names modules that multiply activations with each other (attention in plain
    operations or by `scaled_dot_product_attention`): those products stay float. Every module's mode is restored; after
    an error the model is as before.

    Args:
        model: A network from `quantize`.
        data: Anything with a `.probe`, as `Data` has (un-augmented training images), a tensor of inputs, a tuple
            (x, y), a mapping, a Dataset of samples, or an iterable (a list, a loader) of batches: tensors, tuples whose
            first part is for the network, mappings, which become arguments by name (targets only where the model
            needs them), or other objects, which are handed on as they are. Floating inputs are cast to the model's
            dtype.
        forward: How to run the model on a batch, forward(model, batch); the batch is as it came, labels included, on
            the model's device. None = as said above.
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
    check_loaded(model)
    quantizers = {n: m for n, m in model.named_modules() if isinstance(m, Quantizer) and m.activation}
    try:
        with measurement_mode(model):  # which takes back what its forward passes leave, so the records as well
            for quantizer in quantizers.values():
                quantizer.observe_()
            first = feed(model, data, batches, forward)
            records = [quantizer.records for quantizer in quantizers.values()]
        for quantizer, seen in zip(quantizers.values(), records, strict=True):
            quantizer.records = seen
        missed = [name for name, q in quantizers.items() if q.observed() is None]  # all are checked before one is set
        for quantizer in quantizers.values():
            quantizer.finish_(method=method)
    finally:
        for quantizer in quantizers.values():
            quantizer.finish_(keep=False)  # without effect after a success
    reached = partial(_reached, model, forward)
    bypassed, products = on_one(reached, model, first)[0] if forward is None else reached(first)
    for name in bypassed:
        how = "the network reads its weight directly, not through the layer"
        warnings.warn(f"{name} stays in full precision: {how}", stacklevel=4)
        leave_float(model, name)
        missed = [other for other in missed if not other.startswith(f"{name}.")]
    if missed:
        warnings.warn(f"calibration never reached {', '.join(missed)}: left as they were", stacklevel=4)
    if products and quantizers:
        names = [f"{name or 'the model'} ({type(model.get_submodule(name)).__name__})" for name in products]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        how = ", ".join(sorted(set(products.values())))
        rule = f"multiply activations with activations ({how}): those products stay float"
        warnings.warn(f"{', '.join(names[:3])}{more} {rule}", stacklevel=4)
    return model


def _reached(model: nn.Module, forward: Forward | None, x: Any) -> tuple[list[str], dict[str, str]]:
    """Return the quantized layers whose weight the network reads without calling them, and its products of activations.

    Of such a layer delta does not reach the output. Products are module -> function, without those that are quantized.

    Args:
        model: quantized and calibrated.
        forward: See `calibrate`.
        x: inputs of a batch, for one forward and backward pass.
    """
    layers = quantized_layers(model).items()
    pairs = {name: [getattr(layer, layer.weight_name), layer.delta] for name, layer in layers}
    with measurement_mode(model), torch.enable_grad():
        tensors = [tensor.requires_grad_() for pair in pairs.values() for tensor in pair]
        with Usage(model) as usage:
            returned = call(model, x, forward)
        outputs = [o for o in tree_leaves((returned, usage.output)) if isinstance(o, Tensor) and o.requires_grad]
        sums = [output.double().sum() for output in outputs]
        slopes = torch.autograd.grad(sums, tensors, allow_unused=True) if sums and tensors else ()
    used = [slope is not None for slope in slopes]
    bypassed = [n for n, weight, delta in zip(pairs, used[::2], used[1::2], strict=False) if weight and not delta]
    ours = {name for name, module in model.named_modules() if isinstance(module, AttentionProducts)}
    return bypassed, {name: how for name, how in usage.products.items() if name not in ours}
