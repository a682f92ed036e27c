"""The data of an objective: ``(x, y)`` cut into batches once, or batches as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Elements of input per batch on a CPU: the activations of 64 CIFAR images stay in its caches, and a forward pass in
# eight batches of 64 takes 0.4 of the time of one batch of 512.
_CPU_ELEMENTS = 200_000
_ACCELERATOR_ROWS = 1024
FOLDS = 16  # at most: parts of the data whose scatter tells the error over data
# Where tensors are cut here, so many parts for the sake of folds: fewer of small images, whose batches cost time.
_PARTS, _FEW_PARTS, _PART_ROWS, _PART_ELEMENTS = 10, 5, 32, 50_000


def source(
    model: nn.Module, data: Any, batch_size: int | None, device: torch.device, pair: Any = tuple | list
) -> tuple[Iterable[Any], list[Any]]:
    """Return the batches, and the fewest that will do where they were cut here out of (x, y), a ``pair`` of tensors."""
    if data is None:
        data = getattr(model, "probe", None)
        if data is None:
            raise ValueError(
                "the model carries no probe (saq_core.train leaves one): pass data=(x, y), or set model.probe = (x, y)"
            )
    if isinstance(data, Iterator):
        raise TypeError(
            "data can be read only once (a generator or iterator): pass (x, y), a list of batches or a DataLoader"
        )
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise TypeError(f"data must be (x, y), a list of batches or a DataLoader, got {type(data).__name__}")
    if isinstance(data, pair) and len(data) == 2 and all(isinstance(p, Tensor | np.ndarray) for p in data):
        x, y = map(torch.as_tensor, data)
        return _chunks(x, y, batch_size, device)
    return data, []


def _chunks(x: Tensor, y: Tensor, batch_size: int | None, device: torch.device) -> tuple[list[Any], list[Any]]:
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"data=(x, y) needs as many targets as inputs and at least one, got {len(x)} and {len(y)}")
    most = max(1, _CPU_ELEMENTS // x[0].numel()) if device.type == "cpu" else _ACCELERATOR_ROWS
    folds = min(_PARTS, len(x) // _PART_ROWS, max(_FEW_PARTS, x.numel() // _PART_ELEMENTS))
    fewest = -(-len(x) // (batch_size or most))
    x, y = x.to(device), y.to(device)  # moved once: a probe lives on the CPU, and every pass reads it
    # of nearly equal size: BatchNorm cannot be recomputed on a last batch of one
    parts = fewest if batch_size else max(fewest, folds, 1)
    narrow, wide = (list(zip(x.tensor_split(k), y.tensor_split(k), strict=True)) for k in (parts, fewest))
    return narrow, wide


def moved(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Bring a batch to a device, its floating tensors to a dtype, whatever it is made of."""
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None)
    if isinstance(batch, Mapping):
        return {key: moved(value, device, dtype) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [moved(value, device, dtype) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def rows_of(batch: Any) -> int:
    """Count the samples of a batch: the length of its first tensor."""
    while not isinstance(batch, Tensor):
        if not isinstance(batch, Mapping | list | tuple) or not batch:
            return 1
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch) if batch.ndim else 1


def nearly_all_alike(losses: Tensor, others: Tensor) -> bool:
    """Return whether samples lose the same in other company, but for the odd one that rounding took over a stair."""
    if len(losses) != len(others):
        return False
    apart = (losses - others).abs() > 1e-4 * (1 + losses.abs())
    return bool(apart.double().mean() < 0.02)


def check_labels(y: Tensor, classes: int) -> None:
    """Refuse labels that the output has no place for."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0…{classes - 1} for {classes} outputs, got {low}…{high}")
