"""The data of an objective: ``(x, y)`` cut into batches once, or batches as they come."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from .. import parallel

# Elements of input per batch on a CPU: the activations of 64 CIFAR images stay in its caches, and a forward pass in
# eight batches of 64 takes 0.4 of the time of one batch of 512.
_CPU_ELEMENTS = 200_000
_CPU_ROWS = 192  # at most, of small images: megabytes of activations are given back to the system, and asked anew
_ACCELERATOR_ROWS = 1024
KEPT = 2**28  # bytes, at most, of a loader's batches that stay on the device: it makes them anew, one by one, each pass
FOLDS = 16  # at most: parts of the data whose scatter tells the error over data
NEEDS_TARGETS = "data=(x, y) needs as many targets as inputs and at least one"
TARGETS = ("labels", "label", "targets", "target", "y")  # in the batches that are no pairs
_MOST_BATCHES = 10_000  # of data without a length
# Where tensors are cut here, so many parts for the sake of folds: fewer of small images, whose batches cost time.
_PARTS, _FEW_PARTS, _PART_ROWS, _PART_ELEMENTS = 10, 5, 32, 50_000


def source(
    model: nn.Module, data: Any, device: torch.device, has_objective: bool = False
) -> tuple[Iterable[Any], bool]:
    """Return the batches as they come, and whether they are one pair of tensors, which may be cut into smaller ones.

    Args:
        model: carries the probe that is the default.
        data: ``(x, y)``, one batch, batches, a DataLoader, or anything with a ``.probe`` (what `saq_core.train` takes).
        device: where the tensors of a pair are moved, once.
        has_objective: whether an objective takes the batches, whatever they are.

    Raises:
        ValueError: no probe; a list of two tensors; an empty pair.
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
    if isinstance(data, Mapping):
        return [data], False
    if not isinstance(data, Iterable) or isinstance(data, Tensor | np.ndarray | str | bytes):
        raise TypeError(f"data must be (x, y), a list of batches or a DataLoader, got {type(data).__name__}")
    data = iterated_apart(data)
    if isinstance(data, list | tuple) and len(data) == 2:
        tensors = [isinstance(part, Tensor | np.ndarray) for part in data]
        if all(tensors) and isinstance(data, list) and not has_objective:
            raise ValueError("data is a list of two tensors: pass the tuple (x, y), or [(x, y)] for a list of batches")
        if all(tensors) and isinstance(data, tuple):
            x, y = map(torch.as_tensor, data)
            if 0 in (y.shape[:1] + x.shape[:1]):
                raise ValueError(f"{NEEDS_TARGETS}, got {len(x)} and {len(y)}")
            return [(x.to(device), y.to(device))], True  # moved once: a probe lives on the CPU, every pass reads it
        if isinstance(data, tuple) and tensors[1]:
            return [(data[0], torch.as_tensor(data[1]))], False
    return data, False


def iterated_apart(data: Any) -> Any:
    """Return a DataLoader that shares no iterator with the one given, as those of persistent workers do."""
    if isinstance(data, DataLoader) and data.persistent_workers:
        data = copy.copy(data)
        vars(data).update(persistent_workers=False, _iterator=None)
    return data


def generators_of(data: Any) -> list[torch.Generator]:
    """Return the generators of a DataLoader that shuffles by itself: its own, and those of its samplers."""
    batches = getattr(data, "batch_sampler", None)
    parts = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    generators = {id(part): part for part in (getattr(part, "generator", None) for part in parts)}
    return [part for part in generators.values() if isinstance(part, torch.Generator)]


def probe_of(data: Any) -> Any:
    """Return the probe that something carries, None for a network without one; else the thing itself."""
    return getattr(data, "probe", None if isinstance(data, nn.Module) else data)


