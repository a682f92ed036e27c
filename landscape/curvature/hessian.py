"""The Hessian and the generalised Gauss-Newton matrix of a network's mean loss as linear operators."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import checked, numbers, one_of
from ..linalg import basis_dtype, local_size
from ..model import (
    FOLDS,
    BatchObjective,
    Coordinates,
    Loss,
    Objective,
    Point,
    Space,
    cuda_graphs,
    objective_of,
    translated,
)
from ..model.batches import taken
from .gradient_differences import GradientDifferences, best_radius, measured_error
from .layer_inputs import LayerInputs
from .products import CapturedProducts, GaussNewtonGraph, Graph, HessianGraph, free_memory, probe
from .scaled import Scaled, Symmetric

Products = Literal["exact", "difference"]
_CAPTURED_AFTER = 4  # products: to capture a CUDA graph and to compare it takes as long as four
_FOLD_BYTES = 5e8  # what images of all folds may take: beyond, fewer folds


class Hessian(Symmetric):
    """The Hessian of a network's mean loss, as an operator of shape (n, n).

    ``H @ v`` is exact (double backward), over all batches weighted by their size, for v of shape (n,) or (n, k).
    In quantized space the weights' rounding is not on the path; where activations are rounded too, the product is that
    of the straight-through surrogate (``about["derivatives"]`` says so).

    Eval-mode BatchNorm is folded into the convolutions (exact), and graphs are kept between products as far as
    ``memory`` reaches; the rest is built anew each time, once for all vectors of a block.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or a re-iterable of batches; default ``model.probe``.
        space: ``"quantized"`` (default) or ``"latent"``, see `landscape.model.coordinates`.
        layers: names of the modules or weights that vary; default all.
        at: ``"layer.input"`` or ``"layer.output"``: not the weights vary but what goes into or comes out of that
            module, n = all its elements over the data.
        loss: ``loss(output, target)``; default cross-entropy.
        objective: ``objective(model, batch) → (mean loss, weight)`` in place of ``loss``.
        memory: bytes that graphs may hold between products; default half of what is free.
        products: ``"exact"``, or ``"difference"``: two gradients beside the centre, for networks without a second
            derivative (attention kernels, compiled parts) or too large for its graph: they take the memory of a
            gradient, and what the network recomputes (``torch.utils.checkpoint``) none, which graphs of second
            derivatives keep all the same. Their step is chosen once, by dtype and curvature; `product_error` measures
            how far off a product is.
        offload: keep vectors, and with them the bases of Lanczos and of deflation, in the memory of the host, not of
            the accelerator: more fit, and their algebra is the CPU's.

    Attributes:
        shape: (n, n).
        dtype: the model's.
        device: where vectors lie: on the model's device, or on the host.
        shards: how vectors lie over processes where the network is sharded: each has this process's shards.

    Raises:
        ValueError: bad data; a product that is not symmetric (a hand-written backward), with the reason.

    Cost: one gradient with its graph; each product 1.4–1.8 gradients where the graphs are kept, 2.5–2.8 where not
    (ResNet-20 on two CPUs; a gradient of the plain network at its best batch size). On a GPU products of kept graphs
    are one CUDA graph from the fifth on (``LANDSCAPE_CUDA_GRAPHS=0`` in the environment leaves it out).

    Source: Pearlmutter 1994, by automatic differentiation.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Linear(3, 2)
        >>> hessian = landscape.Hessian(model, (torch.randn(8, 3), torch.randint(2, (8,))))
        >>> hessian.shape
        (8, 8)
        >>> (hessian @ torch.ones(8)).shape
        torch.Size([8])
        >>> from scipy.sparse.linalg import eigsh
        >>> eigsh(hessian.to_scipy(), k=2)[0].shape
        (2,)
    """

    matrix: ClassVar[str] = "Hessian"
    graph_type: ClassVar[Callable[..., Graph]] = HessianGraph

    def __init__(
        self,
        model: nn.Module | Objective,
        data: Any = None,
        *,
        space: Space | None = None,
        layers: Sequence[str] | None = None,
        at: str | None = None,
        loss: Loss | None = None,
        objective: BatchObjective | None = None,
        memory: float | None = None,
        products: Products = "exact",
        offload: bool = False,
    ) -> None:
        parallel.check_agreement(**locals())
        one_of("products", products, Products)
        if at is not None and products != "exact":
            raise ValueError('products="difference" moves weights: leave at= out, or use products="exact"')
        self.radius: float | None = None  # of differences, relative to ‖w‖
        arguments = {"space": space, "layers": layers, "loss": loss, "objective": objective}
        self.objective = objective_of(model, data, **arguments)
        network = self.objective.network
        if (network.batchnorm, network.precision) != ("fixed", "fp32"):
            raise ValueError(
                "products need an objective with batchnorm='fixed' and precision='fp32', got "
                f"{network.batchnorm!r} and {network.precision!r}"
            )
        self.dtype, self.device = self.objective.dtype, torch.device("cpu") if offload else self.objective.device
        # the least of all processes: they must take the same steps
        numbers(at_least=0, finite=False, optional=True, memory=memory)
        free = free_memory(self.objective.device) / 2 if memory is None else memory
        self.memory = min(parallel.gather(free))
        self.vector_memory = min(parallel.gather(free_memory(self.device) / 2)) if offload else self.memory
        self.products, self.offload = 0, offload
        self._inputs = None if at is None else LayerInputs(self.objective, at)
        self.coordinates: Coordinates = self._inputs.coordinates if self._inputs else self.objective.coordinates
        self.shape, self.shards = (self.coordinates.numel, self.coordinates.numel), self.coordinates.shards
        self._kept: dict[int, Graph] = {}
        self._captured: CapturedProducts | None = None
        plain, device = self._inputs is None and products == "exact" and not self.shards, self.objective.device
        self._may_capture = plain and cuda_graphs.should_capture(device, self.coordinates.total)
        self._aside = device if self._may_capture else None  # where graphs are made, and asked
        self._weights = self.objective.batch_weights
        self._mine = self.objective.share(self._inputs is None)
        explained = translated("a product with the Hessian", self.objective.model)
        with self._at_work(), explained:
            first = next(self.objective.batches())
            self.objective.check_derivatives(2 if products == "exact" else 1)
            is_verified = self._inputs is None and self.objective.derivatives == "exact"
            if products == "difference":
                self.radius, is_verified = self._chosen_radius(first), True
            build = partial(self._build, 0)
            self.probe, graph = probe(build, first, self.objective, self.coordinates, is_verified)
        if 0 in self._room() and self._is_whole(0) and self.objective.same_order:
            self._kept[0] = graph

    def __repr__(self) -> str:
        where = f"{self.coordinates.space} space, {self.objective.samples or 'unknown'} samples, {self.dtype}"
        return f"{type(self).__name__}({self.shape[0]:,} × {self.shape[0]:,}; raw units, {where}, {self.device})"

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        columns = self._columns(vectors)
        total = torch.zeros(len(columns), local_size(self), dtype=torch.float64, device=self.device)
        for _, rows, image in self._images(columns):
            total[rows].add_(image.to(self.device))  # += would copy it once more
        total = self._summed(total) / sum(self._weights)
        return total.to(self.dtype).T.reshape(vectors.shape)

    @checked
    def by_fold(self, vectors: Tensor) -> Tensor:
        """Return A_f v for each fold f of the data, (folds, n) or (folds, n, k): their weighted mean is A v.

        In float32 where the network is in half precision.
        """
        weights = (self.fold_weights * sum(self._weights)).to(self._sum_dtype)
        columns = self._columns(vectors)
        images = torch.zeros(len(weights), len(columns), local_size(self), dtype=weights.dtype, device=self.device)
        here = images if images.device == self.objective.device else None  # on the host, fold by fold
        for fold, rows, image in self._images(columns, here):
            if here is None:
                images[fold, rows].add_(image.to(self.device))
        means = self._summed(images).div_(weights[:, None, None])
        return means.transpose(1, 2).reshape(len(images), *vectors.shape)

    def held(self) -> contextlib.AbstractContextManager[Any]:
        """Hold the network in measurement mode over many products, where all graphs are kept; other threads wait.

        Elsewhere each product holds it, so that what is read or built anew finds the same random numbers.
        """
        are_kept = min(parallel.gather(self._share_kept())) == 1
        return self.objective.measurement_mode() if are_kept else contextlib.nullcontext()

    def start(self) -> Tensor | None:
        """Return the gradient where kept graphs hold it, None elsewhere: it leans towards the top eigenvectors."""
        if self._inputs or min(parallel.gather(self._share_kept())) < 1:
            return None
        total = torch.zeros(local_size(self), dtype=torch.float64, device=self.device)
        with self._at_work():
            for _, graph in self._graphs():
                if not isinstance(graph, HessianGraph):
                    return None
                total += torch.cat([part.detach().reshape(-1) for part in graph.gradient]).to(self.device)
        return self._summed(total)

    @cached_property
    def fold_weights(self) -> Tensor:
        """The folds' shares of the data, (folds,) float64: groups of batches, one if their order may change."""
        sums = torch.bincount(torch.tensor(self._folds()), torch.tensor(self._weights, dtype=torch.float64))
        return (sums / sums.sum()).to(self.device)

    @property
    def _sum_dtype(self) -> torch.dtype:
        """What batches are summed in: the model's dtype, but no half precision."""
        return self.dtype if self.dtype.itemsize >= 4 else torch.float32

    @checked
    def product_error(self, vector: Tensor) -> float:
        """Return how far ``H @ v`` is from the second derivative's product, relative to its norm, by measuring.

        0 for exact products; see `landscape.curvature.gradient_differences.measured_error`.

        Cost: seven gradients over the data.
        """
        if self.radius is None:
            return 0.0
        (column,) = self._columns(vector)
        return measured_error(self.objective, column, self.radius)

    @checked
    def scaled(self, d: Tensor | Mapping[str, Tensor]) -> Scaled:
        """Return D·A·D for a diagonal D, given as a vector of shape (n,) or as a point."""
        if not isinstance(d, Tensor) and (missing := [name for name in self.coordinates.names if name not in d]):
            raise ValueError(f"d must have a tensor for each weight that varies, got none for {missing[0]!r}")
        return Scaled(self, d if isinstance(d, Tensor) else self.coordinates.flatten(d))

    def recentred(self, objective: Objective) -> Hessian:
        """Return the operator of the same function about other weights (see `landscape.model.recentred`); no graphs."""
        other = copy.copy(self)
        other.objective, other.coordinates, other._kept, other._captured = objective, objective.coordinates, {}, None
        vars(other).pop("_leaves", None)
        return other

    def filter_relative(self) -> Scaled:
        """Return D·A·D in filter-relative units (`Coordinates.filter_scale`): what networks can be compared by."""
        if self._inputs:
            raise ValueError("a layer's input has no filters: use units='raw' with at=")
        return Scaled(self, self.coordinates.flatten(self.coordinates.filter_scale()), "filter")

    @checked
    def estimate(self, products: int, vectors: int = 0) -> dict[str, float]:
        """Return what this many products in a row take in a process: seconds, and bytes of graphs and of vectors.

        Vectors are those that are kept, as many as given, and what a product is summed up in; of a sharded network
        also one of all weights, whose gradients each process has of its rows before they are added up.
        """
        numbers(whole=True, at_least=0, products=products, vectors=vectors)
        samples, share = sum(map(len, self._mine.values())), self._share_kept()
        built = 1 + (products - 1) * (1 - share)
        seconds = samples * (built * self.probe.build_seconds + products * self.probe.product_seconds)
        sums = 2 * torch.float64.itemsize + self.dtype.itemsize  # of all batches, of a fold; a batch's product
        held = (vectors * basis_dtype(self).itemsize + sums) * local_size(self)
        held += self.dtype.itemsize * self.shape[0] * bool(self.shards)
        return {"seconds": seconds, "bytes": share * samples * self.probe.graph_bytes, "vectors": held}

    def about(self, **more: Any) -> dict[str, Any]:
        """Describe how a result came about: what `Objective.about` says, the matrix and the way of its products."""
        share = self._share_kept()
        graphs = "graphs kept" if share == 1 else "graphs rebuilt" if share == 0 else f"{share:.0%} of the graphs kept"
        space = {"space": self.coordinates.space} if self._inputs else {}
        way = {"matrix": self.matrix, "units": "raw", "products_by": f"double backward, {graphs}"}
        if self.radius is not None:
            way |= {"products_by": f"differences of gradients, ‖εv‖ = {self.radius:g}·‖w‖", "derivatives": "difference"}
        return self.objective.about() | space | way | more

    def _summed(self, images: Tensor) -> Tensor:
        """Add up what the processes computed, unless the gradients of a sharded network have been already."""
        return images if self.shards else parallel.sum_(images)

    def _columns(self, vectors: Tensor) -> tuple[Tensor, ...]:
        n = local_size(self)
        if vectors.ndim not in (1, 2) or vectors.shape[0] != n:
            raise ValueError(f"vectors must have shape ({n},) or ({n}, k), got {tuple(vectors.shape)}")
        columns = vectors if vectors.ndim == 2 else vectors[:, None]
        return columns.to(self.objective.device, self.dtype).unbind(1)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        with self.objective.measurement_mode(), torch.enable_grad(), cuda_graphs.side_stream(self._aside):
            yield

    def _images(
        self, columns: Sequence[Tensor], images: Tensor | None = None
    ) -> Iterator[tuple[int, int | slice, Tensor]]:
        """Yield a fold, columns, and the sum over some of its batches of weight·A_batch·v for these.

        They are added up in ``images``, zeros of shape (folds, k, n), where these are given.
        """
        self.products += len(columns)
        folds, shape = self._folds(), (len(columns), local_size(self))
        sums = torch.zeros(shape, dtype=self._sum_dtype, device=self.objective.device) if images is None else images[0]
        with self._at_work():
            if (captured := self._captured_products(columns[0])) is not None:
                for row, column in enumerate(columns):
                    found = captured(column)
                    if images is not None:
                        images[:, row] = found
                        continue
                    for fold, image in enumerate(found):
                        yield fold, row, image
                return
            cut = list(map(self._parts, columns))
            for fold, graphs in itertools.groupby(self._graphs(), lambda pair: folds[pair[0]]):
                sums = sums.zero_() if images is None else images[fold]
                totals = list(map(self._parts, sums))
                for index, graph in graphs:
                    if self._inputs:
                        cut, totals = ([self._inputs.cut(index, v) for v in vectors] for vectors in (columns, sums))
                    for total, vector in zip(totals, cut, strict=True):
                        # in place, part by part: laying all out as one vector first takes longer than adding
                        torch._foreach_add_(total, graph.product(vector))
                yield fold, slice(None), sums

    def _captured_products(self, vector: Tensor) -> CapturedProducts | None:
        """Return the products of all graphs as one CUDA graph, where they are kept and it can be captured."""
        are_kept = len(self._kept) == len(self._mine) and self.products > _CAPTURED_AFTER
        if self._may_capture and self._captured is None and are_kept:
            folds = self._folds()

            def add_to(images: Tensor, column: Tensor) -> None:
                totals, cut = list(map(self._parts, images)), self._parts(column)
                for index, graph in self._kept.items():
                    torch._foreach_add_(totals[folds[index]], graph.product(cut))

            images = torch.zeros(max(folds) + 1, local_size(self), dtype=self._sum_dtype, device=vector.device)
            try:
                self._captured = CapturedProducts(add_to, images, vector)
            except RuntimeError:  # each graph is asked, then
                self._may_capture = False
        return self._captured

    def _parts(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector into views in the shapes of what varies."""
        return list(self.coordinates.unflatten(vector).values())

    def _graphs(self) -> Iterator[tuple[int, Graph]]:
        """Yield index and graph of each batch of this process: graphs kept, and others built anew."""
        if len(self._kept) == len(self._mine):
            yield from self._kept.items()
            return
        kept, room = dict(self._kept), self._room()
        for index, batch in enumerate(self.objective.batches()):
            if index not in self._mine:
                continue
            if index not in kept and not self._is_whole(index):
                rows = self._mine[index]
                batch = taken(batch, slice(rows.start, rows.stop), self.objective.batch_rows[index])
            graph = kept[index] if index in kept else self._build(index, batch)
            if index in room:
                kept[index] = graph
            yield index, graph
        self._kept = kept  # only now: an interrupted product leaves nothing half done

    def _is_whole(self, index: int) -> bool:
        return len(self._mine[index]) == self.objective.batch_rows[index]

    def _build(self, index: int, batch: Any) -> Graph:
        if self._inputs:
            with self._inputs.hooked(index) as leaf:
                return self.graph_type(self.objective, self.objective.tensors(), [leaf], batch)
        if self.radius is not None:
            return GradientDifferences(self.objective, self._leaves, batch, self.radius)
        return self.graph_type(self.objective, self._leaves, list(self._leaves.values()), batch)

    def _chosen_radius(self, batch: Any) -> float:
        if self.objective.derivatives == "straight-through":
            raise ValueError(
                "products='difference' needs gradients that are derivatives: where activations are rounded, "
                "differences of straight-through gradients are off by as much as they are long"
            )
        build = partial(GradientDifferences, self.objective, self._leaves, batch)
        return parallel.gather(best_radius(build, self.objective))[0]

    @cached_property
    def _leaves(self) -> Point:
        """The tensors that the graphs of all batches differentiate by."""
        return {name: tensor.detach().requires_grad_() for name, tensor in self.objective.tensors().items()}

    def _room(self) -> Sequence[int]:
        """Return the batches of this process whose graphs fit in memory; all or none where their order may change."""
        used = itertools.accumulate(len(rows) * self.probe.graph_bytes for rows in self._mine.values())
        room = sum(held <= self.memory for held in used)
        return list(self._mine)[:room] if room == len(self._mine) or self.objective.same_order else ()

    def _share_kept(self) -> float:
        return sum(len(self._mine[index]) for index in self._room()) / sum(map(len, self._mine.values()))

    def _folds(self) -> list[int]:
        """Give each batch its fold."""
        batches = len(self.objective.batch_rows)
        most = min(FOLDS, batches, int(_FOLD_BYTES / (8 * self.shape[0])))
        alone = self._inputs or not self.objective.same_order
        folds = most if most >= 4 and not alone else 1  # a scatter of two or three says nothing
        return [index * folds // batches for index in range(batches)]


class GGN(Hessian):
    """The generalised Gauss-Newton matrix Jᵀ·∇²_z loss·J, z the output: the Hessian of the linearized network.

    Never indefinite where the loss is convex in the output (cross-entropy, squared error); for cross-entropy it is the
    Fisher information.

    Args:
        model, data, space, layers, at, loss, memory, offload: as for `Hessian`; the loss must be
            ``loss(output, target)``.

    Raises:
        ValueError: as `Hessian`; an objective that does not hand out the network's output.

    Cost: 0.64 (ResNet-20) to 0.8 (an MLP) of a Hessian's products, on a CPU.

    Source: Schraudolph 2002; Martens 2010.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Linear(3, 2)
        >>> ggn = landscape.GGN(model, (torch.randn(8, 3), torch.randint(2, (8,))))
        >>> bool(torch.linalg.eigvalsh(ggn @ torch.eye(8)).min() > -1e-6)
        True
    """

    matrix = "generalised Gauss-Newton"
    graph_type = GaussNewtonGraph

    def __init__(
        self,
        model: nn.Module | Objective,
        data: Any = None,
        *,
        space: Space | None = None,
        layers: Sequence[str] | None = None,
        at: str | None = None,
        loss: Loss | None = None,
        memory: float | None = None,
        offload: bool = False,
    ) -> None:
        if isinstance(model, Objective) and not model.criterion.has_output:
            raise ValueError("GGN needs the network's output: make the objective with loss=loss(output, target)")
        super().__init__(model, data, space=space, layers=layers, at=at, loss=loss, memory=memory, offload=offload)
