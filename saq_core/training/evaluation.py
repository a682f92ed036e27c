"""Evaluation: the mean loss, accuracy and metrics over a split, on one process or many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from landscape.checking import numbers
from landscape.model import (
    BatchLoss,
    BatchObjective,
    Criterion,
    Loss,
    Output,
    call_of,
    generators_of,
    iterated_apart,
    measurement_mode,
    merged,
    moved,
    translated,
)
from landscape.parallel import check_agreement

from .. import processes
from ..contexts import device_of, dtype_of
from ..data import Split, check_split, evaluation_batches, samples_in


class Evaluation(NamedTuple):
    """Mean loss, accuracy (0 to 1; NaN where there is none) over a split, the standard errors of both, and metrics."""

    loss: float
    accuracy: float
    loss_stderr: float
    accuracy_stderr: float
    metrics: dict[str, float] = {}  # noqa: RUF012


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    batch_size: int = 128,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    output: Output | None = None,
    metrics: Mapping[str, Loss] | None = None,
) -> Evaluation:
    """Return mean loss and accuracy of `model` on a split, in evaluation mode.

    Under several processes each takes its own samples, and all return the same.

    Args:
        model: Any network; the mode of every module is restored.
        split: `data.test` or `data.val`: inputs and targets on any device, a Dataset, a DataLoader, a list of batches.
        batch_size: Samples per forward pass, where the split is no batches yet.
        loss: See `landscape.Objective`, as for the next three; default cross-entropy.
        objective: ``objective(model, batch)`` → (mean loss, weight).
        output: Which part of what the network returns the loss is given.
        metrics: Name → ``metric(output, target)``.

    Raises:
        ValueError: If the split is empty, has a label out of range, or targets that cross-entropy does not fit.
        TypeError: If the split is none of these.

    Cost: one forward pass over the split.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Linear(4, 3)
        >>> result = saq_core.evaluate(model, (torch.randn(9, 4), torch.arange(9) % 3))
        >>> 0 <= result.accuracy <= 1 and result.loss > 0
        True
        >>> saq_core.evaluate(model, (torch.zeros(9, 4), torch.zeros(9, 3)), loss=torch.nn.MSELoss()).accuracy
        nan
    """
    check_agreement(**locals())
    numbers(whole=True, at_least=1, batch_size=batch_size)
    check_split(split, "split", None)
    if (n := samples_in(split)) is not None and n < processes.size():
        raise ValueError(f"split must hold at least one sample per process, got {n}")
    criterion = Criterion(loss, objective, output, metrics)
    criterion.checks_default = True
    return evaluated(model, split, criterion, batch_size)


@torch.no_grad()
def evaluated(model: nn.Module, split: Split, criterion: Criterion, batch_size: int = 128) -> Evaluation:
    """Return the evaluation of a checked split."""
    share: Any = {"rank": processes.rank(), "world_size": processes.size()}
    with (
        measurement_mode(model, generators_of(split)),
        translated("the forward pass of the model on this split", model),
    ):
        batches = brought_to(model, evaluation_batches(iterated_apart(split), batch_size, device_of(model), **share))
        parts = [batch_loss(model, batch, criterion) for batch in processes.bar(batches, "evaluating")]
    if processes.size() > 1:
        own = processes.moved([tuple(part) for part in parts], "cpu")
        parts = [BatchLoss(*part) for share in processes.gather(own) for part in share]
    whole = merged(parts, same_order=True)
    values = torch.stack([whole.loss, whole.accuracy, whole.stderr(), whole.stderr(field="hits"), *whole.metrics])
    loss, accuracy, loss_stderr, accuracy_stderr, *rest = values.tolist()
    if criterion.objective is not None and not (total := sum(float(part.weight) for part in parts)) > 0:
        raise ValueError(f"objective must return weights that add up to more than 0, got {total}: does a target count?")
    return Evaluation(loss, accuracy, loss_stderr, accuracy_stderr, dict(zip(criterion.metrics, rest, strict=True)))


def brought_to(model: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches on the device of a model, floating tensors in its dtype."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    for batch in batches:
        yield moved(batch, device_of(model), dtype_of(model), dtypes)


def batch_loss(model: nn.Module, batch: Any, criterion: Criterion) -> BatchLoss:
    """Return the loss of one batch."""
    if criterion.objective is not None:
        return BatchLoss(*criterion.objective(model, batch))
    return criterion(call_of(model, batch), batch)
