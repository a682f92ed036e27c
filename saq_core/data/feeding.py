"""Data of any kind through a network: their batches, the inputs of the first, and those of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from numbers import Number
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from landscape.checking import numbers
from landscape.model import call_by_name, generators_of, iterated_apart, mapped, measurement_mode, moved, translated

from ..contexts import device_of, dtype_of
from .datasets import Data
from .image_files import ImageFiles
from .streams import is_dataset, is_pair

Forward = Callable[[nn.Module, Any], Any]
T = TypeVar("T")
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
    device, dtype, first = device_of(model), dtype_of(model), None
    for batch in islice(batches_in(data, name), batches):
        x = moved(batch, device, None) if forward else moved(inputs_of(batch, name), device, dtype)
        parts = [part for part in tree_leaves(x) if isinstance(part, Tensor)]
        if not all((part < torch.inf).all() for part in parts if part.is_floating_point()):  # masks may hold −inf
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
    if isinstance(data, Tensor):
        yield from data.split(BATCH) if data.ndim and len(data) else ()
    elif _is_batch(data) and isinstance(data[0], Tensor):
        yield from (tuple(part[k : k + BATCH] for part in data) for k in range(0, len(data[0]), BATCH))
    elif isinstance(data, Mapping) or (_is_batch(data) and isinstance(data[0], Mapping)):
        yield data
    elif isinstance(data, Iterable):
        yield from iterated_apart(data)
    else:
        rule = f"{name} must be (x, y), an iterable of batches, a Dataset, or carry a .probe as Data does"
        raise ValueError(f"{rule}, got {type(data).__name__}")


def inputs_of(batch: Any, name: str) -> Any:
    """Return what the network takes of a batch: the first of several parts, or the batch."""
    if batch is None or isinstance(batch, str | bytes | int | float) or (isinstance(batch, list | tuple) and not batch):
        raise ValueError(f"{name} must hold batches (x, y), mappings or tensors, got {type(batch).__name__}")
    first = batch[0] if isinstance(batch, list | tuple) else batch
    return dict(first) if isinstance(first, Mapping) else first


def first_inputs(model: nn.Module, example: Any, name: str = "example") -> Any:
    """Return the inputs of the first batch of an example, zeros of a shape; `name` is that of the argument."""
    if example is None:
        example = getattr(model, "probe", getattr(model, "architecture", {}).get("input_shape"))
    if example is None:
        raise ValueError(f"{name} must be given for this model, got None: pass the shape of one input, or a batch")
    if isinstance(example, Data) and is_pair(example.train):  # the probe of image files is a thousand of them
        example = example.input_shape if isinstance(example.train[0], ImageFiles) else example
    if isinstance(example, list | tuple) and any(isinstance(length, Number) for length in example):
        for length in example:
            numbers(whole=True, at_least=1, note="each length of a shape", **{name: length})
        return torch.zeros(1, *example)
    data = [example] if _is_batch(example) else [(example,)] if _is_packed(example) else example
    with measurement_mode(model, generators_of(data)):  # a loader draws
        x = next((inputs_of(batch, name) for batch in batches_in(data, name)), None)
    if not _samples(x):
        raise ValueError(f"{name} must hold a batch of at least one sample, in tensors, got {shapes_of(x) or 'none'}")
    return x


def on_one(run: Callable[[Any], T], model: nn.Module, x: Any) -> tuple[T, int]:
    """Run on the first sample of inputs, on all if that fails; return the result, and of how many samples it is."""
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex())
    device, dtype, samples = device_of(model), next(dtypes, torch.float32), _samples(x)
    one = mapped(x, lambda t: t[:1] if t.shape[:1] == (samples,) else t)
    if _samples(one) < samples:
        with suppress(Exception):  # of a network that takes batches of one size
            return run(moved(one, device, dtype)), 1
    return run(moved(x, device, dtype)), samples


def shapes_of(x: Any) -> str:
    """Return the shapes of all tensors, for a message."""
    return ", ".join(str(tuple(t.shape)) for t in tree_leaves(x) if isinstance(t, Tensor))


def _samples(x: Any) -> int:
    """Return the number of samples of inputs, the first length of the first tensor; 0 where there is none."""
    for t in tree_leaves(x, is_leaf=_is_packed):
        if isinstance(t, Tensor | PackedSequence) and t.data.ndim:
            return int(t.batch_sizes[0]) if isinstance(t, PackedSequence) else len(t)
    return 0


def _is_batch(data: Any) -> bool:
    """Return whether data are one pair (inputs of any kind, targets)."""
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)


def _is_packed(x: Any) -> bool:
    return isinstance(x, PackedSequence)
