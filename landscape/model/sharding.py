"""Networks whose weights lie in shards over processes (FSDP2, DTensors): measured by plain tensors, gathered when read.

The forward pass never meets a DTensor, whose rules for losses and layers are incomplete and, for some, wrong. A weight
is gathered from its shards each time a module reads it, dropped when it was used, and gathered again where a backward
pass asks for it: a graph keeps a note in its place. Gathering and reduce-scattering are each other's derivative, to any
order, so a loss that each process computes on its own rows has the derivatives of their sum.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import handle_torch_function, has_torch_function_unary

from .. import parallel
from ..parallel import Layout
from .adapters import rounded_weights

_QUANTIZED = "quantized layers are not measured in shards: pass the network with whole weights"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Shard a network over all processes by FSDP2: block by block, so that a device never holds it whole.

    Blocks are what stands in a Sequential, ModuleList or ModuleDict, but for those that share a weight with the rest.
    A weight of no dimensions stays whole in every process.

    Args:
        model: the same network in every process, with its values, on the CPU if no device has room for it.
        device: that this process computes on.

    Raises:
        ValueError: one process; other weights in other processes; a network that is quantized, or sharded already.
    """
    if parallel.size() == 1:
        raise ValueError(
            "a network is sharded over several processes, and this is the only one: start them by torchrun "
            "--nproc-per-node=N -m landscape …"
        )
    if any(map(parallel.is_sharded, model.parameters())):
        raise ValueError("the network lies in shards already, and is measured as it is: leave --shard out")
    if rounded_weights(model):
        raise ValueError(_QUANTIZED)
    parallel.check_agreement(model=model)  # no process sees the others' weights later
    uses = _uses(model)
    scalars = {parameter for parameter in model.parameters() if not parameter.ndim}
    for tensor in (*model.buffers(), *scalars):
        tensor.data = tensor.to(device)
    fully_shard: Any = importlib.import_module("torch.distributed.fsdp").fully_shard
    mesh = importlib.import_module("torch.distributed.device_mesh").init_device_mesh(device.type, (parallel.size(),))
    for block in [block for block in _blocks(model) if all(_uses(block)[key] == uses[key] for key in _uses(block))]:
        fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    return model


def _uses(module: nn.Module) -> Counter[int]:
    """Count where each parameter of a module is used inside it."""
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return what stands in containers and has weights, inner ones first."""
    containers = [module for module in model.modules() if isinstance(module, _CONTAINERS)]
    blocks = [block for container in reversed(containers) for block in container.children() if _uses(block)]
    return [block for block in blocks if not isinstance(block, nn.ModuleList | nn.ModuleDict)]


def reshard(model: nn.Module) -> None:
    """Have every FSDP2 module give its gathered weights back, as before a forward pass."""
    for module in model.modules():
        if hasattr(type(module), "unshard"):
            module.reshard()  # type: ignore[operator]


def without_hooks(model: nn.Module) -> None:
    """Take the hooks of FSDP2 and of tensor parallelism out, which would put DTensors in; others stay."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if _is_of_torch_distributed(hook)]:
                del hooks[key]