def cut(x: Tensor, y: Tensor, batch_size: int | None, has_folds: bool = True) -> list[Any]:
    """Cut a pair into batches that the caches hold, and into enough for an error over the data; of nearly equal size.

    BatchNorm cannot be recomputed on a last batch of one. Without folds as few as forward passes are fastest in.
    """
    most = max(1, _CPU_ELEMENTS // x[0].numel()) if x.device.type == "cpu" else _ACCELERATOR_ROWS
    large = x.numel() // _PART_ELEMENTS if x.device.type == "cpu" else 0  # launches cost an accelerator more
    folds = min(_PARTS, len(x) // _PART_ROWS, max(_FEW_PARTS, large))
    fewest = -(-len(x) // (batch_size or most))
    if not has_folds:
        folds = -(-len(x) // _CPU_ROWS) if x.device.type == "cpu" else 1
    parts = fewest if batch_size else max(fewest, folds, 1)
    return list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))


def some_rows(batch: Any, rows: int) -> Any:
    """Return a batch of at most so many samples, from all over it; None where it cannot be indexed."""
    target = target_of(batch)
    if not isinstance(target, Tensor) or target.ndim == 0:
        return None
    index = torch.linspace(0, len(target) - 1, min(rows, len(target)), device=target.device).long()
    return taken(batch, index, len(target))


def keeps_order(batches: Any) -> bool:
    """Return whether every pass gives the same batches in the same order: a list, or a loader that does not shuffle."""
    if isinstance(batches, list | tuple):
        return True
    plain = isinstance(batches, DataLoader) and type(batches.batch_sampler) is BatchSampler
    return plain and isinstance(batches.sampler, SequentialSampler)


def read_rows(batches: Iterable[Any]) -> list[int | None]:
    """Return how many samples each batch has, None where nothing tells.

    Raises:
        ValueError: batches that never end.
    """
    try:
        known = len(batches)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # a loader of an iterable data set does not know
        known = None
    rows: list[int | None] = []
    for batch in batches:
        rows.append(samples_of(batch))
        if len(rows) > (_MOST_BATCHES if known is None else max(known, 1)):
            length = "has no length" if known is None else f"says that it has {known}"
            raise ValueError(
                f"data has given {len(rows):,} batches and {length}: does it end? Pass a list of batches, or a loader "
                "whose len() is right"
            )
    return rows


def target_of(batch: Any) -> Any:
    """Return the targets of a batch: the second of a pair, or what is called so; None without any."""
    if isinstance(batch, list | tuple) and not isinstance(batch, PackedSequence):
        return batch[1] if len(batch) == 2 else None
    for name in TARGETS:
        target = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
        if target is not None:
            return target
    return None


def samples_of(batch: Any) -> int | None:
    """Count the samples of a batch by its targets, or by itself where it is one tensor; None where nothing tells."""
    target = batch if isinstance(batch, Tensor) else target_of(batch)
    if isinstance(target, Tensor | np.ndarray):
        return len(target) if target.ndim else 1
    return None


def bytes_of(batch: Any) -> float:
    """Return how many bytes the tensors of a batch take; infinitely many where it holds something else."""
    sizes: list[float] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    mapped(batch, count, lambda other: sizes.append(math.inf))
    return sum(sizes)


def with_values(batch: Mapping[str, Any], values: dict[str, Any]) -> Any:
    """Return a mapping of the same kind with other values."""
    if type(batch) is dict:
        return values
    other: Any = copy.copy(batch)
    other.update(values)
    return other


def moved(batch: Any, device: torch.device, dtype: torch.dtype | None, dtypes: Collection[torch.dtype] = ()) -> Any:
    """Bring a batch to a device, and its floating tensors to a dtype, if any, unless they have one of several.

    What needs no change is handed on as the very same object, and what is no plain container moves itself.
    """

    def change(tensor: Tensor) -> Tensor:
        cast = tensor.is_floating_point() and tensor.dtype not in dtypes
        tensor = tensor.clone() if tensor.is_inference() else tensor
        return tensor.to(device, dtype if cast else None)

    def other(part: Any) -> Any:
        there = part.to(device) if hasattr(part, "to") else part
        is_packed = isinstance(part, PackedSequence) and part.data.is_floating_point()
        return there.to(dtype) if is_packed and part.data.dtype not in dtypes else there

    return mapped(batch, change, other)


def mapped(batch: Any, change: Callable[[Tensor], Tensor], other: Callable[[Any], Any] = lambda part: part) -> Any:
    """Return a batch with its tensors changed, and what is no plain container by another function."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        values = {key: mapped(value, change, other) for key, value in batch.items()}
        return batch if all(value is batch[key] for key, value in values.items()) else with_values(batch, values)
    if isinstance(batch, list | tuple) and not isinstance(batch, PackedSequence):
        parts = [mapped(value, change, other) for value in batch]
        if all(a is b for a, b in zip(parts, batch, strict=True)):
            return batch
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return other(batch)


def taken(batch: Any, rows: Tensor | slice, samples: int) -> Any:
    """Return rows of everything in a batch; None where something has another length."""
    fits: list[bool] = []

    def cut_out(part: Any) -> Any:
        fits.append(isinstance(part, Tensor) and part.ndim > 0 and len(part) == samples)
        return part[rows] if fits[-1] else part

    made = mapped(batch, cut_out, cut_out)
    return made if all(fits) else None


def rows_of_process(batch: Any, is_shared: bool) -> tuple[Any, float]:
    """Return the rows of a batch that this process computes, and what their sum counts in that of all processes.

    Every process of a sharded network has to take part in every pass: where there are fewer rows than processes, one
    repeats a row that counts nothing, and where the loss of a batch is not that of its parts, all compute all of it.
    """
    rows = samples_of(batch) if is_shared else None
    mine = parallel.rows(rows) if rows else range(0)
    own = taken(batch, slice(mine.start, mine.stop) if mine else slice(1), rows) if rows else None
    return (batch, 1 / parallel.size()) if own is None else (own, float(len(mine) > 0))
