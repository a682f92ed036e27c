"""Batches of data, of whatever kind, through a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, IterableDataset

from landscape.model import call_by_name, translated

from ..contexts import device_of
from ..data import is_dataset

Forward = Callable[[nn.Module, Any], Any]
BATCH = 128  # samples of each, where the split is ours


def feed(model: nn.Module, data: Any, batches: int, forward: Forward | None = None, name: str = "data") -> Any:
    """Run the model on at most `batches` batches of data, on its device; return the first, as `call` takes it.

    Args:
        model: Any network, in the mode in which it is to run.
        data: See `calibrate`.
        batches: At most.
        forward: See `calibrate`.
        name: Of the argument that held the data.

    Raises:
        ValueError: If there are no data, an input is NaN or infinite, or the network cannot be run on them.
    """
    device, first = device_of(model), None
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for _, batch in zip(range(batches), batches_in(data, name), strict=False):
        x = inputs_of(batch, name) if forward is None else batch
        x = x.to(device) if hasattr(x, "to") else x
        cast = {True: dtype} if forward is None else {}
        x = tree_map_only(Tensor, lambda t: t.to(device, cast.get(t.is_floating_point(), t.dtype)), x)  # noqa: B023
        if not all(part.isfinite().all() for part in tree_leaves(x) if isinstance(part, Tensor)):
            raise ValueError(f"{name} must be finite, got NaN or infinity in the inputs: leave these samples out")
        with translated(f"the forward pass of a batch of {name}", model):
            call(model, x, forward)
        first = x if first is None else first
    if first is None:
        raise ValueError(f"{name} must hold at least one sample, got none")
    return first


def call(model: nn.Module, x: Any, forward: Forward | None = None) -> Any:
    """Return the network's output for the inputs of a batch: those of a mapping by name; or what `forward` returns."""
    if forward is not None:
        return forward(model, x)
    return call_by_name(model, x, with_targets=False) if isinstance(x, Mapping) else model(x)


def batches_in(data: Any, name: str) -> Iterator[Any]:
    """Yield the batches of data of any kind: a `.probe`, a pair, a tensor, a Dataset, batches."""
    data = getattr(data, "probe", data)
    if is_dataset(data) or isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=BATCH)
    is_pair = isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)
    if isinstance(data, Tensor):
        yield from data.split(BATCH) if data.ndim and len(data) else ()
    elif is_pair and isinstance(data[0], Tensor):
        yield from (tuple(part[k : k + BATCH] for part in data) for k in range(0, len(data[0]), BATCH))
    elif isinstance(data, Mapping) or (is_pair and isinstance(data[0], Mapping)):
        yield data
    elif isinstance(data, Iterable):
        yield from data
    else:
        rule = f"{name} must be (x, y), an iterable of batches, a Dataset, or carry a .probe as Data does"
        raise ValueError(f"{rule}, got {type(data).__name__}")


def inputs_of(batch: Any, name: str) -> Any:
    """Return what the network takes of a batch: the first of several parts, or the batch."""
    if batch is None or isinstance(batch, str | bytes | int | float) or (isinstance(batch, list | tuple) and not batch):
        raise ValueError(f"{name} must hold batches (x, y), mappings or tensors, got {type(batch).__name__}")
    first = batch[0] if isinstance(batch, list | tuple) else batch
    return dict(first) if isinstance(first, Mapping) else first