def layouts_of(model: nn.Module) -> dict[str, Layout]:
    """Return how every parameter, and every buffer that is a DTensor, lies over the processes; empty where none does.

    Raises:
        ValueError: weights on another device than they are computed on, or without values, or on a mesh of
            other than all processes.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    sharded = {name: tensor for name, tensor in tensors.items() if parallel.is_sharded(tensor)}
    for name, tensor in sharded.items():
        mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
        device, processes = parallel.local(tensor).device.type, parallel.size()
        if tensor.is_meta:
            raise ValueError(f"{name} has no values yet (meta): call to_empty() and load or initialise the weights")
        if device != mesh.device_type:
            raise ValueError(
                f"{name} lies on {device}, its mesh on {mesh.device_type}: shard without an offload policy"
            )
        if mesh.size() != processes:
            raise ValueError(
                f"all processes must share every weight, but {name} lies on a mesh of {mesh.size()} processes, of "
                f"{processes}: start one group of processes per mesh"
            )
    if not sharded:
        return {}
    if any(hasattr(module, "quantized_weights") for module in model.modules()):
        raise ValueError(_QUANTIZED)
    mesh = next(iter(sharded.values())).device_mesh  # type: ignore[attr-defined]
    parameters = {id(parameter) for parameter in model.parameters()}
    return {n: Layout(t, mesh) for n, t in tensors.items() if n in sharded or id(t) in parameters}


def gather(local: Tensor, layout: Layout) -> Tensor:
    """Return a whole tensor from its shards; twice differentiable."""
    if has_torch_function_unary(local):  # for modes that follow what is computed from a weight
        return handle_torch_function(gather, (local,), local, layout)
    return _Exchange.apply(local, layout, True)


class _Exchange(Function):
    """Gathers shards, or adds whole tensors up and scatters the sum: each is the other's derivative."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, layout: Layout, gathers: bool) -> Tensor:
        ctx.settings = layout, not gathers
        return (layout.gather if gathers else layout.scatter)(tensor.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Exchange.apply(gradient, *ctx.settings), None, None


class Notes:
    """What graphs keep of gathered weights: the shard, its layout and which view of the whole an operation saved.

    Attributes:
        observer: called with every tensor that is kept as it is.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, Tensor, Layout]] = {}
        self.observer: Callable[[Tensor], Any] | None = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Have the graphs that are made inside keep notes."""
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:  # a note holds a shard, of whatever point it was
            self._known = {key: note for key, note in self._known.items() if not note[0].expired()}

    def noted(self, whole: Tensor, local: Tensor, layout: Layout) -> Tensor:
        """Return a gathered tensor, of which graphs shall keep a note."""
        storage = whole.untyped_storage()
        self._known[storage.data_ptr()] = StorageWeakRef(storage), local.detach(), layout
        return whole

    def _pack(self, tensor: Tensor) -> Any:
        reference, local, layout = self._known.get(tensor.untyped_storage().data_ptr(), (None, None, None))
        if reference is None or reference.expired():  # an address may have been given to another tensor since
            if self.observer:
                self.observer(tensor)
            return tensor.detach()  # one with its graph would keep that alive for ever
        return local, layout, tensor.shape, tensor.stride(), tensor.storage_offset()

    def _unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        local, layout, *view = kept
        makes_graph = torch.is_grad_enabled()  # of a second derivative, which may save the weight again
        with torch.no_grad():
            whole = layout.gather(local)
            return (self.noted(whole, local, layout) if makes_graph else whole).as_strided(*view)


class GatheredOnReading(dict[str, Any]):
    """The parameters (or buffers) of a module, shards that a reader gets whole.

    Args:
        entries: name → shard.
        layouts: of those that lie in shards.
        notes: see `Notes`.
    """

    def __init__(self, entries: Mapping[str, Any], layouts: Mapping[str, Layout], notes: Notes) -> None:
        super().__init__(entries)
        self._layouts, self._notes = layouts, notes

    def __getitem__(self, key: str) -> Any:
        local = super().__getitem__(key)
        layout = self._layouts.get(key)
        return local if layout is None else self._notes.noted(gather(local, layout), local, layout)

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """Yield names and whole tensors, one after the other."""
        return ((key, self[key]) for key in self)


class Shards:
    """Vectors over several tensors of which each process holds its shards, laid out one after the other.

    Args:
        layouts: of the tensors, in order.
        sizes: how many numbers of each this process holds.
    """

    def __init__(self, layouts: list[Layout], sizes: list[int]) -> None:
        self._layouts, self._sizes, self.local_size = layouts, sizes, sum(sizes)
        self._copies = [layout.copies for layout in layouts]

    def inner(self, rows: Tensor, other: Tensor) -> Tensor:
        """Return ``rows @ other``, added up over the processes; what several hold counts once."""
        if len(set(self._copies)) == 1:
            return parallel.sum_(rows @ other) / self._copies[0]
        parts = zip(rows.split(self._sizes, -1), other.split(self._sizes), self._copies, strict=True)
        return parallel.sum_(torch.stack([a @ b / copies for a, b, copies in parts]).sum(0))

    def block_sums(self, values: Tensor, sizes: list[int]) -> Tensor:
        """Sum the numbers of each tensor, over the processes."""
        pairs = zip(values.split(sizes), self._copies, strict=True)
        return parallel.sum_(torch.stack([part.sum(0) / copies for part, copies in pairs]))

    def drawn(self, sample: Callable[[int], Tensor]) -> Tensor:
        """Cut this process's part out of a draw of the whole vector, of which one tensor at a time is there.

        PyTorch draws normal numbers by sixteens: draws of such sizes, one after the other, are those of one draw.
        """
        left, parts = sum(math.prod(layout.shape) for layout in self._layouts), []
        numbers = torch.empty(0, dtype=torch.float64)
        for layout in self._layouts:
            size = math.prod(layout.shape)
            if (missing := size - len(numbers)) > 0:
                count = -(-missing // 16) * 16
                count = count if left >= count + 16 else left
                numbers, left = torch.cat([numbers, sample(count)]), left - count
            parts.append(layout.cut(numbers[:size].view(layout.shape)).reshape(-1).clone())
            numbers = numbers[size:]
        return torch.cat(parts)


def _is_of_torch_distributed(hook: Any) -> bool:
    module = str(getattr(inspect.unwrap(hook), "__module__", ""))
    return module.startswith(("torch.distributed.fsdp", "torch.distributed.tensor"))
