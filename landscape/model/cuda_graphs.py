"""Kernels captured once as a CUDA graph, and launched together from then on: the GPU waits for no Python.

``LANDSCAPE_CUDA_GRAPHS=0`` in the environment leaves it out.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .walking import LARGE


def should_capture(device: torch.device, weights: int) -> bool:
    """Return whether it is a GPU, which has done the kernels of so few weights before Python goes on."""
    return device.type == "cuda" and weights <= LARGE and os.environ.get("LANDSCAPE_CUDA_GRAPHS") != "0"


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Work in a stream of its own: backward passes run in the stream of their forward, and the default has no capture.

    What was begun before is waited for, and what comes after waits.
    """
    if device.type != "cuda":
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

    Cost: the function twice, and the memory that it takes for as long as this is held.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")  # raised here, a capture is not broken by it
        try:
            function()  # kernels are loaded, and libraries take what memory they need
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=_stream(device), capture_error_mode="thread_local"):
            self._result = function()

    def __call__(self) -> Tensor:
        """Do it again; the result is overwritten by the next call."""
        self._graph.replay()
        return self._result


_stream = functools.cache(torch.cuda.Stream)  # device → stream
