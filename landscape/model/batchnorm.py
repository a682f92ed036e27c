"""BatchNorm's running statistics recomputed at a displaced point, by one pass over the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .coordinates import Point
from .network import Network


def recomputed_statistics(
    network: Network, tensors: Mapping[str, Tensor], batches: Iterable[Any], batch_rows: Sequence[int]
) -> Point:
    """Return BatchNorm's statistics at given tensors: the mean of the batches', weighted by size.

    Args:
        network: in measurement mode.
        tensors: the point, name → tensor in the model.
        batches: the data, as they were given.
        batch_rows: samples of each batch, its weight.

    Cost: one forward pass over the data.
    """
    names = {id(module): f"{name}." if name else "" for name, module in network.model.named_modules()}
    fresh = {
        names[id(m)] + key: torch.ones_like(b) if key == "running_var" else torch.zeros_like(b)
        for m in network.norms
        for key, b in m.named_buffers(recurse=False)
    }
    momenta = [m.momentum for m in network.norms]
    seen = 0
    try:
        for batch, rows in zip(batches, batch_rows, strict=True):
            seen += rows
            for module in network.norms:
                module.training, module.momentum = True, rows / seen
            network.output({**tensors, **fresh}, batch)
    finally:
        for module, momentum in zip(network.norms, momenta, strict=True):
            module.training, module.momentum = False, momentum
    return fresh
