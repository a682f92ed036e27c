"""Symmetric linear operators: a `shape`, a `dtype`, a `device` and `@`. A dense symmetric tensor is one."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .coordinates import Point
from .objective import BatchObjective, Loss, Objective, rows_of


@runtime_checkable
class Operator(Protocol):
    """What traces and spectra ask of a matrix: they never see a model, a loss or a plot."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def __matmul__(self, vectors: Tensor, /) -> Tensor: ...


class Hessian:
    """The Hessian of a network's mean loss over its weights, as an operator of shape (n, n).

    ``H @ v`` is exact (double backward), over all batches weighted by their size, for v of shape (n,) or (n, k).
    In quantized space the weights' rounding is not on the path; where activations are rounded too, the product is that
    of the straight-through surrogate (``about["derivatives"]`` says so).

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or a re-iterable of batches; default ``model.probe``.
        space: ``"quantized"`` (default) or ``"latent"``, see `landscape.coordinates`.
        loss: ``loss(output, target)``; default cross-entropy.
        objective: ``objective(model, batch) → (mean loss, weight)`` in place of ``loss``.
        memory: bytes that graphs may hold between products; default half of what is free.

    Cost: one gradient with its graph at construction; each product 2–3 gradients while the graphs fit in ``memory``,
    and about 6 where they must be rebuilt.

    Source: Pearlmutter 1994, by automatic differentiation.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any = None,
        *,
        space: str | None = None,
        loss: Loss | None = None,
        objective: BatchObjective | None = None,
        memory: float | None = None,
    ) -> None:
        self.objective = Objective(model, data, space=space, loss=loss, objective=objective)
        self.coordinates = self.objective.coordinates
        self.objective.centre()  # refuses data and weights that mean nothing
        self.products = 0
        self._budget = _free_memory(self.device) / 2 if memory is None else memory
        self._memory_needed: float | None = None
        self._kept: list[_Graph] = []
        self._weight = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.coordinates.numel, self.coordinates.numel

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype."""
        return self.objective.dtype

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.objective.device

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        n = self.shape[0]
        if vectors.ndim not in (1, 2) or vectors.shape[0] != n:
            raise ValueError(f"vectors must have shape ({n},) or ({n}, k), got {tuple(vectors.shape)}")
        columns = vectors.to(self.device, self.dtype).reshape(self.shape[0], -1).unbind(1)
        self.products += len(columns)
        total = [torch.zeros(self.shape[0], dtype=torch.float64, device=self.device) for _ in columns]
        with self.objective.quiet():
            for graph in self._graphs():
                for out, column in zip(total, columns, strict=True):
                    out += graph.product(self.coordinates.unflatten(column))
        return torch.stack(total, dim=1).div_(self._weight).to(self.dtype).reshape(vectors.shape)

    def scaled(self, d: Tensor | Mapping[str, Tensor]) -> Scaled:
        """Return D·H·D for a diagonal D, given as a vector of shape (n,) or as a point."""
        return Scaled(self, d if isinstance(d, Tensor) else self.coordinates.flatten(d))

    def filter_relative(self) -> Scaled:
        """Return D·H·D in filter-relative units (`Coordinates.filter_scale`): what networks can be compared by."""
        return self.scaled(self.coordinates.filter_scale())

    def _graphs(self) -> Iterator[_Graph]:
        """Yield a differentiable gradient per batch: kept ones, or built anew where they do not fit in memory."""
        if self._kept:
            yield from self._kept
            return
        kept: list[_Graph] | None = [] if self._fits() else None
        self._weight = 0.0
        for batch in self.objective.batches():
            graph = _Graph(self.objective, batch)
            self._weight += float(graph.weight)
            if kept is not None:
                kept.append(graph)
            yield graph
        self._kept = kept or []  # all or none: an interrupted product leaves no half of them behind

    def _fits(self) -> bool:
        if self._memory_needed is None:
            rows = [rows_of(batch) for batch in self.objective.batches()]
            per_row = _graph_bytes(self.objective, next(self.objective.batches())) / rows[0]
            self._memory_needed = per_row * sum(rows)
        return self._memory_needed <= self._budget


class Scaled:
    """D·A·D for a diagonal D, itself an operator."""

    def __init__(self, operator: Hessian, d: Tensor) -> None:
        if d.shape != operator.shape[:1]:
            raise ValueError(f"d must have shape ({operator.shape[0]},), got {tuple(d.shape)}")
        self.operator, self.d = operator, d
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self.coordinates = operator.coordinates

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        d = self.d if vectors.ndim == 1 else self.d[:, None]
        return d * (self.operator @ (d * vectors.to(self.device, self.dtype)))


class _Graph:
    """The gradient of one batch's loss with its graph."""

    def __init__(self, objective: Objective, batch: Any) -> None:
        self.leaves = [leaf.detach().clone().requires_grad_() for leaf in objective.live().values()]
        live = dict(zip(objective.live(), self.leaves, strict=True))
        with torch.enable_grad():
            loss, self.weight, _ = objective.loss(live, batch)
            total = loss * self.weight
            if not total.requires_grad:
                raise ValueError("the loss depends on no weight that varies: is it computed from the model's output?")
            self.gradient = torch.autograd.grad(total, self.leaves, create_graph=True, materialize_grads=True)

    def product(self, vector: Point) -> Tensor:
        """Return weight · H_batch · v, shape (n,)."""
        # a weight in which the loss is linear has a gradient without a graph: its rows are zero
        curved = [(g, v) for g, v in zip(self.gradient, vector.values(), strict=True) if g.requires_grad]
        if not curved:
            return torch.cat([torch.zeros_like(leaf).reshape(-1) for leaf in self.leaves])
        gradients, directions = zip(*curved, strict=True)
        parts = torch.autograd.grad(gradients, self.leaves, directions, retain_graph=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])


def _graph_bytes(objective: Objective, batch: Any) -> int:
    """Count what the graph of one batch's gradient holds, on a copy that is thrown away."""
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with objective.quiet(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        _Graph(objective, batch)
    return sum(storages.values())


def _free_memory(device: torch.device) -> float:
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
