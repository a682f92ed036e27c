"""A network, its data and its loss as one function of a displacement of its weights.

f(d) = Σ_b weight_b · loss(network at centre + d, batch b) / Σ_b weight_b, with batches of any size.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import numbers, one_of
from .batches import moved, probe_of, rows_of, source
from .batchnorm import recomputed_statistics
from .checks import BatchObjective, check_labels, check_repeats, checked_objective, pair, stochastic_module
from .coordinates import Point, Space
from .measuring import measurement_mode
from .network import BatchNorm, Network, Precision

Loss = Callable[[Tensor, Tensor], Tensor]
Output = str | int | Callable[[Any], Any]


class BatchLoss(NamedTuple):
    """The loss of one batch: its mean and weight; losses, hits and metrics of its samples where they are known."""

    mean: Tensor
    weight: Any
    losses: Tensor | None = None
    hits: Tensor | None = None
    metrics: tuple[Tensor, ...] = ()


class Evaluation(NamedTuple):
    """The function at one point, float64 on the model's device: nothing here waits for an accelerator.

    ``losses`` and ``hits`` are those of the samples; where the loss gives a mean only, of the batches; empty where
    their order is not always the same. ``weights`` belong to them and sum to one.
    """

    loss: Tensor
    accuracy: Tensor
    losses: Tensor
    hits: Tensor
    weights: Tensor
    metrics: Tensor

    def stderr(self, other: Evaluation | None = None, field: str = "losses") -> Tensor:
        """Return the standard error over the data of the mean, or of the difference to another point, paired.

        NaN with fewer than two samples (or batches) to tell it from.
        """
        values = getattr(self, field) if other is None else getattr(self, field) - getattr(other, field)
        return stderr_of_mean(values, self.weights)


def stderr_of_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the standard error of Σ weights·values, for independent values and weights that sum to one."""
    if len(values) < 2:
        return torch.full((), float("nan"), dtype=torch.float64, device=values.device)
    deviations = weights * (values - (weights * values).sum())
    return (deviations.square().sum() * len(values) / (len(values) - 1)).sqrt()


