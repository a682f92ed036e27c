"""Work shared among the processes of ``torchrun``: the one place that knows of torch.distributed.

Every process runs the same program on the same seeds; where work can be shared (rows of a product, points of a
surface), each takes its share and the sums of all go to all. Without torchrun everything here is the identity.
A network in shards (FSDP2, DTensors) is measured by all processes together, each with its shards and its rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

# what each process may have for itself
_OWN = ("self", "__class__", "watch", "on_epoch", "on_step", "log", "device", "memory")
_SHOWN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


def start() -> torch.device:
    """Join the other processes, if torchrun started this one, and return the device that is this process's own.

    NCCL where there are GPUs, one for each process; gloo otherwise.
    """
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if "RANK" in os.environ and not distributed.is_initialized():
        if cuda:  # where NCCL puts what it exchanges
            torch.cuda.set_device(local)
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


def share(items: int, what: str = "batches") -> range:
    """Return which of so many items are this process's own; every process has at least one.

    Raises:
        ValueError: fewer items than processes.
    """
    if items < size():
        raise ValueError(f"{size()} processes have only {items} {what} to share: use fewer processes")
    return range(rank(), items, size())


def share_rows(batches: Sequence[int]) -> dict[int, range]:
    """Return which rows of batches of so many are this process's own: batch → rows, a stretch of all.

    Whole batches where no process then has over 1.25 times its share. Elsewhere rows are shared evenly, except that
    less than an eighth of a share is not cut off a batch: few rows take as long as many.

    Raises:
        ValueError: fewer rows than processes.

    Example:
        >>> share_rows([3, 3])
        {0: range(0, 3), 1: range(0, 3)}
    """
    ends = list(itertools.accumulate(batches, initial=0))
    share(total := ends[-1], "rows")
    even = [total * process // size() for process in range(size() + 1)]
    edges = [min(ends, key=lambda end: abs(end - cut)) for cut in even]  # noqa: B023
    shares = [b - a for a, b in itertools.pairwise(edges)]
    if 0 in shares or max(shares) * size() > 1.25 * total:
        near = total // size() // 8
        edges = [edge if abs(edge - cut) <= near else cut for edge, cut in zip(edges, even, strict=True)]
    start, stop = edges[rank()], edges[rank() + 1]
    own = (range(max(start - a, 0), min(stop, b) - a) for a, b in itertools.pairwise(ends))
    return {index: rows for index, rows in enumerate(own) if rows}


def rows(samples: int) -> range:
    """Return which of so many rows of a batch are this process's own: as many as another's, or one more, or none."""
    return range(rank() * samples // size(), (rank() + 1) * samples // size())


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
        values: argument=value; at a function's very beginning ``**locals()`` are all of its arguments.

    Raises:
        ValueError: with the first that differs, or the first part of it (``model.0.weight``), and what it is in each;
            a network of FSDP1.

    Cost: nothing in one process; in several a hash of all tensors in the values.
    """
    if not _together():
        return
    seen = gather(fingerprints({name: value for name, value in values.items() if name not in _OWN}))
    for name in dict.fromkeys(name for other in seen for name in other):
        given = [other.get(name, "absent") for other in seen]
        if len(set(given)) > 1:
            raise ValueError(
                f"all processes must be given the same {name}, got {', '.join(given)}: seed what is drawn, or read it "
                "from one file, in all of them alike"
            )


def fingerprints(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells values from others, by name: hashes of tensors, files and code, texts.

    Networks, mappings, lists and dataclasses are taken apart. Batches that a loader makes are not looked at.

    Example:
        >>> fingerprints({"seed": 0, "layers": ["fc", "conv"]})
        {'seed': '0', 'layers': 'list', 'layers.0': "'fc'", 'layers.1': "'conv'"}
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        parts = _parts(value)
        found[name] = _fingerprint(value) if parts is None else type(value).__name__
        found |= fingerprints({f"{name}.{key}".strip("."): part for key, part in (parts or {}).items()})
    return found


def _parts(value: Any) -> dict[Any, Any] | None:
    """Return what something consists of, None if it is one."""
    if isinstance(value, nn.Module):
        kinds = {name: type(module).__name__ for name, module in value.named_modules()}
        if "FullyShardedDataParallel" in kinds.values():
            raise ValueError("FSDP1 keeps weights in flat parameters, which are not measured: use fully_shard (FSDP2)")
        settings = {
            f"{name}.{key}".strip("."): setting
            for name, module in value.named_modules()
            for key, setting in vars(module).items()
            if isinstance(setting, bool | int | float | str | tuple) and key != "training"
        }
        return kinds | settings | dict(value.named_parameters()) | dict(value.named_buffers())
    if isinstance(value, functools.partial):
        return {"function": value.func, "arguments": value.args, **value.keywords}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: part for key, part in vars(value).items() if key != "about"}
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    return dict(value) if isinstance(value, Mapping) else None


