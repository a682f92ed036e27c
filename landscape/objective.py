"""A network, its data and its loss as one function of a displacement of its weights.

f(d) = Σ_b weight_b · loss(model at centre + d, batch b) / Σ_b weight_b, with batches of any size. The model is only
ever called through `torch.func.functional_call` on other tensors: its weights, buffers and gradients are not touched.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from .coordinates import Coordinates, Point, coordinates

BATCHNORM = ("fixed", "recomputed")
# Elements of input per batch on a CPU: the activations of 64 CIFAR images stay in its caches, and a forward pass in
# eight batches of 64 takes 0.4 of the time of one batch of 512.
_CPU_ELEMENTS = 200_000

Loss = Callable[[Tensor, Tensor], Tensor]
BatchObjective = Callable[[nn.Module, Any], tuple[Tensor, Any]]


class Objective:
    """The loss of a network as a function of a displacement of its weights.

    Args:
        model: any network; evaluated in eval mode, in its own dtype, with TF32 off.
        data: ``(x, y)`` tensors, or a re-iterable of such batches (a list, a DataLoader); default ``model.probe``.
        loss: ``loss(output, target)`` → mean or one value per sample; default cross-entropy.
        objective: ``objective(model, batch) → (mean loss, weight)`` for anything else; then batches may be anything.
        space: see `landscape.coordinates`.
        batchnorm: ``"fixed"`` statistics, or ``"recomputed"`` by one pass over the data at every point.
        batch_size: rows per batch, at most, where ``data`` is ``(x, y)``; default 200,000 input elements on a CPU,
            1,024 rows on an accelerator.

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
        batchnorm: str = "fixed",
        batch_size: int | None = None,
    ) -> None:
        if batchnorm not in BATCHNORM:
            raise ValueError(f"batchnorm must be one of {', '.join(BATCHNORM)}, got {batchnorm!r}")
        if loss is not None and objective is not None:
            raise ValueError("give loss or objective, not both: objective(model, batch) computes its own loss")
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # a compiled model has no double backward
        self.coordinates: Coordinates = coordinates(self.model, space)
        reference = next(iter(self.coordinates.centre.values()))
        self.device, self.dtype = reference.device, reference.dtype
        self.batchnorm = batchnorm
        self.samples = 0
        self._loss = loss or torch.nn.functional.cross_entropy
        self._classes_known = loss is None
        self._bound = _Bound(self.model, _padded(objective) if objective else self._classify)
        single = loss or functools.partial(torch.nn.functional.cross_entropy, reduction="none")
        self._bound_single = (
            _Bound(self.model, functools.partial(self._classify, loss=single)) if not objective else None
        )
        self._source, self._own_batches = _source(self.model, data, batch_size, self.device)
        self._norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._quiet = False
        self._checked: tuple[float, float] | None = None
        tensors = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        self._frozen = {f"model.{name}": tensor.detach().clone() for name, tensor in tensors}

    def batches(self) -> Iterator[Any]:
        """Yield the batches on the model's device, floating tensors in its dtype."""
        for batch in self._source:
            yield _moved(batch, self.device, self.dtype)

    def loss(self, live: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Any, Tensor | None]:
        """Compute (mean loss, weight, number of correct predictions or None) of one batch at given live tensors."""
        tensors = self._frozen | {f"model.{name}": value for name, value in live.items()}
        loss, weight, hits, _ = functional_call(self._bound, tensors, (batch,))
        return loss, weight, None if hits is None else hits.sum()

    def evaluate(self, displacement: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss and the accuracy (NaN where there is none) at centre + displacement, as float64 scalars.

        Cost: one forward pass over the data; two where BatchNorm statistics are recomputed.
        """
        live = self.coordinates.displaced(displacement or {})
        with self.quiet(), torch.no_grad():
            if self.batchnorm == "recomputed":
                live = live | self._recomputed_statistics(live)
            return _weighted_mean(self.loss(live, batch) for batch in self.batches())

    def per_sample(self) -> tuple[Tensor, Tensor] | None:
        """Return loss and hit (0 or 1, NaN where there is none) of every sample, float64.

        None where the loss is a mean only, or where the order of the samples is not known to be always the same.

        Cost: one forward pass over the data.
        """
        if self._bound_single is None or not isinstance(self._source, list):
            return None
        parts = []
        with self.quiet(), torch.no_grad():
            for batch in self.batches():
                _, _, hits, losses = functional_call(self._bound_single, self._frozen, (batch,))
                if losses is None:
                    return None
                parts.append(torch.stack([losses.double(), _or_nan(hits, losses)]))
        loss, hit = torch.cat(parts, dim=1)
        return loss.cpu(), hit.cpu()

    def gradient(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Return the gradient of the mean loss at centre + displacement. Cost: one gradient over the data."""
        total, weights = None, 0.0
        with self.quiet(), torch.enable_grad():
            for batch in self.batches():
                leaves = {k: v.detach().requires_grad_() for k, v in self.live(displacement).items()}
                loss, weight, _ = self.loss(leaves, batch)
                parts = torch.autograd.grad(loss * weight, list(leaves.values()), materialize_grads=True)
                # never in place: two weights may be handed one and the same tensor as their gradient
                total = parts if total is None else tuple(a + b for a, b in zip(total, parts, strict=True))
                weights += weight
        assert total is not None
        return {name: part / weights for name, part in zip(self.coordinates.names, total, strict=True)}

    def live(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Give the live tensors at centre + displacement, in the order of the coordinates."""
        return self.coordinates.displaced(displacement or {})

    def centre(self) -> tuple[float, float]:
        """Return loss and accuracy of the model itself, after checking that they mean something.

        Raises:
            ValueError: empty data, labels out of range, a loss that is not finite, or one that changes when repeated.

        Cost: once, one forward pass over the data (two with recomputed statistics), one batch repeated; two passes more
        where the data are not ``(x, y)``, to see that they stay the same.
        """
        if self._checked is None:
            with self.quiet(), torch.no_grad():
                self._check_data()
                loss, accuracy = (float(value) for value in self.evaluate())
            if loss != loss or loss in (float("inf"), float("-inf")):
                raise ValueError(
                    f"the loss of the model itself is {loss}: look at its weights and data before measuring"
                )
            self._checked = loss, accuracy
        return self._checked

    def _check_data(self) -> None:
        rows = [rows_of(batch) for batch in self._source]
        if not rows or 0 in rows:
            raise ValueError(f"data is empty, or one of its batches is: pass at least one sample in each, got {rows}")
        self.samples = sum(rows)
        first = next(self.batches())
        once, again = (self.loss(self.live(), first)[0] for _ in range(2))
        self._refuse_change(once, again, "the model is random in eval mode")
        if not self._own_batches:
            once, again = (_weighted_mean(self.loss(self.live(), b) for b in self.batches())[0] for _ in range(2))
            self._refuse_change(once, again, "the data change from pass to pass (augmentation?)")

    def _refuse_change(self, once: Tensor, again: Tensor, reason: str) -> None:
        # a shuffled loader adds up in another order, and some kernels do so every time
        slack = 1e3 * torch.finfo(self.dtype).eps
        if not torch.allclose(once, again, rtol=slack, atol=slack, equal_nan=True):
            raise ValueError(
                f"the loss changed when repeated ({float(once):.6g}, then {float(again):.6g}): {reason}, and curvature "
                "of a moving function means nothing"
            )

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold the model in eval mode, TF32 off, attention in its math kernel and the RNG as it was; restore all."""
        if self._quiet:
            yield
            return
        modes = [(module, module.training) for module in self.model.modules()]
        devices = [self.device] if self.device.type == "cuda" else []
        autocast_off = torch.autocast(self.device.type, enabled=False)
        with torch.random.fork_rng(devices), _full_precision(), autocast_off, sdpa_kernel(SDPBackend.MATH):
            try:
                self._quiet = True
                self.model.eval()
                yield
            finally:
                self._quiet = False
                for module, training in modes:
                    module.training = training

    def about(self, **more: Any) -> dict[str, Any]:
        """Describe how a result came about."""
        kind = "straight-through" if self.coordinates.straight_through else "exact"
        return {
            "space": self.coordinates.space,
            "derivatives": kind,
            "batchnorm": self.batchnorm,
            "samples": self.samples,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "weight_norm": self.coordinates.norm(),
            "torch": str(torch.__version__),
        } | more

    def _classify(
        self, model: nn.Module, batch: Any, loss: Loss | None = None
    ) -> tuple[Tensor, int, Tensor | None, Tensor | None]:
        """Return mean loss, weight, and for each sample whether it is right and its loss, None where it has no such."""
        x, y = batch
        output = model(x)
        classes = output.ndim == 2 and y.ndim == 1 and not y.is_floating_point()
        if self._checked is None and classes and self._classes_known:  # before the loss: on CUDA it would abort
            _check_labels(y, output.shape[1])
        value = (loss or self._loss)(output, y.long() if classes else y)
        single = value if value.shape == (rows_of(x),) else None
        return value.mean(), rows_of(x), output.argmax(1) == y if classes else None, single

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

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], tuple]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Any) -> tuple:
        return self.function(self.model, batch)


