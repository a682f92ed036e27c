"""An epoch of descent on the weights of a search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..contexts import device_of
from ..data import Data, steps_per_epoch, training_batches
from ..training import Recipe, brought_to


def descend(
    model: nn.Module, data: Data, recipe: Recipe, seed: int, epoch: int, step: Callable[[int, Any], Tensor]
) -> dict[str, float]:
    """Make one epoch over the training samples, in an order and with an augmentation of its own.

    Args:
        model: Put into training mode.
        data: Of which the training split is used.
        recipe: Its batch size, and its learning rate for the message.
        seed: Of the search.
        epoch: From 0.
        step: Makes a step, given its number over all epochs and its batch, and returns the loss.

    Returns:
        The number of the epoch, from 1, and the mean loss.

    Raises:
        FloatingPointError: If a loss became NaN or infinite.
    """
    model.train()
    random = torch.Generator(device_of(model)).manual_seed(seed * 1_000_003 + epoch)
    first = epoch * steps_per_epoch(data, recipe.batch_size)
    batches = training_batches(data, recipe.batch_size, generator=random, epoch=epoch)
    losses = [step(first + k, batch) for k, batch in enumerate(brought_to(model, batches))]
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss):
        raise FloatingPointError(f"training loss is {loss} in epoch {epoch + 1}: try an lr below {recipe.lr}")
    return {"epoch": epoch + 1, "loss": loss}
