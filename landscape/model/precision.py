"""Switches of PyTorch that change what a network computes: TF32, autocast, fused attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

Switch = tuple[Callable[[], Any], Callable[[Any], Any], Any]
_CUDA: Any = torch.backends.cuda
ATTENTION = {getattr(_CUDA, f"{k}_sdp_enabled"): k for k in ("flash", "mem_efficient", "cudnn", "math")}


def switches_of(device: torch.device) -> Iterator[Switch]:
    """Yield how to read and to write each switch, and its value for full precision and one function.

    TF32, and bfloat16 on a CPU, are off: curvature in ten bits of mantissa is noise. Attention takes its math kernel,
    the only one with a second derivative (others in passes without gradients: `attention_by`), and
    transformer layers not the fused path, which torch takes without gradients alone, and which computes padded
    positions otherwise.
    """
    backends: Any = torch.backends
    flags = [backends.cuda.matmul] + [getattr(backends.cudnn, part) for part in ("conv", "rnn")]
    flags += [getattr(backends.mkldnn, part) for part in ("matmul", "conv", "rnn")]
    for flag in flags:
        yield partial(getattr, flag, "fp32_precision"), partial(_set_precision, flag), "ieee"
    for read, kernel in ATTENTION.items():
        yield read, getattr(_CUDA, f"enable_{kernel}_sdp"), kernel == "math"
    yield backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled, False
    for kind in sorted({"cpu", device.type}):
        if torch.amp.is_autocast_available(kind):
            yield partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind), False


@contextlib.contextmanager
def attention_by(kernels: Mapping[str, bool]) -> Iterator[None]:
    """Let attention take these kernels; fused ones have no second derivative."""
    before = {kernel: read() for read, kernel in ATTENTION.items()}
    try:
        for kernel, is_allowed in kernels.items():
            getattr(_CUDA, f"enable_{kernel}_sdp")(is_allowed)
        yield
    finally:
        for kernel, is_allowed in before.items():
            getattr(_CUDA, f"enable_{kernel}_sdp")(is_allowed)


def _set_precision(flag: Any, value: str) -> None:
    flag.fp32_precision = "none"  # what the parent says, where that was the value
    if flag.fp32_precision != value:
        flag.fp32_precision = value
