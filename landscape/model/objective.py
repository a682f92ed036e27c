"""A network, its data and its loss as one function of a displacement of its weights.

f(d) = Σ_b weight_b · loss(network at centre + d, batch b) / Σ_b weight_b, with batches of any size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import numbers
from . import measuring
from .adapters import RoundedWeight, rounded_in_use, rounded_weights
from .batches import (
    KEPT,
    NEEDS_TARGETS,
    bytes_of,
    cut,
    generators_of,
    keeps_order,
    moved,
    read_rows,
    rows_of_process,
    samples_of,
    some_rows,
    source,
    taken,
)
from .batchnorm import recomputed_statistics
from .checks import CallOnCopies, Reduction, call_of, check_integers, check_objective, check_reached, reduction_seen
from .coordinates import Point, Space
from .criterion import BatchObjective, Criterion
from .derivatives import Verdict, verify
from .errors import translated
from .evaluation import Evaluation, joined, merged
from .losses import BatchLoss, Loss, Output
from .network import BatchNorm, Network, Precision
from .sharding import layouts_of


class Objective:
    """The loss of a network as a function of a displacement of its weights; valid once made.

    Every measuring function takes one in place of a model, and then none of its arguments again. Make one where several
    numbers are measured of one network, or where an argument is needed that a function does not have.

    A network in shards over processes (``fully_shard``, DTensors) is measured by all of them together, each with its
    rows of every batch, and the numbers are those of one process. FSDP's hooks are out meanwhile; weights are computed
    with in the dtype of the shards, whatever a mixed-precision policy says. Points and vectors then hold this
    process's shards, and eigenvectors and directions in results are DTensors: ``.full_tensor()`` in all processes gives
    the whole. Memory: the shards, a weight at a time, and once per pass the gradients of all weights.

    Args:
        model: any network; evaluated in eval mode, in its own dtype, with TF32 off. Not touched.
        data: ``(x, y)`` tensors, a re-iterable of batches (a list, a DataLoader) that are pairs, mappings
            (``model(**batch)``) or objects with their targets as ``.y`` or ``.labels``, or anything with a ``.probe``;
            default ``model.probe``.
        loss: ``loss(output, target)`` → mean, sum or one value per sample; default cross-entropy, or the loss that the
            network's own output carries where a batch holds its labels.
        objective: ``objective(model, batch) → (mean loss, weight)`` for anything else; then batches may be anything.
        output: which part of what the network returns the loss is given: a name, an index, or a function of it.
            Default: all of it for a loss of your own, the logits for cross-entropy.
        metrics: name → ``metric(output, target)``, a mean or one value per sample, measured beside the loss.
        space, layers: which coordinates vary, see `landscape.model.coordinates`.
        batchnorm: ``"fixed"`` statistics, or ``"recomputed"`` by one pass over the data at every point.
        precision: ``"fp32"`` (the model's own dtype), or ``"bf16"`` for forward passes under autocast.
        batch_size: rows per batch, at most, where ``data`` is ``(x, y)`` and the loss is that of its parts; default
            200,000 input elements on a CPU and 1,024 rows on an accelerator, but five to ten batches where each has 32
            rows.
        validate: whether to check that the loss is finite and repeats, and that all processes measure the same.

    Attributes:
        network: the model with some of its tensors replaced, a `landscape.model.network.Network`.
        coordinates: what varies, and where it stands.
        centre: the `Evaluation` of the model itself.
        criterion: what is averaged over the batches, a `landscape.model.criterion.Criterion`.
        rounded: the weights that are known to be rounded, by name.
        reduction: ``"mean"``, or ``"sum"`` where the loss of the whole is the sum of its parts'.
        batch_rows, batch_weights: samples and weight of each batch.

    Raises:
        ValueError: no probe, empty data, unknown settings, nothing trainable, labels out of range, a loss that is not
            finite, or one that changes when repeated.
        TypeError: data that can be read only once, batches that are no pairs where no objective is given.

    Cost: one forward pass over the data (two with recomputed statistics), eight of one batch, one gradient of it in
    quantized space, two where BatchNorm may be folded, and two more passes of it where there is attention; two passes
    more where the data are not ``(x, y)``.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Linear(3, 2)
        >>> data = torch.randn(8, 3), torch.randint(2, (8,))
        >>> objective = landscape.Objective(model, data)
        >>> objective.samples, objective.coordinates.numel
        (8, 8)
        >>> landscape.trace(objective).value == landscape.trace(model, data).value
        True
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any = None,
        *,
        loss: Loss | None = None,
        objective: BatchObjective | None = None,
        output: Output | None = None,
        metrics: Mapping[str, Loss] | None = None,
        space: Space | None = None,
        layers: Sequence[str] | None = None,
        batchnorm: BatchNorm = "fixed",
        precision: Precision = "fp32",
        batch_size: int | None = None,
        validate: bool = True,
    ) -> None:
        parallel.check_agreement(**locals())
        numbers(whole=True, at_least=1, optional=True, batch_size=batch_size)
        self.criterion = Criterion(loss, objective, output, metrics)
        self.criterion.checks_default = validate
        self.batch_size = batch_size
        self.reduction: Reduction = "sum" if self.criterion.is_sum else "mean"
        self._factor, self.needs_grad, self._shares_rows = 1.0, False, False
        self._verdict: list[Verdict] = []  # of the derivatives, once they are asked for; shared by variants
        self._validates = validate
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module or a landscape.Objective, got {type(model).__name__}")
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        mode = measuring.measurement_mode(model, generators_of(model if data is None else data))
        with mode as held, translated("the first forward pass", model):
            self._call = CallOnCopies(self.criterion.objective or call_of)
            network = partial(Network, model, self._call, layers=layers, batchnorm=batchnorm, precision=precision)
            sharded = layouts_of(self.model)
            self.rounded = {} if sharded else rounded_weights(self.model)
            self.network = network(space=space, rounded=self.rounded)
            self.device, self.dtype = self.network.device, self.network.dtype
            self._uncut, self.is_pair = source(self.model, data, self.device, objective is not None)
            self._batches = self._uncut
            self._wide: list[Any] | None = None  # the data in fewer batches, for values alone
            rows, parts, first = self._read()
            check_integers(self.network, self.rounded, first)
            in_use = {} if sharded else self._rounded_in_use({}, first)
            held.renew()
            if in_use:
                self.rounded |= in_use
                self.network = network(space=space, rounded=self.rounded)
            self.coordinates = self.network.coordinates
            self._settle(rows, parts, first)
            self._evaluate_centre()
            if validate:
                check_objective(self)
                if not isinstance(self._batches, list | tuple) and bytes_of(first) * len(rows) <= KEPT:
                    self._keep_batches()
        self.criterion.checks_default = False
        if self.coordinates.layouts:
            self.about()  # its sums over processes are known from now on, whoever asks

    @property
    def samples(self) -> int | None:
        """The number of samples; None where nothing tells."""
        return sum(self.batch_rows) if self._knows_samples else None

    @property
    def same_order(self) -> bool:
        """Whether every pass sees the same samples in the same order."""
        return keeps_order(self._batches)

    def batches(self, uncut: bool = False) -> Iterator[Any]:
        """Yield the batches on the model's device, floating tensors in its dtype; those that were given if uncut."""
        for batch in self._uncut if uncut else self._batches:
            yield moved(batch, *self._where)

    def value_batches(self) -> Iterator[Any]:
        """Yield the same data as `evaluate` reads them: in fewer batches where samples do not depend on each other."""
        yield from self.batches() if self._wide is None else (moved(batch, *self._where) for batch in self._wide)

    def tensors(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Return the tensors that vary at centre + displacement, in the order of the coordinates."""
        return self.network.tensors(displacement)

    def loss(self, tensors: Mapping[str, Tensor], batch: Any) -> BatchLoss:
        """Compute the loss of one batch at given tensors; of a sharded network, each process from its own rows."""
        own, share = self.own_rows(batch)
        output = self.network.output(tensors, own)
        result = self.loss_of(output, own) if self.criterion.has_output else BatchLoss(*output)
        if not self.coordinates.layouts:
            return result
        return joined(result, share, samples_of(batch) if own is not batch else None)

    def own_rows(self, batch: Any) -> tuple[Any, float]:
        """Return the rows of a batch that this process computes, and what their sum counts: all, unless sharded."""
        return rows_of_process(batch, self._shares_rows) if self.coordinates.layouts else (batch, 1.0)

    def share(self, by_rows: bool = True) -> dict[int, range]:
        """Return what this process computes of a sum over the data: batch → its rows.

        Rows are shared evenly where the loss of a batch is that of its parts, elsewhere whole batches. Every process
        takes part in all of them where the network is sharded.

        Raises:
            ValueError: too little data for so many processes, or a loader that shuffles.
        """
        counts, batches = self.batch_rows, self._batches
        if parallel.size() > 1 and not self.same_order:
            raise ValueError("several processes need data in one order: pass (x, y) or a list of batches, not a loader")
        can_cut = by_rows and self._shares_rows and isinstance(batches, list | tuple)
        if parallel.size() == 1 or self.coordinates.layouts:
            return dict(enumerate(map(range, counts)))
        if can_cut and all(taken(b, slice(1), n) is not None for b, n in zip(batches, counts, strict=True)):
            return parallel.share_rows(counts)
        return {index: range(counts[index]) for index in parallel.share(len(counts))}

    def loss_of(self, output: Any, batch: Any) -> BatchLoss:
        """Compute the loss of one batch from the network's output."""
        return self.scaled(self.criterion(output, batch, self.dtype))

    def scaled(self, result: BatchLoss) -> BatchLoss:
        """Return the loss of a batch as it counts: a sum as one over its weight, and times what makes it the whole."""
        if self.reduction == "sum" and result.losses is None:
            result = result._replace(mean=result.mean / result.weight)
        return result if self._factor == 1 else result.scaled(self._factor)

    def evaluate(self, displacement: Mapping[str, Tensor] | None = None) -> Evaluation:
        """Return loss, accuracy (NaN where there is none) and metrics at centre + displacement.

        Cost: one forward pass over the data; two where BatchNorm statistics are recomputed.
        """
        with self.measurement_mode(), torch.set_grad_enabled(self.needs_grad):
            return merged(self._passes(self.network.values_at(displacement)), self.same_order)

    def gradient(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Return the gradient of the mean loss at centre + displacement.

        Raises:
            ValueError: it is not the derivative of the loss.

        Cost: one gradient over the data; at the first call that of `check_derivatives`.
        """
        return self.loss_and_gradient(displacement)[1]

    def loss_and_gradient(self, displacement: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Point]:
        """Return the mean loss there too; see `gradient`."""
        losses, total, weights = [], None, 0.0
        with self.measurement_mode(), translated("the gradient", self.model), torch.enable_grad():
            self.check_derivatives(1)
            for batch in self.batches():
                leaves = {k: v.detach().requires_grad_() for k, v in self.tensors(displacement).items()}
                loss = self.loss(leaves, batch)
                parts = torch.autograd.grad(loss.mean * loss.weight, list(leaves.values()), materialize_grads=True)
                # never in place: two weights may be handed one and the same tensor as their gradient
                total = parts if total is None else tuple(a + b for a, b in zip(total, parts, strict=True))
                losses.append(loss.mean.detach().double() * loss.weight)
                weights += loss.weight
        assert total is not None
        gradient = {name: part / weights for name, part in zip(self.coordinates.names, total, strict=True)}
        return torch.stack(losses).sum() / weights, gradient

    def check_derivatives(self, order: int) -> None:
        """Raise if a derivative up to this order is not what backward computes; measured once, at the first call.

        Raises:
            ValueError: with what differences of the loss, or of its gradient, say instead.

        Cost: see `landscape.model.derivatives.verify`.
        """
        if not self._validates:
            return
        if not self._verdict:
            with self.measurement_mode() as mode:
                self._verdict.append(verify(self))
                mode.renew()
        self._verdict[0].check(order)

    @property
    def derivatives(self) -> str:
        """What the derivatives are: "exact", "straight-through", "unverified", or "not measured" so far."""
        if self._verdict:
            return self._verdict[0].label
        return "straight-through" if self.coordinates.straight_through else "not measured"

    def on(self, batch: Any) -> Objective:
        """Return the same function on one batch alone; tensors are shared.

        Where the loss is a sum, that of the batch is scaled to the whole: the weighted mean over batches is the whole.
        """
        other = copy.copy(self)
        other._batches, other.batch_rows = [batch], [samples_of(batch) or 1]
        other._uncut, other._wide = other._batches, None
        other._evaluate_centre(self._factor)
        return other

    def of(self, model: nn.Module) -> Objective:
        """Return the same function of another network of this architecture, on the same batches; not validated."""
        network, floating = self.network, [p for p in model.parameters() if p.is_floating_point()]
        if floating and not any(p.requires_grad for p in floating):  # nothing has to vary here
            model = measuring.copied(model)
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
        space = None if self.coordinates.space == "float" else self.coordinates.space
        where: Any = {"space": space, "batchnorm": network.batchnorm, "precision": network.precision}
        data: Any = next(iter(self._uncut)) if self.is_pair else self._batches
        return Objective(model, data, batch_size=self.batch_size, validate=False, **self.criterion.arguments, **where)

    @property
    def _is_adapted(self) -> bool:
        return any(weight.output is not None for weight in self.rounded.values())

    def rounded_at(self, displacement: Mapping[str, Tensor] | None) -> dict[str, RoundedWeight]:
        """Return the weights that the network rounds at centre + displacement, in latent space."""
        tensors = self.tensors(displacement)
        with self.measurement_mode():
            in_use = self._rounded_in_use(tensors, next(self.batches())) if self._is_adapted else {}
            self.network.swap_in(tensors)
            return rounded_weights(self.model) | in_use

    def _rounded_in_use(self, tensors: Mapping[str, Tensor], batch: Any) -> dict[str, RoundedWeight]:
        self.network.swap_in(tensors)
        run = partial(self.network.call, self.model, batch)
        return rounded_in_use(self.model, run, self.network.coordinates.names)

    def variant(self, **settings: Any) -> Objective:
        """Return the same function with another precision or batchnorm, or ``folded=False``; tensors are shared."""
        other = copy.copy(self)
        other.network = copy.copy(self.network)
        vars(other.network).update(settings)
        other.network.folded &= other.network.batchnorm == "fixed"
        other._evaluate_centre()
        return other

    def measurement_mode(self) -> measuring.measurement_mode:
        """Hold the model as it is measured: see `landscape.model.measuring.measurement_mode`."""
        return measuring.measurement_mode(self.model, generators_of(self._batches), self.network.frozen)

    def about(self, **more: Any) -> dict[str, Any]:
        """Describe how a result came about."""
        network = self.network
        note = self._verdict[0].reason if self._verdict else ""
        return {
            "space": self.coordinates.space,
            "derivatives": self.derivatives,
            **({"derivatives_note": note} if note else {}),
            "varies": self.coordinates.varies,
            **({"batchnorm": network.batchnorm, "batchnorm_folded": network.folded} if network.norms else {}),
            "samples": self.samples or "unknown",
            **({} if self.reduction == "mean" else {"reduction": self.reduction}),
            "centre_loss": float(f"{float(self.centre.loss):.6g}"),
            "dtype": str(self.dtype).removeprefix("torch."),
            "precision": network.precision,
            "device": str(self.device),
            "weight_norm": self.coordinates.norm(),
            "torch": str(torch.__version__),
        } | more

    def __repr__(self) -> str:
        what, n = type(self.model).__name__, self.coordinates.numel
        samples = "samples unknown" if self.samples is None else f"{self.samples:,} samples"
        loss, space = float(self.centre.loss), self.coordinates.space
        return f"Objective({what}, {samples}, loss {loss:.4g}; {n:,} coordinates, {space} space)"

    def _read(self) -> tuple[list[int | None], list[Any], Any]:
        """Read the data once: the samples of each batch, the parts that a pair may be cut into, and a small batch."""
        rows = read_rows(self._batches)
        if not rows or 0 in rows:
            raise ValueError(f"data is empty, or one of its batches is: pass at least one sample in each, got {rows}")
        x, y = next(iter(self._batches)) if self.is_pair else (torch.empty(0), torch.empty(()))
        parts = cut(x, y, self.batch_size) if y.ndim and len(x) == len(y) else []
        if len(parts) < 2:
            return rows, parts, next(self.batches())
        return rows, parts, moved(some_rows((x, y), max(8, len(parts[0][1]))), *self._where)

    def _keep_batches(self) -> None:
        """Read a loader once and for all: it makes its batches anew in every pass, and may shuffle them.

        One that shuffles stays as it is among several processes, each of which would see another order.
        """
        shuffles = not self.same_order
        if shuffles and parallel.size() > 1:
            return
        self._batches = self._uncut = list(self.batches())
        if shuffles:
            self.batch_rows = [samples_of(batch) or 1 for batch in self._batches]
            self._evaluate_centre()

    def _settle(self, rows: list[int | None], parts: list[Any], first: Any) -> None:
        """Find out what the network and the loss do, and cut a pair where that changes nothing."""
        try:
            self.needs_grad = self.network.settle(lambda tensors: self.loss(tensors, first).mean)
        except Exception as error:
            if not self.is_pair or not first[1].ndim or len(first[0]) == len(first[1]):
                raise
            raise ValueError(f"{NEEDS_TARGETS}, got {len(first[0])} and {len(first[1])}") from error
        self._call.settle()
        check_reached(self.network, lambda tensors: self.loss(tensors, first).mean)
        kind, is_of_parts = None, False
        if self.criterion.has_output or self.is_pair:
            several = next((batch for batch in self.batches() if (samples_of(batch) or 0) > 1), first)
            kind, is_of_parts = reduction_seen(self, first if len(parts) > 1 else several)
        if kind == "sum":
            self.reduction = "sum"
        self._shares_rows = is_of_parts
        if is_of_parts and len(parts) > 1:
            self._batches = parts
            if kind == "samples" and not (self.batch_size or self.criterion.metrics):
                x, y = next(iter(self._uncut))
                self._wide = cut(x, y, None, has_folds=False)
            rows = [len(targets) for _, targets in parts]
        elif self.batch_size and len(parts) > 1:
            raise ValueError(
                f"batch_size={self.batch_size} would change the loss, which of the whole is not the mean or the sum of "
                "its parts' (a batch's samples interact, or its targets weigh differently): leave batch_size out"
            )
        if self.network.coordinates.layouts and not self.same_order:
            raise ValueError(
                "a sharded network needs data in one order: pass (x, y) or a list of batches, not a loader"
            )
        self._knows_samples = None not in rows
        self.batch_rows = [row or 1 for row in rows]

    @property
    def _where(self) -> tuple[Any, ...]:
        return self.device, self.dtype, self.network.dtypes

    def _evaluate_centre(self, factor: float | None = None) -> None:
        self._factor = 1.0
        with self.measurement_mode(), torch.set_grad_enabled(self.needs_grad):
            passes = self._passes(self.tensors())
        self.batch_weights = [float(part.weight) for part in passes]
        if self._wide is not None:
            shares = [torch.ones_like(p.losses) if p.shares is None else p.shares for p in passes]  # type: ignore[arg-type]
            self.batch_weights = [float(part.sum()) for part in torch.cat(shares).split(self.batch_rows)]
        if not self._knows_samples and all(part.losses is not None for part in passes):
            self._knows_samples, self.batch_rows = True, [len(part.losses) for part in passes]  # type: ignore[arg-type]
        if not self._knows_samples and self.criterion.has_output and len(passes) > 1:
            raise ValueError(
                "nothing tells how many samples each batch has: pass objective=(model, batch) → (mean loss, weight)"
            )
        if self.reduction == "sum":
            self._factor = factor or sum(self.batch_weights)
            passes = [part.scaled(self._factor) for part in passes]
        self.centre = merged(passes, self.same_order)

    def _passes(self, tensors: Point) -> list[BatchLoss]:
        if self.network.batchnorm == "recomputed":
            # of the batches that were given: a cut for memory and errors must not decide on them
            rows = self.batch_rows if self._uncut is self._batches else [sum(self.batch_rows)]
            tensors = tensors | recomputed_statistics(self.network, tensors, self.batches(uncut=True), rows)
        return [self.loss(tensors, batch) for batch in self.value_batches()]
