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
) -> Iterable[Any]:
    """Return the batches: as they come, or cut out of (x, y), a ``pair`` of tensors.

    Args:
        model: carries the probe that is the default.
        data: ``(x, y)``, batches, a DataLoader, or anything with a ``.probe`` (what `saq_core.train` takes).
        batch_size: rows per batch, at most.
        device: where the tensors of a pair are moved, once.
        pair: the types that a pair may have.

    Raises:
        ValueError: no probe; a pair of unequal length, or empty.
        TypeError: data that can be read only once, or that are no batches.
    """
    data = probe_of(model if data is None else data)
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
    return data


def probe_of(data: Any) -> Any:
    """Return the probe that something carries, None for a network without one; else the thing itself."""
    return getattr(data, "probe", None if isinstance(data, nn.Module) else data)


def _chunks(x: Tensor, y: Tensor, batch_size: int | None, device: torch.device) -> list[Any]:
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"data=(x, y) needs as many targets as inputs and at least one, got {len(x)} and {len(y)}")
    most = max(1, _CPU_ELEMENTS // x[0].numel()) if device.type == "cpu" else _ACCELERATOR_ROWS
    folds = min(_PARTS, len(x) // _PART_ROWS, max(_FEW_PARTS, x.numel() // _PART_ELEMENTS))
    fewest = -(-len(x) // (batch_size or most))
    x, y = x.to(device), y.to(device)  # moved once: a probe lives on the CPU, and every pass reads it
    # of nearly equal size: BatchNorm cannot be recomputed on a last batch of one
    parts = fewest if batch_size else max(fewest, folds, 1)
    return list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))


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
