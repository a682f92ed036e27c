"""An objective at one point: the batches put together, and standard errors over the data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import parallel
from .losses import BatchLoss


class Evaluation(NamedTuple):
    """The function at one point, float64 on the model's device: nothing here waits for an accelerator.

    ``losses`` and ``hits`` are those of the samples; where the loss gives a mean only, of the batches; empty where
    their order is not always the same. ``weights`` and ``hit_weights`` belong to them and sum to one.
    """

    loss: Tensor
    accuracy: Tensor
    losses: Tensor
    hits: Tensor
    weights: Tensor
    hit_weights: Tensor
    metrics: Tensor

    def stderr(self, other: Evaluation | None = None, field: str = "losses") -> Tensor:
        """Return the standard error over the data of the mean, or of the difference to another point, paired.

        NaN with fewer than two samples (or batches) to tell it from.
        """
        values = getattr(self, field) if other is None else getattr(self, field) - getattr(other, field)
        return stderr_of_mean(values, self.weights if field == "losses" else self.hit_weights)


def stderr_of_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the standard error of Σ weights·values, for independent values and weights that sum to one."""
    if len(values) < 2:
        return torch.full((), float("nan"), dtype=torch.float64, device=values.device)
    deviations = weights * (values - (weights * values).sum())
    return (deviations.square().sum() * len(values) / (len(values) - 1)).sqrt()


def joined(own: BatchLoss, share: float, samples: int | None) -> BatchLoss:
    """Return the loss of a batch whose rows several processes share: the values of all, the graph of this one.

    Args:
        own: the loss of this process's rows.
        share: what its sum counts in that of all processes.
        samples: of the whole batch; None where every process computed all of it.
    """
    if samples is None:
        return own._replace(mean=own.mean * share + (own.mean * (1 - share)).detach())
    fields = [name for name in ("losses", "shares", "hits", "counted") if getattr(own, name) is not None]
    mine = parallel.rows(samples)
    values = own.mean.new_zeros(len(fields), samples, dtype=torch.float64)
    weight = torch.as_tensor(own.weight).to(values) * share
    sums = torch.stack([weight, *(weight * part.detach() for part in (own.mean, *own.metrics))])
    if mine:
        for row, name in zip(values, fields, strict=True):
            row[mine.start : mine.stop] = getattr(own, name).detach()
    else:
        sums = torch.zeros_like(sums)  # a row that is none of its own may be a NaN
    everyone = parallel.sum_(torch.cat([sums, values.flatten()]))
    total, *means = everyone[: len(sums)]
    total = total.clamp_min(torch.finfo(total.dtype).tiny)  # where no target counts
    local = own.mean * (weight / total).to(own.mean)
    mean = local + (means[0] / total).to(local) - local.detach()
    known = dict(zip(fields, everyone[len(sums) :].view_as(values), strict=True))
    metrics = tuple(part / total for part in means[1:])
    return own._replace(mean=mean, weight=total.to(mean), metrics=metrics, **known)


def merged(parts: list[BatchLoss], same_order: bool) -> Evaluation:
    """Put the batches together: means by their weights, the samples' values one after another where all are known."""
    device = parts[0].mean.device
    nan = torch.full((), float("nan"), dtype=torch.float64, device=device)

    def joined(values: Sequence[Any]) -> Tensor:
        # a number is filled in there: to bring it over would wait for the accelerator
        numbers = partial(torch.full, (), dtype=torch.float64, device=device)
        parts = [value.detach() if isinstance(value, Tensor) else numbers(fill_value=value) for value in values]
        return torch.cat([part.double().to(device).reshape(-1) for part in parts])

    weights = joined([part.weight for part in parts])
    means = joined([part.mean for part in parts])
    metrics = torch.stack([torch.stack([*(m.detach() for m in part.metrics), nan]) for part in parts])[:, :-1]
    losses, shares = means, weights
    if all(part.losses is not None for part in parts):
        losses = joined([part.losses for part in parts])
        equal = [1.0 if part.shares is None else part.shares for part in parts]
        each = [s if isinstance(s, Tensor) else nan.new_ones(()) for s in equal]  # on the device
        shares = joined([s.expand(len(p.losses)) for s, p in zip(each, parts, strict=True)])  # type: ignore[arg-type]
    hits, counted = nan.expand_as(losses), torch.ones_like(losses)
    if all(part.hits is not None for part in parts):
        hits, counted = joined([part.hits for part in parts]), joined([part.counted for part in parts])
    accuracy = (hits * counted).sum() / counted.sum() if len(hits) else nan
    weights, shares, counted = weights / weights.sum(), shares / shares.sum(), counted / counted.sum()
    loss = (means * weights).sum()
    if not same_order:
        losses, hits, shares, counted = losses[:0], hits[:0], shares[:0], counted[:0]
    return Evaluation(loss, accuracy, losses, hits, shares, counted, weights @ metrics)
