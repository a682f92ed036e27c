"""Batches: shuffled and augmented for training, in order for evaluation, blended with each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..contexts import seeded
from .datasets import Batch, Data, Split
from .image_files import ImageFiles
from .streams import batches_of, begin_epoch, collated, is_dataset, is_distributed, is_pair, samples_in, share_of

MIXES = {"mixup": ("MixUp", 0.8), "cutmix": ("CutMix", 1.0)}  # with alpha as in DeiT


def steps_per_epoch(data: Data, batch_size: int, world_size: int = 1) -> int:
    """Return the number of training batches: the last incomplete one is left out, unless it is the only one.

    Of a DataLoader or a list those that it has, each process its own.
    """
    samples = samples_in(data.train)
    return max(1, len(share_of(data.train, 0, world_size)) if samples is None else samples // batch_size)


def training_batches(
    data: Data, batch_size: int, *, generator: torch.Generator, epoch: int = 0, rank: int = 0, world_size: int = 1
) -> Iterator[Any]:
    """Yield the training split once, shuffled and augmented; batches as they come.

    Each of `world_size` processes draws for the whole batch and takes every `world_size`-th row of it: together they
    see, image by image, what one would.

    Args:
        data, batch_size: What to train on, in batches of how many (of all processes together).
        generator: Of all draws; on the device of the data, in the same state in every process.
        epoch: For samplers that ask for it.
        rank, world_size: Number of this process, and of all.

    Raises:
        ValueError: If the shares of a batch would differ in size.
    """
    split, samples = data.train, samples_in(data.train)
    if samples is None:
        begin_epoch(split, epoch, generator.initial_seed())
        yield from batches_of(share_of(split, rank, world_size))
        return
    device = split[0].device if is_pair(split) else generator.device
    size = min(batch_size, samples)
    if size % world_size:
        rule = f"equal shares for {world_size} processes, whose gradients are averaged"
        raise ValueError(f"batch_size must give {rule}, got {size} samples in a batch")
    share = slice(rank, None, world_size)
    order = torch.randperm(samples, generator=generator, device=device)[: samples // size * size]
    batches = order.split(size)
    if is_dataset(split):
        yield from (collated(split, rows[share].tolist()) for rows in batches)
        return
    x, y = split
    if isinstance(x, ImageFiles):
        seeds = torch.randint(2**62, order.shape, generator=generator, device=x.device)
        positions, image_seeds = ([part[share].numpy() for part in one.cpu().split(size)] for one in (order, seeds))
        images: Iterable[Tensor] = x.batches(positions, image_seeds, data.flip)
    else:
        images = (augment(data, rows, generator, share) for rows in batches)
    for inputs, rows in zip(images, batches, strict=True):
        yield inputs, y[rows[share]]


def augment(data: Data, rows: Tensor, generator: torch.Generator, share: slice = slice(None)) -> Tensor:
    """Return the training inputs of a share of `rows`, each cropped and flipped by itself, in one gather."""
    x = data.train[0][rows[share]]
    if not data.padding and not data.flip:
        return x
    (n, c, h, w), p, device = x.shape, data.padding, x.device
    fill = torch.tensor(data.fill, dtype=x.dtype).to(device, non_blocking=True).view(1, -1, 1, 1)
    padded = fill.expand(n, c, h + 2 * p, w + 2 * p).clone()
    padded[:, :, p : p + h, p : p + w] = x
    down, right = torch.randint(0, 2 * p + 1, (2, len(rows), 1), generator=generator, device=device)[:, share]
    cells, columns = down + torch.arange(h, device=device), torch.arange(w, device=device).expand(n, w)
    if data.flip:
        mirrored = torch.rand(len(rows), 1, generator=generator, device=device)[share] < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    cells = cells[:, :, None] * (w + 2 * p) + (columns + right)[:, None, :]
    return padded.flatten(2).gather(2, cells.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)


def evaluation_batches(
    split: Split, batch_size: int, device: torch.device, *, rank: int = 0, world_size: int = 1
) -> Iterator[Any]:
    """Yield a split on the device, every sample once, in order and un-augmented; of several processes each its part."""
    samples = samples_in(split)
    if samples is None:
        step = 1 if is_distributed(split) else world_size
        yield from islice(batches_of(split), rank % step, None, step)
        return
    first, last = (samples * k // world_size for k in (rank, rank + 1))
    rows = [slice(k, min(k + batch_size, last)) for k in range(first, last, batch_size)]
    if is_dataset(split):
        yield from (collated(split, range(part.start, part.stop)) for part in rows)
        return
    x, y = split
    inputs = x.to(device).batches(rows) if isinstance(x, ImageFiles) else (x[part] for part in rows)
    for images, part in zip(inputs, rows, strict=True):
        yield images.to(device, non_blocking=True), y[part].to(device, non_blocking=True)


def mix(x: Tensor, y: Tensor, num_classes: int, kind: str, generator: torch.Generator) -> Batch:
    """Return images (n, c, h, w) mixed with their neighbours in the batch, and labels (n, num_classes) that sum to 1.

    Args:
        x, y, num_classes: Images, labels (n,) and how many there are.
        kind: "mixup" (mean of two images with random weights), "cutmix" (a box from the other), "both" (either).
        generator: On the CPU wherever `x` is: torchvision needs the draws as numbers.

    Source: Zhang et al. (2018) and Yun et al. (2019), with alpha as in DeiT (Touvron et al., 2021). Departure:
    torchvision's pairs are neighbours, not a random permutation; our batches come shuffled.
    """
    from torchvision.transforms import v2

    seed, coin = torch.randint(2**62, (2,), generator=generator).tolist()
    name, alpha = MIXES[tuple(MIXES)[coin % 2] if kind == "both" else kind]
    with seeded(seed):  # torchvision draws from the global generator
        return getattr(v2, name)(alpha=alpha, num_classes=num_classes)(x, y)