def _padded(objective: BatchObjective) -> Callable[[nn.Module, Any], tuple]:
    return lambda model, batch: (*objective(model, batch), None, None)


def _or_nan(hits: Tensor | None, like: Tensor) -> Tensor:
    return torch.full_like(like, float("nan"), dtype=torch.float64) if hits is None else hits.double()


def _weighted_mean(parts: Iterable[tuple[Tensor, Any, Tensor | None]]) -> tuple[Tensor, Tensor]:
    losses, weights, hits = zip(*parts, strict=True)
    weight = torch.as_tensor(weights, dtype=torch.float64)
    loss = torch.stack([loss.double() for loss in losses])
    weight = weight.to(loss.device)
    right = torch.stack(
        [loss.new_tensor(float("nan")) if h is None else h.double() for h, loss in zip(hits, losses, strict=True)]
    )
    return (loss * weight).sum() / weight.sum(), right.sum() / weight.sum()


def _source(model: nn.Module, data: Any, batch_size: int | None, device: torch.device) -> tuple[Iterable[Any], bool]:
    """Return the batches, and whether they were cut here out of (x, y)."""
    if data is None:
        data = getattr(model, "probe", None)
        if data is None:
            raise ValueError(
                "the model carries no probe (saq_core.train leaves one): pass data=(x, y), or set model.probe = (x, y)"
            )
    if isinstance(data, Iterator):
        raise TypeError(
            "data can be read only once (a generator or iterator): pass (x, y), a list of batches or a DataLoader"
        )
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise TypeError(f"data must be (x, y), a list of batches or a DataLoader, got {type(data).__name__}")
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(p, Tensor | np.ndarray) for p in data):
        x, y = map(torch.as_tensor, data)
        return _chunks(x, y, batch_size, device), True
    return data, False


