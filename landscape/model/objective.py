"""A network, its data and its loss as one function of a displacement of its weights.

f(d) = Σ_b weight_b · loss(model at centre + d, batch b) / Σ_b weight_b, with batches of any size. The model is only
ever called through `torch.func.functional_call` on other tensors: its weights, buffers and gradients are not touched.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from .. import parallel
from .batches import check_labels, moved, nearly_all_alike, rows_of, source
from .checks import checked, pair, random_module, refuse_change
from .coordinates import Coordinates, Point, coordinates
from .folding import Folding, folding_agrees, folding_set
from .measuring import full_precision

BATCHNORM = ("fixed", "recomputed")
PRECISIONS = ("fp32", "bf16")
Loss = Callable[[Tensor, Tensor], Tensor]
BatchObjective = Callable[[nn.Module, Any], tuple[Tensor, Any]]


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
    """The loss of a network as a function of a displacement of its weights.

    Args:
        model: any network; evaluated in eval mode, in its own dtype, with TF32 off.
        data: ``(x, y)`` tensors, or a re-iterable of such batches (a list, a DataLoader); default ``model.probe``.
        loss: ``loss(output, target)`` → mean or one value per sample; default cross-entropy.
        objective: ``objective(model, batch) → (mean loss, weight)`` for anything else; then batches may be anything.
        space, layers: see `landscape.coordinates`.
        batchnorm: ``"fixed"`` statistics, or ``"recomputed"`` by one pass over the data at every point.
        metrics: name → ``metric(output, target)``, a mean or one value per sample, measured beside the loss.
        precision: ``"fp32"`` (the model's own dtype), or ``"bf16"`` for forward passes under autocast.
        batch_size: rows per batch, at most, where ``data`` is ``(x, y)``; default 200,000 input elements on a CPU
            and 1,024 rows on an accelerator, but five to ten batches where each has 32 rows.

    Raises:
        ValueError: no probe, empty data, unknown settings, nothing trainable.
        TypeError: data that can be read only once.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any = None,
        *,
        loss: Loss | None = None,
        objective: BatchObjective | None = None,
        space: str | None = None,
        layers: Sequence[str] | None = None,
        batchnorm: str = "fixed",
        metrics: Mapping[str, Loss] | None = None,
        precision: str = "fp32",
        batch_size: int | None = None,
    ) -> None:
        if batchnorm not in BATCHNORM:
            raise ValueError(f"batchnorm must be one of {', '.join(BATCHNORM)}, got {batchnorm!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if objective is not None and (loss is not None or metrics):
            raise ValueError(
                "objective(model, batch) computes its own loss from its own output: give loss and metrics, or objective"
            )
        if odd := [name for name in metrics or () if name in ("loss", "accuracy", "stderr", "status") or "/" in name]:
            raise ValueError(f"metrics must have names of their own, without a slash, got {odd[0]!r}")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # a compiled model has no double backward
        self.coordinates: Coordinates = coordinates(self.model, space, layers)
        reference = next(iter(self.coordinates.centre.values()))
        self.device, self.dtype = reference.device, reference.dtype
        self.batchnorm, self.precision = batchnorm, precision
        self.metrics = dict(metrics or {})
        self.batch_rows: list[int] = []  # known, as are the weights, once the centre has been looked at
        self.batch_weights: list[float] = []
        self.has_output = objective is None
        self._loss = loss
        self._classes_known = loss is None and objective is None
        self._bound = _Bound(
            self.model, checked(objective) if objective else lambda model, batch: model(pair(batch)[0])
        )
        cut = tuple if objective else tuple | list  # with an objective a list is one of batches, whatever they are
        self._source, self._fewest = source(self.model, data, batch_size, self.device, cut)
        self._merges = False  # passes that want only means over samples, once `evaluate` has seen that they may
        self._norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.folded = bool(self._norms) and batchnorm == "fixed"  # until a batch shows that it changes the loss
        self._folded_weights = WeakIdKeyDictionary()
        self._changing: Point = {}  # buffers that the network changes while it runs, as they were
        self._settled = self._quiet = False
        self._checked: tuple[float, float] | None = None
        tensors = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        self._frozen = {f"model.{name}": tensor.detach().clone() for name, tensor in tensors}

    @property
    def samples(self) -> int:
        """The number of samples."""
        return sum(self.batch_rows)

    @property
    def same_order(self) -> bool:
        """Whether every pass sees the same samples in the same order."""
        return isinstance(self._source, list | tuple)

    def batches(self, fewest: bool = False) -> Iterator[Any]:
        """Yield the batches on the model's device, floating tensors in its dtype; or the fewest that will do."""
        for batch in self._fewest if fewest else self._source:
            yield moved(batch, self.device, self.dtype)

    def loss(self, live: Mapping[str, Tensor], batch: Any) -> BatchLoss:
        """Compute the loss of one batch at given live tensors."""
        found = self.output(live, batch)
        return self.loss_of(found, batch) if self.has_output else BatchLoss(*found)

    def output(self, live: Mapping[str, Tensor], batch: Any) -> Any:
        """Return what the network (or the objective) gives for one batch at given live tensors."""
        tensors = self._frozen | {f"model.{name}": value for name, value in live.items()}
        tensors |= {name: tensor.clone() for name, tensor in self._changing.items()}
        low = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            if not self.folded:
                return functional_call(self._bound, tensors, (batch,))
            images_last = self.dtype != torch.float64 and self.device.type == "cpu"
            with Folding(images_last, self._folded_weights) as folding:
                output = functional_call(self._bound, tensors, (batch,))
            return folding.result(output)

    def loss_of(self, output: Any, batch: Any) -> BatchLoss:
        """Compute the loss of one batch from the network's output."""
        x, y = pair(batch)
        output = output.to(self.dtype) if isinstance(output, Tensor) and output.is_floating_point() else output
        classes = isinstance(output, Tensor) and output.ndim == 2 and y.ndim == 1 and not y.is_floating_point()
        classes = classes and output.shape[1] > 1
        if self._checked is None and classes and self._classes_known:  # before the loss: on CUDA it would abort
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
        live = self.live(displacement)
        self._settle()
        with self.quiet(), torch.no_grad():
            if self.batchnorm == "recomputed":
                live = live | self._recomputed_statistics(live)
            parts = [self.loss(live, batch) for batch in self.batches(self._merges)]
            found = _together(parts, self.same_order)
            if not self.batch_weights:
                self.batch_weights = [float(part.weight) for part in parts]
                if 0 < len(self._fewest) < len(parts) and not self.metrics:  # which need not be means over samples
                    wide = _together([self.loss(live, batch) for batch in self.batches(True)], True)
                    self._merges = len(found.losses) == self.samples and nearly_all_alike(found.losses, wide.losses)
            return found

    def gradient(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Return the gradient of the mean loss at centre + displacement. Cost: one gradient over the data."""
        total, weights = None, 0.0
        self._settle()
        with self.quiet(), torch.enable_grad():
            for batch in self.batches(self._merges):
                leaves = {k: v.detach().requires_grad_() for k, v in self.live(displacement).items()}
                found = self.loss(leaves, batch)
                parts = torch.autograd.grad(found.mean * found.weight, list(leaves.values()), materialize_grads=True)
                # never in place: two weights may be handed one and the same tensor as their gradient
                total = parts if total is None else tuple(a + b for a, b in zip(total, parts, strict=True))
                weights += found.weight
        assert total is not None
        return {name: part / weights for name, part in zip(self.coordinates.names, total, strict=True)}

    def on(self, batch: Any) -> Objective:
        """Return the same function on one batch alone; the two share all tensors."""
        other = copy.copy(self)
        other._source, other.batch_rows, other.batch_weights = [batch], [rows_of(batch)], []
        other._fewest, other._merges = [batch] if self._fewest else [], False
        other._checked = None
        return other

    def live(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Give the live tensors at centre + displacement, in the order of the coordinates."""
        return self.coordinates.displaced(displacement or {})

    def centre(self) -> tuple[float, float]:
        """Return loss and accuracy of the model itself, after checking that they mean something.

        Raises:
            ValueError: empty data, labels out of range, a loss that is not finite, or one that changes when repeated.

        Cost: once, one forward pass over the data (two with recomputed statistics) and three of one batch; two
        gradients of one batch where BatchNorm may be folded; two passes more where the data are not ``(x, y)``.
        """
        if self._checked is None:
            with self.quiet(), torch.no_grad():
                self._check_data()
                here = self.evaluate()
            loss, accuracy = float(here.loss), float(here.accuracy)
            if loss != loss or loss in (float("inf"), float("-inf")):
                raise ValueError(
                    f"the loss of the model itself is {loss}: look at its weights and data before measuring"
                )
            seen = parallel.gather((f"{loss:.5g}", self.batch_rows))
            if any(other != seen[0] for other in seen):
                raise ValueError(
                    f"the processes measure different networks or data (losses {[s[0] for s in seen]}): seed them"
                )
            self._checked = loss, accuracy
        return self._checked

    def _check_data(self) -> None:
        rows = [rows_of(batch) for batch in self._source]
        if not rows or 0 in rows:
            raise ValueError(f"data is empty, or one of its batches is: pass at least one sample in each, got {rows}")
        self.batch_rows = rows
        self._settle()
        first = next(self.batches())
        refuse_change(self, lambda: self.loss(self.live(), first).mean, lambda: random_module(self, first))
        if not self._fewest:
            parts = functools.partial(map, functools.partial(self.loss, self.live()))
            reason = "the data change from pass to pass (augmentation?)"
            refuse_change(self, lambda: _together(list(parts(self.batches())), False).loss, lambda: reason)

    def _settle(self) -> None:
        """Once: find buffers that the network itself changes, and whether BatchNorm can be folded."""
        if self._settled:
            return
        with self.quiet(), torch.no_grad(), folding_set(self, False):
            first = next(self.batches(), None)
            if first is None:
                return
            before = {name: tensor._version for name, tensor in self._frozen.items()}
            self.loss(self.live(), first)
            own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
            changed = [name for name, tensor in self._frozen.items() if tensor._version != before[name]]
            self._changing = {name: own[name.removeprefix("model.")].detach().clone() for name in changed}
        with self.quiet():
            self.folded = self.folded and folding_agrees(self, first)
        self._settled = True  # only now: after an interruption nothing unverified is folded

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold the model in eval mode, TF32 off, attention in its math kernel and the RNG as it was; restore all."""
        if self._quiet:
            yield
            return
        if torch.is_inference_mode_enabled():
            raise RuntimeError("nothing can be measured under torch.inference_mode(): leave it, or use torch.no_grad()")
        modes = [(module, module.training) for module in self.model.modules()]
        own = getattr(self._source, "generator", None)  # of a DataLoader that shuffles by itself
        state = own.get_state() if isinstance(own, torch.Generator) else None
        devices = [self.device] if self.device.type == "cuda" else []
        autocast_off = torch.autocast(self.device.type, enabled=False)
        with torch.random.fork_rng(devices), full_precision(), autocast_off, sdpa_kernel(SDPBackend.MATH):
            try:
                self._quiet = True
                self.model.eval()
                yield
            finally:
                self._quiet = False
                for module, training in modes:
                    module.training = training
                if own is not None and state is not None:
                    own.set_state(state)

    def about(self, **more: Any) -> dict[str, Any]:
        """Describe how a result came about."""
        kind = "straight-through" if self.coordinates.straight_through else "exact"
        return {
            "space": self.coordinates.space,
            "derivatives": kind,
            **({"batchnorm": self.batchnorm, "batchnorm_folded": self.folded} if self._norms else {}),
            "samples": self.samples,
            "centre_loss": float(f"{self.centre()[0]:.6g}"),
            "dtype": str(self.dtype).removeprefix("torch."),
            "precision": self.precision,
            "device": str(self.device),
            "weight_norm": self.coordinates.norm(),
            "torch": str(torch.__version__),
        } | more

    def _recomputed_statistics(self, live: Point) -> Point:
        """One pass over the data in train-mode BatchNorm: the mean of the batches' statistics, weighted by size."""
        names = {id(module): f"{name}." if name else "" for name, module in self.model.named_modules()}
        fresh = {
            names[id(m)] + key: torch.ones_like(b) if key == "running_var" else torch.zeros_like(b)
            for m in self._norms
            for key, b in m.named_buffers(recurse=False)
        }
        momenta = [m.momentum for m in self._norms]
        seen = 0
        try:
            for batch in self.batches():
                rows = rows_of(batch)
                seen += rows
                for module in self._norms:
                    module.training, module.momentum = True, rows / seen
                self.loss(live | fresh, batch)
        finally:
            for module, momentum in zip(self._norms, momenta, strict=True):
                module.training, module.momentum = False, momentum
        return fresh


class _Bound(nn.Module):
    """A function of (model, batch) as a module, so that `functional_call` can swap the model's tensors."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Any) -> Any:
        return self.function(self.model, batch)


def _by_sample(value: Tensor, rows: int) -> Tensor | None:
    """Return one loss per sample, averaged over its tokens or pixels; None where only a mean is known."""
    return value.reshape(rows, -1).mean(1) if value.ndim and len(value) == rows else None


def _together(parts: list[BatchLoss], same_order: bool) -> Evaluation:
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
