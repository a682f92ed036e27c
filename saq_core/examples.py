"""The inputs of one sample, from the shape of one or from data of any kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from numbers import Number
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from landscape.checking import numbers
from landscape.model.measuring import generator_of, measurement_mode

from .contexts import device_of
from .data import Data, ImageFiles, is_pair
from .quantization.feeding import batches_in, inputs_of

T = TypeVar("T")
_TENSORS = (Tensor, PackedSequence)


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
    one = isinstance(example, tuple) and len(example) == 2 and isinstance(example[1], Tensor)
    data = [example] if one else [(example,)] if _is_packed(example) else example
    with measurement_mode(model, generator_of(data)):  # a loader draws
        x = next((inputs_of(batch, name) for batch in batches_in(data, name)), None)
    if not _samples(x):
        raise ValueError(f"{name} must hold a batch of at least one sample, in tensors, got {shapes_of(x) or 'none'}")
    return x


def on_one(run: Callable[[Any], T], model: nn.Module, x: Any) -> tuple[T, int]:
    """Run on the first sample of inputs, on all if that fails; return the result, and of how many samples it is."""
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex())
    device, dtype, samples = device_of(model), next(dtypes, torch.float32), _samples(x)

    def there(t: Any) -> Any:
        is_data = isinstance(t, _TENSORS)
        return t.to(device, dtype if t.data.is_floating_point() else None) if is_data else t

    one = tree_map_only(Tensor, lambda t: t[:1] if t.shape[:1] == (samples,) else t, x, is_leaf=_is_packed)
    if _samples(one) < samples:
        with suppress(Exception):  # of a network that takes batches of one size
            return run(tree_map(there, one, is_leaf=_is_packed)), 1
    return run(tree_map(there, x, is_leaf=_is_packed)), samples


def shapes_of(x: Any) -> str:
    """Return the shapes of all tensors, for a message."""
    return ", ".join(str(tuple(t.shape)) for t in tree_leaves(x) if isinstance(t, Tensor))


def _samples(x: Any) -> int:
    """Return the number of samples of inputs, the first length of the first tensor; 0 where there is none."""
    for t in tree_leaves(x, is_leaf=_is_packed):
        if isinstance(t, _TENSORS) and t.data.ndim:
            return int(t.batch_sizes[0]) if isinstance(t, PackedSequence) else len(t)
    return 0


def _is_packed(x: Any) -> bool:
    return isinstance(x, PackedSequence)
