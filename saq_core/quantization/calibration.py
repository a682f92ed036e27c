"""Calibration: steps, clips and signs of activation quantizers from data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checking import one_of

from ..contexts import device_of, evaluation_mode
from .base import Method, Quantizer


@torch.no_grad()
def calibrate(model: nn.Module, data: Any, *, batches: int = 8, method: Method | None = None) -> nn.Module:
    """Set sign and step, clip or offset of every activation quantizer from data; return the model.

    Every quantizer passes the values through and records a sample of them, and their extremes; then each becomes
    unsigned if no value was negative (unless it was made with a sign), and sets its range by `method`. A quantizer that
    no value reaches is left unchanged, with a warning. Every module's mode is restored; after an error the model is as
    before.

    Args:
        model: A network from `quantize`.
        data: Anything with a `.probe`, as `Data` has (un-augmented training images), a tensor of inputs, a tuple
            (x, y), or an iterable (a list, a loader) of such batches. Floating inputs are cast to the model's dtype.
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
    one_of("method", method, Method | None)
    quantizers = {n: m for n, m in model.named_modules() if isinstance(m, Quantizer) and m.activation}
    try:
        for quantizer in quantizers.values():
            quantizer.observe_()
        with evaluation_mode(model):
            _run(model, data, batches)
        missed = [name for name, q in quantizers.items() if q.observed() is None]  # all are checked before one is set
        for quantizer in quantizers.values():
            quantizer.finish_(method=method)
    finally:
        for quantizer in quantizers.values():
            quantizer.finish_(keep=False)  # without effect after a success
    if missed:
        warnings.warn(f"calibration never reached {', '.join(missed)}: left as they were", stacklevel=3)
    return model


def _run(model: nn.Module, data: Any, batches: int) -> None:
    """Run the model on the batches."""
    device = device_of(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    seen = 0
    for _, x in zip(range(batches), _inputs(data), strict=False):
        if not x.isfinite().all():
            raise ValueError("data must be finite, got NaN or infinity in the inputs: leave these samples out")
        model(x.to(device, dtype if x.is_floating_point() else x.dtype))
        seen += len(x)
    if not seen:
        raise ValueError("data must hold at least one sample, got none")


def _inputs(data: Any) -> Iterator[Tensor]:
    data = getattr(data, "probe", data)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        data = data[0]
    if isinstance(data, Tensor):
        yield from data.split(128) if len(data) else ()
    elif isinstance(data, Iterable):
        for batch in data:
            yield batch if isinstance(batch, Tensor) else batch[0]
    else:
        rule = "data must be (x, y), an iterable of batches, or carry a .probe as Data does"
        raise ValueError(f"{rule}, got {type(data).__name__}")