def _chunks(x: Tensor, y: Tensor, batch_size: int | None, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"data=(x, y) needs as many targets as inputs and at least one, got {len(x)} and {len(y)}")
    rows = batch_size or (max(1, _CPU_ELEMENTS // x[0].numel()) if device.type == "cpu" else 1024)
    parts = -(-len(x) // rows)  # of nearly equal size: BatchNorm cannot be recomputed on a last batch of one
    # moved once: a probe lives on the CPU, and every pass reads it
    return list(zip(x.to(device).tensor_split(parts), y.to(device).tensor_split(parts), strict=True))


def _moved(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, dtype if batch.is_floating_point() else None)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device, dtype) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [_moved(value, device, dtype) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def rows_of(batch: Any) -> int:
    """Count the samples of a batch: the length of its first tensor."""
    while not isinstance(batch, Tensor):
        if not isinstance(batch, Mapping | list | tuple) or not batch:
            return 1
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch) if batch.ndim else 1


def _check_labels(y: Tensor, classes: int) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0…{classes - 1} for {classes} outputs, got {low}…{high}")


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Switch TF32 off, and bfloat16 on a CPU: curvature in ten bits of mantissa is noise."""
    backends: Any = torch.backends
    flags = [backends.cuda.matmul] + [getattr(backends.cudnn, part) for part in ("conv", "rnn")]
    flags += [getattr(backends.mkldnn, part) for part in ("matmul", "conv", "rnn")]
    before = [flag.fp32_precision for flag in flags]
    try:
        for flag in flags:
            flag.fp32_precision = "ieee"
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value
