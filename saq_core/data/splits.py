"""Splits of a data set, and orders of which every beginning is balanced over the classes: the probe is one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from landscape.checking import seed_of

Source = tuple[np.ndarray, np.ndarray]  # images or the paths of their files, labels

TEST_SEED = 1_797  # the digits come without a test split; this one never depends on the caller's seed


def count_classes(parts: dict[str, Source]) -> int:
    """Return the number of classes, one more than the largest label."""
    return 1 + max(int(y.max()) for _, y in parts.values())


def complete_splits(parts: dict[str, Source], limit: int | None, seed: int, val_fraction: float) -> dict[str, Source]:
    """Return all splits, the missing ones drawn from the training images."""
    classes = count_classes(parts)
    if "test" not in parts:
        sizes = _split_sizes(len(parts["train"][1]), None, val_fraction)
        parts = dict(zip(("train", "test"), draw_two(parts["train"], TEST_SEED, *sizes), strict=True))
    sizes = _split_sizes(len(parts["train"][1]), limit, 0 if "val" in parts else val_fraction)
    train, val = draw_two(parts["train"], seed, *sizes)
    trained = len(np.unique(train[1]))
    if trained < classes or classes < 2:
        rule = f"train must hold images of every class, and of two at least, got {trained} of {classes} classes"
        raise ValueError(f"{rule}: raise limit, lower val_fraction, or add images")
    return {"val": val, **parts, "train": train}


def draw_two(source: Source, seed: int, kept: int, held_out: int) -> tuple[Source, Source]:
    """Return two disjoint samples of these sizes, each balanced over the classes."""
    x, y = source
    ordered = balanced_order(torch.from_numpy(y), seed).numpy()
    rows, others = ordered[held_out : held_out + kept], ordered[:held_out]
    return (x[rows], y[rows]), (x[others], y[others])


def _split_sizes(total: int, limit: int | None, val_fraction: float) -> tuple[int, int]:
    held_out = max(1, round(val_fraction * total)) if val_fraction else 0
    if limit is None:
        return total - held_out, held_out
    if not 1 <= limit <= total - held_out:
        raise ValueError(f"limit must be from 1 to {total - held_out}, got {limit}")
    return limit, min(held_out, max(1, round(limit * val_fraction / (1 - val_fraction))))


def balanced_order(y: Tensor, seed: int, *, proportional: bool = False) -> Tensor:
    """Return a random order of which every beginning holds the classes in (almost) equal numbers, or in those of y."""
    mixed = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed_of(seed)))
    labels = y[mixed]
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    rank = torch.empty_like(mixed)
    rank[by_class] = torch.arange(len(y)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return mixed[torch.argsort((rank + 0.5) / counts[labels] if proportional else rank, stable=True)]
