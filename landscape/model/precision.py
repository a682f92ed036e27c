"""TF32 and other reduced precision that PyTorch may use, switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off, and bfloat16 on a CPU: curvature in ten bits of mantissa is noise."""
    backends: Any = torch.backends
    flags = [backends.cuda.matmul] + [getattr(backends.cudnn, part) for part in ("conv", "rnn")]
    flags += [getattr(backends.mkldnn, part) for part in ("matmul", "conv", "rnn")]
    before = [flag.fp32_precision for flag in flags]
    try:
        for flag in flags:
            flag.fp32_precision = "ieee"
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = "none"  # what the parent says, where that was the value
            if flag.fp32_precision != value:
                flag.fp32_precision = value
