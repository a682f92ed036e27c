"""Curvature times a vector on one batch, from a graph that can be kept between products."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .. import parallel
from ..model import Coordinates, Objective, Point, cuda_graphs, samples_of
from ..model.batches import bytes_of, target_of
from ..model.derivatives import pulled_back
from ..model.folding import linear_in_slopes
from .gradient_differences import GradientDifferences, Tensors


class HessianGraph:
    """weight · ∇²loss of one batch: the gradient with its graph, differentiated once more for each vector."""

    def __init__(self, objective: Objective, tensors: Point, leaves: Tensors, batch: Any) -> None:
        self.leaves, self.tensors, self.network = list(leaves), tensors, objective.network
        loss = objective.loss(tensors, batch)
        total = loss.total  # its weight is not read: nothing waits for the device
        if not total.requires_grad:
            raise ValueError("the loss depends on nothing that varies: is it computed from the model's output?")
        with objective.network.noting():
            self.gradient = torch.autograd.grad(total, self.leaves, create_graph=True, materialize_grads=True)

    def product(self, vectors: Tensors) -> tuple[Tensor, ...]:
        """Return weight · H_batch · v, in the shapes of the leaves."""
        self.network.swap_in(self.tensors)  # a checkpointed network runs again
        return pulled_back(self.gradient, self.leaves, vectors)


class GaussNewtonGraph:
    """weight · Jᵀ·∇²_z loss·J of one batch, z the network's output: J·v, too, comes from reverse passes (twice)."""

    def __init__(self, objective: Objective, tensors: Point, leaves: Tensors, batch: Any) -> None:
        self.leaves, self.tensors, self.network = list(leaves), tensors, objective.network
        batch, share = objective.own_rows(batch)
        output = objective.criterion.part_of(objective.network.output(tensors, batch), objective.dtype)
        if not isinstance(output, Tensor):
            what = type(output).__name__
            raise TypeError(f"the Gauss-Newton matrix needs one tensor of outputs, got {what}: say which with output=")
        if not output.requires_grad:
            raise ValueError("the output depends on nothing that varies")
        self.output, self.point = output, output.detach().requires_grad_()
        loss = objective.scaled(objective.criterion.of_part(self.point, target_of(batch)))
        (self.slope,) = torch.autograd.grad(loss.total * share, self.point, create_graph=True)
        self.dual = torch.zeros_like(output, requires_grad=True)
        with objective.network.noting(), linear_in_slopes():
            self.pulled = torch.autograd.grad(output, self.leaves, self.dual, create_graph=True, materialize_grads=True)

    def product(self, vectors: Tensors) -> tuple[Tensor, ...]:
        """Return weight · G_batch · v, in the shapes of the leaves."""
        self.network.swap_in(self.tensors)
        (pushed,) = pulled_back(self.pulled, [self.dual], vectors)
        (bent,) = pulled_back([self.slope], [self.point], [pushed])
        return torch.autograd.grad(self.output, self.leaves, bent, retain_graph=True, materialize_grads=True)


class CapturedProducts:
    """The products of graphs that are kept, as one CUDA graph.

    Args:
        add_to: ``add_to(images, vector)`` adds a product to zeros of shape (folds, n), by a graph at a time.
        images: such zeros.
        vector: one to begin with.

    Raises:
        RuntimeError: it cannot be captured, or does not give what ``add_to`` gives for two vectors.
    """

    def __init__(self, add_to: Callable[[Tensor, Tensor], None], images: Tensor, vector: Tensor) -> None:
        self._vector = vector.clone()

        def product() -> Tensor:
            add_to(images.zero_(), self._vector)
            return images

        self._captured = cuda_graphs.Captured(product, vector.device)
        for other in (vector, vector.flip(0)):
            add_to(expected := torch.zeros_like(images), other)
            if not bool((self(other) - expected).norm() <= _SAME[images.dtype] * expected.norm()):
                raise RuntimeError("products of the CUDA graph are others")

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the product of each fold, (folds, n), which the next call overwrites."""
        self._vector.copy_(vector)
        return self._captured()


_SAME = {torch.float32: 1e-4, torch.float64: 1e-10}  # kernels that add by atomics do so in any order


@dataclass(frozen=True)
class Probe:
    """What one batch says about all of them: seconds and bytes to build a graph, seconds for a product, per sample."""

    build_seconds: float
    product_seconds: float
    graph_bytes: float


Graph = HessianGraph | GaussNewtonGraph | GradientDifferences


def probe(
    build: Callable[[Any], Graph], batch: Any, objective: Objective, coordinates: Coordinates, is_verified: bool
) -> tuple[Probe, Graph]:
    """Build one batch's graph, count what it holds, time a product, and refuse one that is not symmetric.

    ``is_verified`` says that differences in float64 have shown the derivatives to be right.

    Returns:
        The costs, and the graph.

    Raises:
        ValueError: uᵀ(A v) and vᵀ(A u) differ.
    """
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def now() -> float:
        if objective.device.type == "cuda":
            torch.cuda.synchronize(objective.device)
        return time.perf_counter()

    notes = objective.network.notes
    try:
        notes.observer = count
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            build(batch)
    except RuntimeError as error:  # torch.func inside of the network takes no such hooks
        if "saved tensor hooks" not in str(error):
            raise
        with _Results(lambda tensor: storages.update({tensor.data_ptr(): tensor.nbytes})):
            build(batch)
    finally:
        notes.observer = None
    start = now()
    graph = build(batch)
    built = now()
    generator = torch.Generator().manual_seed(0)
    draws = ([torch.randn(leaf.shape, generator=generator).to(leaf) for leaf in graph.leaves] for _ in range(2))
    u = next(draws)
    between = now()
    au = graph.product(u)
    product = now() - between
    if not is_verified:
        v = next(draws)
        _check_symmetric(u, v, au, graph.product(v), coordinates)
    rows = samples_of(batch) or 1
    held = bytes_of(batch) if isinstance(graph, GradientDifferences) else sum(storages.values())
    held = max(parallel.gather(held / rows))  # all processes must keep the same graphs
    return Probe((built - start) / rows, product / rows, held), graph


class _Results(TorchDispatchMode):
    """Shows a function all that is computed: what a graph holds at most."""

    def __init__(self, show: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.show = show

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and show."""
        output = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.show, output)
        return output


def _check_symmetric(u: Tensors, v: Tensors, au: Tensors, av: Tensors, coordinates: Coordinates) -> None:
    def inner(a: Tensors, b: Tensors) -> float:
        one, other = (dict(zip(coordinates.names, parts, strict=True)) for parts in (a, b))
        return float(coordinates.inner(one, other))

    difference = abs(inner(u, av) - inner(v, au))
    scale = inner(au, au) ** 0.5 + inner(av, av) ** 0.5  # the spread of uᵀ(Av) over random u is ‖Av‖
    if difference > (1e-9 if u[0].dtype == torch.float64 else 3e-3) * scale:
        raise ValueError(
            f"products with the Hessian are not symmetric: uᵀHv and vᵀHu differ by {difference:.2g} on a scale of "
            f"{scale:.2g}. The backward of some operation is not a derivative; a hand-written autograd.Function (a "
            "quantizer?) is the usual cause: write x + (round(x) - x).detach() in its place"
        )


def free_memory(device: torch.device) -> float:
    """Return the bytes that are free, within the limit of a container where there is one."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = 4e9
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    group = pathlib.Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, float(limit) - float(used))
    return free
