"""Splits that are no tensors: data sets of samples, and batches as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, default_collate

from landscape.model import samples_of

from .image_files import ImageFiles

Split = Any  # a pair of tensors (inputs, targets), a map-style Dataset, a DataLoader, or a list of batches


_NO_BATCH = (Number, str, bytes)
_NO_BATCHES = (Tensor, np.ndarray, Mapping, Set, str, bytes)


def is_pair(split: Any) -> bool:
    """Return whether a split is a pair of tensors (of image files and labels)."""
    pair = isinstance(split, tuple) and len(split) == 2 and isinstance(split[1], Tensor)
    return pair and isinstance(split[0], Tensor | ImageFiles)


def is_dataset(split: Any) -> bool:
    """Return whether a split has samples by number: a map-style data set, torch's or another's."""
    batches = isinstance(split, DataLoader | IterableDataset | Sequence | Mapping | Iterator | Tensor | np.ndarray)
    return not batches and hasattr(split, "__getitem__") and hasattr(split, "__len__")


def check_stream(split: Any, name: str) -> None:
    """Raise if a split is no pair of tensors and cannot be read again and again, batch by batch."""
    what = f"{name} must be a pair of tensors (inputs, targets), a Dataset, a DataLoader or a list of batches"
    if isinstance(split, Iterator):
        raise TypeError(f"{what}, got one that can be read only once ({type(split).__name__}): pass list(…)")
    parts = split if isinstance(split, list | tuple) else ()
    arrays = [isinstance(part, Tensor | np.ndarray) for part in parts]
    odd = any(part is None or isinstance(part, _NO_BATCH) for part in parts)
    if arrays == [True, True] or (any(arrays) and isinstance(split, tuple)) or odd:
        kinds = f"a {type(split).__name__} of {' and '.join(type(part).__name__ for part in parts[:3])}"
        raise TypeError(f"{what}, got {kinds}: pass the tuple of two tensors (x, y)")
    if not isinstance(split, Iterable) | is_dataset(split) or isinstance(split, _NO_BATCHES):
        raise TypeError(f"{what}, got {type(split).__name__}")
    try:
        length = len(split)  # type: ignore[arg-type]
    except TypeError:
        remedy = "an epoch needs an end; give its sampler or data set a len(), or pass a list of batches"
        raise TypeError(f"{what}, got a {type(split).__name__} without a length: {remedy}") from None
    if not length:
        raise ValueError(f"{name} must hold at least one sample, got none")


def collated(split: Any, rows: Iterable[int]) -> Any:
    """Return samples of a data set as one batch."""
    return default_collate([split[row] for row in rows])


def batches_of(split: Any) -> Iterator[Any]:
    """Yield the batches of one pass, as many as its length says.

    Raises:
        ValueError: If there are more, or none, or one is empty.
    """
    count = -1
    for count, batch in enumerate(split):
        if count >= len(split):
            raise ValueError(f"data says that it has {len(split)} batches and gives more: does it end?")
        if samples_of(batch) == 0:
            raise ValueError(f"data must hold at least one sample in each batch, got none in batch {count + 1}")
        yield batch
    if count < 0:
        raise ValueError("data must hold at least one batch, got none")


def share_of(split: Any, rank: int, world_size: int) -> Any:
    """Return what one of several processes takes of batches: every `world_size`-th of a list, its own of a loader.

    Raises:
        ValueError: If a loader gives every process the same samples, or a list has too few batches.
    """
    if world_size == 1 or is_distributed(split):
        return split
    if isinstance(split, DataLoader):
        rule = f"a DataLoader must have a torch.utils.data.DistributedSampler for {world_size} processes"
        raise ValueError(f"{rule}, got {type(split.sampler).__name__}")
    if len(split) < world_size:
        raise ValueError(f"data must hold a batch for each of {world_size} processes, got {len(split)}")
    return split[rank : len(split) // world_size * world_size : world_size]


def is_distributed(split: Any) -> bool:
    """Return whether a loader gives each process samples of its own."""
    return any(isinstance(sampler, DistributedSampler) for sampler in _samplers(split))


def _samplers(split: Any) -> tuple[Any, ...]:
    """Return a loader's samplers: of samples, of batches, and the one that those are made of."""
    batches = getattr(split, "batch_sampler", None)
    return getattr(split, "sampler", None), batches, getattr(batches, "sampler", None)


def begin_epoch(split: Any, epoch: int, seed: int) -> None:
    """Have a loader's samplers and generators draw by the epoch alone, so that a resumed training draws the same."""
    for part in (split, *_samplers(split)):
        if (set_epoch := getattr(part, "set_epoch", None)) is not None:
            set_epoch(epoch)
        if isinstance(generator := getattr(part, "generator", None), torch.Generator):
            generator.manual_seed(seed)


def samples_in(split: Any) -> int | None:
    """Return how many samples there are to draw from, None where they come in batches."""
    return len(split[1]) if is_pair(split) else len(split) if is_dataset(split) else None
