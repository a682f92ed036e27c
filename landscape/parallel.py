"""Work shared among the processes of ``torchrun``: the one place that knows of torch.distributed.

Every process runs the same program on the same seeds; where work can be shared (batches of a product, points of a
surface), each takes its share and the sums of all go to all. Without torchrun everything here is the identity.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor


def start() -> torch.device:
    """Join the other processes, if torchrun started this one, and return the device that is this process's own.

    NCCL where there are GPUs, one for each process; gloo otherwise.
    """
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if "RANK" in os.environ and not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def stop() -> None:
    """Part with the other processes."""
    if _together():
        distributed.destroy_process_group()


def leave() -> None:
    """End this process if torchrun started it: gloo's threads, which torch may still hold, abort an ordinary end."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def rank() -> int:
    """Return this process's number."""
    return distributed.get_rank() if _together() else 0


def size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if _together() else 1


def share(items: int) -> range:
    """Return which of so many items are this process's own; every process has at least one.

    Raises:
        ValueError: fewer items than processes.
    """
    if items < size():
        raise ValueError(f"{size()} processes have only {items} batches to share: use fewer processes or batch_size=")
    return range(rank(), items, size())


def sum_(tensor: Tensor) -> Tensor:
    """Add the tensors of all processes up, in place."""
    if _together():
        there = tensor.cuda() if distributed.get_backend() == "nccl" else tensor
        distributed.all_reduce(there)
        tensor.copy_(there)
    return tensor


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in their order."""
    if not _together():
        return [value]
    values: list[Any] = [None] * size()
    distributed.all_gather_object(values, value)
    return values


def check_agreement(**values: Any) -> None:
    """Raise if the processes were given different arguments: their shares would be mixed to one number.

    Args:
        values: argument=value, or what tells it from others.

    Raises:
        ValueError: with the first that differs, and its values.
    """
    seen = gather(values)
    for name in values:
        if any(other[name] != seen[0][name] for other in seen):
            given = ", ".join(repr(other[name]) for other in seen)
            raise ValueError(f"all processes must be given the same {name}, got {given}: pass one seed, drawn alike")


def first_alone(function: Callable[[], Any]) -> Any:
    """Call the function in the first process, and in the others after it has returned there."""
    if rank() == 0:
        result = function()
        gather(None)
        return result
    gather(None)
    return function()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