class Objective:
    """The loss of a network as a function of a displacement of its weights; valid once made.

    Every measuring function takes one in place of a model, and then none of its arguments again. Make one where several
    numbers are measured of one network, or where an argument is needed that a function does not have.

    Args:
        model: any network; evaluated in eval mode, in its own dtype, with TF32 off. Not touched.
        data: ``(x, y)`` tensors, a re-iterable of such batches (a list, a DataLoader), or anything with a ``.probe``;
            default ``model.probe``.
        loss: ``loss(output, target)`` → mean or one value per sample; default cross-entropy.
        objective: ``objective(model, batch) → (mean loss, weight)`` for anything else; then batches may be anything.
        output: which part of what the network returns the loss is given: a name, an index, or a function of it.
        metrics: name → ``metric(output, target)``, a mean or one value per sample, measured beside the loss.
        space, layers: which coordinates vary, see `landscape.model.coordinates`.
        batchnorm: ``"fixed"`` statistics, or ``"recomputed"`` by one pass over the data at every point.
        precision: ``"fp32"`` (the model's own dtype), or ``"bf16"`` for forward passes under autocast.
        batch_size: rows per batch, at most, where ``data`` is ``(x, y)``; default 200,000 input elements on a CPU
            and 1,024 rows on an accelerator, but five to ten batches where each has 32 rows.
        validate: whether to check that the loss is finite and repeats, and that all processes measure the same.

    Attributes:
        network: the model with some of its tensors replaced, a `landscape.model.network.Network`.
        coordinates: what varies, and where it stands.
        centre: the `Evaluation` of the model itself.
        loss_name: what the loss is called.
        batch_rows, batch_weights: samples and weight of each batch.

    Raises:
        ValueError: no probe, empty data, unknown settings, nothing trainable, labels out of range, a loss that is not
            finite, or one that changes when repeated.
        TypeError: data that can be read only once, batches that are no pairs where no objective is given.

    Cost: one forward pass over the data (two with recomputed statistics), three of one batch, and two gradients of one
    batch where BatchNorm may be folded; two passes more where the data are not ``(x, y)``.

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
        one_of("batchnorm", batchnorm, BatchNorm)
        one_of("precision", precision, Precision)
        numbers(whole=True, at_least=1, optional=True, batch_size=batch_size)
        if objective is not None and (loss is not None or metrics or output is not None):
            raise ValueError(
                "objective(model, batch) computes its own loss from its own output: give loss, output and metrics, or "
                "objective"
            )
        if odd := [name for name in metrics or () if name in ("loss", "accuracy", "stderr", "status") or "/" in name]:
            raise ValueError(f"metrics must have names of their own, without a slash, got {odd[0]!r}")
        self.metrics = dict(metrics or {})
        self.has_output = objective is None
        self._loss, self._objective, self._output = loss, objective, output
        measured = objective or loss or torch.nn.functional.cross_entropy
        self.loss_name: str = getattr(measured, "__qualname__", type(measured).__name__)
        self.batch_size = batch_size
        call = checked_objective(objective) if objective else lambda model, batch: _part(model(pair(batch)[0]), output)
        where: Any = {"space": space, "layers": layers, "batchnorm": batchnorm, "precision": precision}
        self.network = Network(model, call, **where)
        self.model, self.coordinates = self.network.model, self.network.coordinates
        self.device, self.dtype = self.network.device, self.network.dtype
        cut = tuple if objective else tuple | list  # with an objective a list is one of batches, whatever they are
        self._batches = source(self.model, data, batch_size, self.device, cut)
        self._as_given = self._batches is probe_of(self.model if data is None else data)
        self._check_labels = validate and loss is None and objective is None
        with self.measurement_mode(), torch.no_grad():
            self._measure_centre()
            if validate:
                self._validate()
        self._check_labels = False

    @property
    def samples(self) -> int:
        """The number of samples."""
        return sum(self.batch_rows)

    @property
    def same_order(self) -> bool:
        """Whether every pass sees the same samples in the same order."""
        return isinstance(self._batches, list | tuple)

    def batches(self) -> Iterator[Any]:
        """Yield the batches on the model's device, floating tensors in its dtype."""
        for batch in self._batches:
            yield moved(batch, self.device, self.dtype)

    def tensors(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Return the tensors that vary at centre + displacement, in the order of the coordinates."""
        return self.network.tensors(displacement)

    def loss(self, tensors: Mapping[str, Tensor], batch: Any) -> BatchLoss:
        """Compute the loss of one batch at given tensors."""
        output = self.network.output(tensors, batch)
        return self.loss_of(output, batch) if self.has_output else BatchLoss(*output)

    def loss_of(self, output: Any, batch: Any) -> BatchLoss:
        """Compute the loss of one batch from the network's output."""
        x, y = pair(batch)
        output = output.to(self.dtype) if isinstance(output, Tensor) and output.is_floating_point() else output
        classes = isinstance(output, Tensor) and output.ndim == 2 and y.ndim == 1 and not y.is_floating_point()
        classes = classes and output.shape[1] > 1
        if self._check_labels and classes:  # before the loss: on CUDA it would abort
            check_labels(y, output.shape[1])
        target, rows = y.long() if classes else y, rows_of(x)
        # one by one where that is plain; a mean leaves out targets that are to be ignored
        default = functools.partial(torch.nn.functional.cross_entropy, reduction="none" if classes else "mean")
        value = (self._loss or default)(output, target)
        metrics = tuple(metric(output, target).double().mean() for metric in self.metrics.values())
        hits = output.argmax(1) == y if classes else None
        return BatchLoss(value.mean(), rows, _by_sample(value, rows), hits, metrics)

    def evaluate(self, displacement: Mapping[str, Tensor] | None = None) -> Evaluation:
        """Return loss, accuracy (NaN where there is none) and metrics at centre + displacement.

        Cost: one forward pass over the data; two where BatchNorm statistics are recomputed.
        """
        with self.measurement_mode(), torch.no_grad():
            return _merge(self._passes(self.tensors(displacement)), self.same_order)

    def gradient(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Return the gradient of the mean loss at centre + displacement. Cost: one gradient over the data."""
        total, weights = None, 0.0
        with self.measurement_mode(), torch.enable_grad():
            for batch in self.batches():
                leaves = {k: v.detach().requires_grad_() for k, v in self.tensors(displacement).items()}
                loss = self.loss(leaves, batch)
                parts = torch.autograd.grad(loss.mean * loss.weight, list(leaves.values()), materialize_grads=True)
                # never in place: two weights may be handed one and the same tensor as their gradient
                total = parts if total is None else tuple(a + b for a, b in zip(total, parts, strict=True))
                weights += loss.weight
        assert total is not None
        return {name: part / weights for name, part in zip(self.coordinates.names, total, strict=True)}

    def on(self, batch: Any) -> Objective:
        """Return the same function on one batch alone; the two share all tensors."""
        other = copy.copy(self)
        other._batches, other.batch_rows = [batch], [rows_of(batch)]
        other._evaluate_centre()
        return other

    def of(self, model: nn.Module) -> Objective:
        """Return the same function of another network of this architecture, on the same batches; not validated."""
        network = self.network
        space = None if self.coordinates.space == "float" else self.coordinates.space
        loss: Any = {"loss": self._loss, "objective": self._objective, "output": self._output}
        where: Any = {"space": space, "batchnorm": network.batchnorm, "precision": network.precision}
        return Objective(model, self._batches, metrics=self.metrics or None, validate=False, **loss, **where)

    def variant(self, **settings: Any) -> Objective:
        """Return the same function with another precision or batchnorm, or ``folded=False``; tensors are shared."""
        other = copy.copy(self)
        other.network = copy.copy(self.network)
        for name, value in settings.items():
            setattr(other.network, name, value)
        other.network.folded &= other.network.batchnorm == "fixed"
        other._evaluate_centre()
        return other

    def measurement_mode(self) -> AbstractContextManager[None]:
        """Hold the model as it is measured: see `landscape.model.measuring.measurement_mode`."""
        generator = getattr(self._batches, "generator", None)
        return measurement_mode(self.model, self.device, generator if isinstance(generator, torch.Generator) else None)

    def about(self, **more: Any) -> dict[str, Any]:
        """Describe how a result came about."""
        network = self.network
        kind = "straight-through" if self.coordinates.straight_through else "exact"
        return {
            "space": self.coordinates.space,
            "derivatives": kind,
            **({"batchnorm": network.batchnorm, "batchnorm_folded": network.folded} if network.norms else {}),
            "samples": self.samples,
            "centre_loss": float(f"{float(self.centre.loss):.6g}"),
            "dtype": str(self.dtype).removeprefix("torch."),
            "precision": network.precision,
            "device": str(self.device),
            "weight_norm": self.coordinates.norm(),
            "torch": str(torch.__version__),
        } | more

    def __repr__(self) -> str:
        what, of = type(self.model).__name__, f"{self.coordinates.numel:,} coordinates, {self.coordinates.space} space"
        return f"Objective({what}, {self.samples:,} samples, loss {float(self.centre.loss):.4g}; {of})"

    def _measure_centre(self) -> None:
        self.batch_rows = [rows_of(batch) for batch in self._batches]
        if not self.batch_rows or 0 in self.batch_rows:
            rows = self.batch_rows
            raise ValueError(f"data is empty, or one of its batches is: pass at least one sample in each, got {rows}")
        first = next(self.batches())
        self.network.settle(lambda tensors: self.loss(tensors, first).mean)
        self._evaluate_centre()

    def _evaluate_centre(self) -> None:
        with self.measurement_mode(), torch.no_grad():
            passes = self._passes(self.tensors())
        self.batch_weights = [float(part.weight) for part in passes]
        self.centre = _merge(passes, self.same_order)

    def _passes(self, tensors: Point) -> list[BatchLoss]:
        if self.network.batchnorm == "recomputed":
            tensors = tensors | recomputed_statistics(self.network, tensors, self.batches())
        return [self.loss(tensors, batch) for batch in self.batches()]

    def _validate(self) -> None:
        """Raise if the loss is not finite, changes when repeated, or is not that of the other processes."""
        first = next(self.batches())

        def run() -> Tensor:
            return self.loss(self.tensors(), first).mean

        check_repeats(run, self.dtype, lambda: stochastic_module(self.model, run))
        if self._as_given:
            reason = "the data change from pass to pass (augmentation?)"
            # at the model's own statistics: those recomputed depend on which samples a shuffle puts into one batch
            losses = functools.partial(map, functools.partial(self.loss, self.tensors()))
            check_repeats(lambda: _merge(list(losses(self.batches())), False).loss, self.dtype, lambda: reason)
        loss = float(self.centre.loss)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise ValueError(f"the loss of the model itself is {loss}: look at its weights and data before measuring")
        seen = parallel.gather((f"{loss:.5g}", self.batch_rows))
        if any(other != seen[0] for other in seen):
            raise ValueError(
                f"the processes measure different networks or data (losses {[s[0] for s in seen]}): seed them"
            )


def objective_of(model: nn.Module | Objective, data: Any = None, **arguments: Any) -> Objective:
    """Return the objective given in place of a model, or make one.

    Raises:
        ValueError: an objective together with arguments of an objective.
    """
    if not isinstance(model, Objective):
        return Objective(model, data, **{name: value for name, value in arguments.items() if value is not None})
    defaults = {"batchnorm": "fixed", "precision": "fp32"}
    if given := [n for n, v in {"data": data, **arguments}.items() if v is not None and v != defaults.get(n)]:
        raise ValueError(
            f"an objective has its own {', '.join(given)}: pass it to landscape.Objective, or a model here"
        )
    return model


def _part(output: Any, which: Output | None) -> Any:
    """Return the part of a network's output that the loss is given."""
    if which is None:
        return output
    if callable(which):
        return which(output)
    if isinstance(which, int) or isinstance(output, Mapping):
        return output[which]
    return getattr(output, which)


def _by_sample(value: Tensor, rows: int) -> Tensor | None:
    """Return one loss per sample, averaged over its tokens or pixels; None where only a mean is known."""
    return value.reshape(rows, -1).mean(1) if value.ndim and len(value) == rows else None


def _merge(parts: list[BatchLoss], same_order: bool) -> Evaluation:
    device = parts[0].mean.device
    weights = torch.stack([torch.as_tensor(part.weight, dtype=torch.float64).to(device) for part in parts])
    weights = weights / weights.sum()
    nan = torch.full((), float("nan"), dtype=torch.float64, device=device)
    means = torch.stack([part.mean.double() for part in parts])
    right = torch.stack([nan if part.hits is None else part.hits.double().mean() for part in parts])
    metrics = torch.stack([torch.stack([*part.metrics, nan]) for part in parts])[:, :-1]
    units = [part.losses for part in parts]
    losses, hits, shares = means, right, weights
    if all(unit is not None for unit in units):
        losses = torch.cat([unit.double() for unit in units if unit is not None])
        hits = (
            nan.expand_as(losses)
            if parts[0].hits is None
            else torch.cat([part.hits.double() for part in parts if part.hits is not None])
        )
        shares = torch.full_like(losses, 1 / len(losses))
    if not same_order:
        losses, hits, shares = losses[:0], hits[:0], shares[:0]
    return Evaluation((means * weights).sum(), (right * weights).sum(), losses, hits, shares, weights @ metrics)
