"""Training on many processes, beside what `landscape.parallel` has for measuring.

``torchrun`` starts the processes; without it everything here is the identity.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as distributed
import torch.distributed.nn.functional  # noqa: F401  (imported later, its defaults would keep the process group alive)
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from landscape.model import quantized_layers
from landscape.parallel import gather, leave, rank, size, sum_  # noqa: F401  (used as processes.gather, …)
from landscape.progress import progress

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[torch.device]:
    """Join the processes of torchrun inside the context; yield the device of this one."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if "RANK" not in os.environ or distributed.is_initialized():
        yield device
        return
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        gc.collect()  # what still refers to the group keeps gloo's threads (see `leave`)
        distributed.destroy_process_group()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def average_(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over the processes, in one exchange."""
    if not _together() or not tensors:
        return
    flat = sum_(torch.cat([tensor.flatten() for tensor in tensors])) / size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def moved(value: Any, device: torch.device | str) -> Any:
    """Return a copy of nested dicts, lists and tuples with their tensors on a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to(device, copy=True), value)


def agree_(*models: nn.Module) -> None:
    """Broadcast the buffers of the first process (BatchNorm statistics of its rows)."""
    if _together():
        for buffer in dict.fromkeys(buffer for model in models for buffer in model.buffers()):
            distributed.broadcast(buffer, 0)


def bar(parts: Iterable[T], label: str) -> Iterable[T]:
    """Return the parts of a work, with a bar that shows its progress in the first process."""
    return parts if rank() > 0 else progress(parts, label)


def wait() -> None:
    """Wait for all processes."""
    if _together():
        distributed.barrier()


def parallel(forward: nn.Module, model: nn.Module) -> tuple[nn.Module, Callable[[], AbstractContextManager[Any]]]:
    """Return `forward` with gradients averaged over the processes, and the context that suspends averaging.

    Its buffers follow the first process's in every forward pass, except the deltas: each process has its own ε.
    """
    if not _together():
        return forward, nullcontext
    layers = quantized_layers(model).values()
    deltas = {id(delta) for layer in layers for _, delta, _ in layer.quantized_weights().values()}
    names = [name for name, buffer in forward.named_buffers() if id(buffer) in deltas]
    kind = nn.parallel.DistributedDataParallel
    cast(Any, kind)._set_params_and_buffers_to_ignore_for_model(forward, names)
    device = next(forward.parameters()).device
    wrapped = kind(forward, device_ids=[device.index] if device.type == "cuda" else None)
    return wrapped, wrapped.no_sync
