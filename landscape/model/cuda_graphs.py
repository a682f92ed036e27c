"""Kernels captured once as a CUDA graph, and launched together from then on: the GPU waits for no Python.

``LANDSCAPE_CUDA_GRAPHS=0`` in the environment leaves it out.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .measuring import UNINTERRUPTIBLE
from .recording import has_shape_of_values
from .walking import LARGE


def should_capture(device: torch.device, weights: int) -> bool:
    """Return whether it is a GPU, which has done the kernels of so few weights before Python goes on."""
    return device.type == "cuda" and weights <= LARGE and os.environ.get("LANDSCAPE_CUDA_GRAPHS") != "0"


@contextlib.contextmanager
def side_stream(device: torch.device | None) -> Iterator[None]:
    """Work in a stream of its own: backward passes run in that of their forward, and the default one is not captured.

    What was begun before is waited for, and what comes after waits. Without a device it does nothing.
    """
    if device is None or device.type != "cuda":
        yield
        return
    stream, outer = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


class Captured:
    """What a function does, to be done again by one launch: with the same tensors, whatever is in them by then.

    Args:
        function: returns a tensor, and reads nothing but tensors that stay where they are.
        device: where; work has to go on `side_stream`, also what the function uses (an autograd graph, say).

    Raises:
        RuntimeError: it waits for the device (reads a number, say), or does what cannot be captured.

    Cost: the function twice, and the memory that it takes for as long as this is held. An interrupt waits meanwhile.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        with _NoWaiting(device):  # what fails here does not break a capture
            function()  # kernels are loaded, and libraries take what memory they need
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=_stream(device), capture_error_mode="thread_local"):
            self._result = function()

    def __call__(self) -> Tensor:
        """Do it again; the result is overwritten by the next call."""
        self._graph.replay()
        return self._result


class _NoWaiting(TorchDispatchMode):
    """Raises where something waits for the device: reads a number, a size that depends on numbers, or moves memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the import of what compiles takes a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what waits for nothing."""
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        reads = torch.Tag.data_dependent_output in func.tags or has_shape_of_values(func, args)
        moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and len(devices) > 1
        if moves or (reads and self._device.type in devices):
            raise RuntimeError(f"{func} waits for the device: it cannot be captured")
        return output


UNINTERRUPTIBLE.add(Captured.__init__.__code__)
_stream = functools.cache(torch.cuda.Stream)  # device → stream