def _fingerprint(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _SHOWN):
        return repr(value)
    if isinstance(value, Path):
        return f"{value} {_hash(value.read_bytes()) if value.is_file() else ''}".strip()
    if isinstance(value, Tensor):
        kind = f"{'frozen ' * (isinstance(value, nn.Parameter) and not value.requires_grad)}{value.dtype}"
        has_bits = type(value) in (Tensor, nn.Parameter, nn.Buffer) and value.layout is torch.strided
        if has_bits and not value.is_meta and not value.is_quantized:
            kind += f" {_hash(value.detach().cpu().resolve_conj().contiguous().flatten().view(torch.uint8).numpy())}"
        return f"{kind} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value)
        return f"{value.dtype} {_hash(content)} {value.shape}"
    name, code = str(getattr(value, "__qualname__", type(value).__name__)), getattr(value, "__code__", None)
    if code is None:
        return name
    constants = [constant for constant in code.co_consts if isinstance(constant, _SHOWN)]
    return f"{name} {_hash(repr((code.co_code, code.co_names, constants)).encode())}"  # lambdas have one name


def _hash(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def is_sharded(tensor: Any) -> bool:
    """Return whether a tensor is one process's view of a tensor that lies on several (a DTensor)."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds."""
    shard: Tensor = tensor.detach().to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return shard


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts that other processes hold; all of them must ask for it."""
    full: Tensor = tensor.detach().full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


class Layout:
    """How a tensor lies over all processes: in shards, or whole in each.

    Args:
        tensor: a DTensor, whose mesh and placements are taken; or one that is whole in each process.
        mesh: of the latter.

    Attributes:
        shape: of the whole.
        copies: how many processes hold each number.
        rows_are_whole: whether a slice along dimension 0 lies in one process.
    """

    def __init__(self, tensor: Tensor, mesh: Any) -> None:
        self.mesh = getattr(tensor, "device_mesh", mesh)
        self.placements = tuple(getattr(tensor, "placements", [_tensors().Replicate()] * self.mesh.ndim))
        self.shape = tensor.shape
        sizes = zip(self.placements, self.mesh.shape, strict=True)
        self.copies = math.prod(size for placement, size in sizes if placement.is_replicate())
        self.rows_are_whole = all(part.is_replicate() or part.is_shard(0) for part in self.placements)

    def wrapped(self, shard: Tensor, leading: int = 0) -> Tensor:
        """Return a DTensor of this process's shard, or of a stack of such, with so many dimensions before."""
        places = []
        for place in self.placements:  # FSDP2 over tensor parallelism deals rows out in strides
            more = {"split_factor": place.split_factor} if hasattr(place, "split_factor") else {}
            places.append(type(place)(place.dim + leading, **more) if hasattr(place, "dim") else place)
        shape = torch.Size((*shard.shape[:leading], *self.shape))
        whole = {"shape": shape, "stride": torch.empty(shape, device="meta").stride()}
        made: Tensor = _tensors().DTensor.from_local(shard, self.mesh, places, run_check=False, **whole)
        return made

    def gather(self, shard: Tensor) -> Tensor:
        """Return the whole tensor, new, from the shards of all processes."""
        full = whole(self.wrapped(shard))
        return full.clone() if full.untyped_storage().data_ptr() == shard.untyped_storage().data_ptr() else full

    def scatter(self, full: Tensor) -> Tensor:
        """Return this process's shard of the sum of all processes' tensors."""
        return self._placed(full.contiguous(), _tensors().Partial())

    def cut(self, full: Tensor) -> Tensor:
        """Return this process's shard of a tensor that every process has, or of a DTensor."""
        return self._placed(full, _tensors().Replicate())

    def _placed(self, full: Tensor, before: Any) -> Tensor:
        if not is_sharded(full):
            full = _tensors().DTensor.from_local(full, self.mesh, [before] * self.mesh.ndim, run_check=False)
        return local(full.redistribute(placements=self.placements))  # type: ignore[attr-defined]


def _tensors() -> Any:
    """Import what half a second goes by for, where tensors lie in shards."""
    return importlib.import_module("torch.distributed.tensor")


def first_alone(function: Callable[[], Any]) -> Any:
    """Call the function in the first process, and in the others after it has ended there."""
    if rank() > 0:
        gather(None)
        return function()
    try:
        return function()
    finally:  # also after an error, which the others then meet themselves
        gather(None)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
