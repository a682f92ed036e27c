"""What is minimised: the loss of one batch, as ``loss``, ``objective``, ``output`` and ``metrics`` say it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from ..checking import numbers
from . import losses
from .batches import target_of
from .losses import BatchLoss, CrossEntropy, Loss, Output

BatchObjective = Callable[[nn.Module, Any], tuple[Tensor, Any]]
_TAKEN = ("loss", "accuracy", "stderr", "status", "epoch", "lr", "seconds", "val_loss", "val_accuracy")


class Criterion:
    """The loss of a batch, from what the network returns for it; measuring and training read it in the same way.

    Args:
        loss: ``loss(output, target)`` → mean, sum or one value per sample; default cross-entropy, or the loss that the
            network's own output carries.
        objective: ``objective(model, batch)`` → (mean loss, weight) in place of all else.
        output: which part of what the network returns the loss is given.
        metrics: name → ``metric(output, target)``.

    Attributes:
        name: what the loss is called.
        has_output: whether the loss is one of the network's output, and not an objective of the user's own.
        custom_loss: a loss that is not known here, None where it is.
        is_default: whether nothing was said.
        is_sum: whether the loss is known to add up over targets.
        alignment: how the loss that outputs carry comes from their logits, once known.
        watch: what is called with every output of the network, None for nothing.
        with_hits: whether right answers are counted beside the loss.
        checks_default: whether outputs and targets are looked at before cross-entropy is taken of them.

    Raises:
        ValueError: what is to be computed is said twice, or a metric has a name that is taken.
        TypeError: a class in place of a loss.
    """

    def __init__(
        self,
        loss: Loss | None = None,
        objective: BatchObjective | None = None,
        output: Output | None = None,
        metrics: Mapping[str, Loss] | None = None,
    ) -> None:
        if objective is not None and (loss is not None or metrics or output is not None):
            raise ValueError(
                "objective(model, batch) computes its own loss from its own output: give loss, output and metrics, or "
                "objective"
            )
        named = {f"metrics[{name!r}]": metric for name, metric in (metrics or {}).items()}
        for name, function in {"loss": loss, "objective": objective, **named}.items():
            if isinstance(function, type) and issubclass(function, nn.Module):
                raise TypeError(f"{name} must be a function, got the class {function.__name__}: pass an instance of it")
        if odd := [name for name in metrics or () if name in _TAKEN or "/" in name]:
            raise ValueError(f"metrics must have names of their own, without a slash, got {odd[0]!r}")
        self.objective, self.metrics = objective and checked_objective(objective), dict(metrics or {})
        self._loss, self._objective, self._output = loss, objective, output
        self._cross_entropy = CrossEntropy.of(loss) if objective is None else None
        self.custom_loss = None if self._cross_entropy else loss
        self.has_output = objective is None
        self.is_default = loss is None and objective is None and output is None
        self.is_sum = bool(self._cross_entropy and self._cross_entropy.is_sum)
        named_by: Any = objective or loss or torch.nn.functional.cross_entropy
        self.name = str(getattr(named_by, "__qualname__", type(named_by).__name__))
        self.alignment: str | None = None
        self.with_hits, self.checks_default = True, False
        self.watch: Callable[[Any], Any] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The four arguments that it was made from."""
        return {"loss": self._loss, "objective": self._objective, "output": self._output, "metrics": self.metrics}

    def alone(self) -> Criterion:
        """Return the same without metrics and right answers, which decide and move nothing."""
        other = copy.copy(self)
        other.with_hits, other.metrics = False, {}
        return other

    def __call__(self, output: Any, batch: Any, dtype: torch.dtype | None = None) -> BatchLoss:
        """Return the loss of a batch from the network's output, floating tensors in a dtype."""
        if self.watch is not None:
            self.watch(output)
        target = target_of(batch)
        carried = losses.loss_carried_by(output) if self._loss is None and self._output is None else None
        if carried is None:
            return self.of_part(self.part_of(output, dtype), target)
        self.alignment = self.alignment or losses.alignment_of(*carried, target)
        self.name = f"{type(output).__name__}.loss"
        return losses.batch_loss_carried(*carried, target, self.alignment)

    def part_of(self, output: Any, dtype: torch.dtype | None = None) -> Any:
        """Return the part of the network's output that the loss is given, floating tensors in a dtype."""
        part = losses.part_of(output, self._output, self._loss is None)
        return part.to(dtype) if dtype and isinstance(part, Tensor) and part.is_floating_point() else part

    def log_probabilities(self, output: Any) -> Tensor | None:
        """Return the logarithms of what a network's output says of the classes, (n, classes, …), float64.

        None where the loss is not the cross-entropy of scores.
        """
        part = self.part_of(output) if self.has_output else None
        scores = self.alignment != "unknown" if self.alignment else self._cross_entropy is not None
        if not isinstance(part, Tensor) or part.ndim < 2 or not scores:
            return None
        return part.detach().movedim(-1 if self.alignment else 1, 1).double().log_softmax(1)

    def of_part(self, part: Any, target: Any) -> BatchLoss:
        """Return the loss from the part of the output that it is given."""
        if self.alignment is not None:  # the logits alone, of the Gauss-Newton matrix
            return losses.batch_loss_carried(None, part, target, self.alignment)
        if self.checks_default and self._loss is None:
            losses.check_default_fits(part, target)
        metrics = self.metrics_of(part, target)
        if self._cross_entropy is not None:
            return self._cross_entropy(part, target, with_hits=self.with_hits)._replace(metrics=metrics)
        rows = (len(target) if target.ndim else 1) if isinstance(target, Tensor) else None
        result = losses.value_of(self._loss(part, target), rows)  # type: ignore[misc]
        return (losses.with_hits(result, part, target) if self.with_hits else result)._replace(metrics=metrics)

    def metrics_of(self, part: Any, target: Any) -> tuple[Tensor, ...]:
        """Return the mean of each metric; a number, counts and what is true or false are values too."""

        def value(name: str, metric: Loss) -> Tensor:
            result: Any = metric(part, target)
            result = torch.as_tensor(result) if isinstance(result, Number) else result
            counts = isinstance(result, Tensor) and not result.is_floating_point()
            return losses.value_of(result.double() if counts else result, None, name).mean.double()

        return tuple(value(name, metric) for name, metric in self.metrics.items())


def checked_objective(objective: BatchObjective) -> BatchObjective:
    """Return the objective, which now raises where it does not return (mean loss, weight)."""

    def call(model: nn.Module, batch: Any) -> Any:
        result: Any = objective(model, batch)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"objective must return (mean loss, weight of the batch), got {type(result).__name__}")
        if not isinstance(result[0], Tensor) or result[0].numel() != 1:
            shape = tuple(result[0].shape) if isinstance(result[0], Tensor) else type(result[0]).__name__
            raise TypeError(f"objective must return (mean loss, weight), the loss a tensor of one value, got {shape}")
        if not isinstance(result[1], Tensor):  # to read one would wait for its device
            numbers(at_least=0, note="of a batch, as objective returns it", weight=result[1])
        return result

    return call
