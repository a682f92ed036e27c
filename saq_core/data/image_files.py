"""Images that stay in their files: listed by torchvision, decoded and cropped one by one in worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.checking import numbers

# of ImageNet, whatever the set: what torchvision's nets expect
MOMENTS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("flowers102", "pets", "imagenet", "folder")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files in place of a tensor of normalised images (n, 3, size, size).

    Indexing decodes: the shorter side to 256/224 of `size`, then the centre. `batches` does so ahead of time in worker
    processes; what comes out does not depend on their number.

    Args:
        paths: File names as bytes, (n,): one array, because a list of texts would be copied into every worker.
        size: Side of the images in pixels.
        device: Where batches are put.
        min_scale: Least share of an image's area that a random crop keeps, in (0, 1].
        workers: Processes that decode; 0 = this one.

    Raises:
        ValueError: If a setting is out of range; when decoding, if a file is no whole image.

    Source: Szegedy et al., Going Deeper with Convolutions (2015), section 6, for the random crop (8 to 100 % of the
    area, sides 3:4 to 4:3).
    """

    paths: np.ndarray
    size: int = 224
    device: torch.device = torch.device("cpu")
    min_scale: float = 0.08
    workers: int = 0

    def __post_init__(self) -> None:
        numbers(whole=True, at_least=1, image_size=self.size)
        numbers(whole=True, at_least=0, workers=self.workers)
        numbers(above=0, at_most=1, min_scale=self.min_scale)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor they stand for."""
        return len(self), 3, self.size, self.size

    def to(self, device: torch.device | str) -> ImageFiles:
        """Return the same files with batches put on `device`."""
        return replace(self, device=torch.device(device))

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.cat(list(self.batches([part.cpu().numpy() for part in rows.split(64)])))

    def batches(self, rows: Sequence[Any], seeds: Sequence[Any] | None = None, flip: bool = False) -> Iterator[Tensor]:
        """Yield one batch (n, 3, size, size) on the device per item of `rows` (slices, or arrays of positions).

        With `seeds`, one array (n,) per batch, every image is cropped at random by its own seed, the crop is scaled to
        `size`, and mirrored in half of the cases if `flip`.
        """
        from torch.utils.data import DataLoader
        from torchvision.transforms import v2  # here, not in every worker of every epoch

        crop = [v2.Resize(round(self.size * 256 / 224)), v2.CenterCrop(self.size)]
        if seeds is not None:
            mirrored = 0.5 if flip else 0.0
            crop = [v2.RandomResizedCrop(self.size, (self.min_scale, 1.0)), v2.RandomHorizontalFlip(mirrored)]
        keys = [(self.paths[r], None if seeds is None else seeds[k]) for k, r in enumerate(rows)]
        loader: DataLoader[Any] = DataLoader(
            keys,  # type: ignore[arg-type]  # any sequence will do
            batch_size=None,
            collate_fn=partial(_decode, v2.Compose([*crop, v2.PILToTensor()])),
            num_workers=min(self.workers, len(keys)),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        mean, std = (torch.tensor(m, device=self.device).view(3, 1, 1) for m in MOMENTS)
        for images in loader:  # bytes up to here: a quarter of the traffic
            if isinstance(images, str):
                raise ValueError(images)
            yield images.to(self.device, non_blocking=True).div(255).sub_(mean).div_(std)


def _decode(transform: Any, key: tuple[np.ndarray, np.ndarray | None]) -> Tensor | str:
    """Return one batch of images as bytes (n, 3, size, size), or an error message.

    An exception raised here would keep the workers alive: torch raises it again in a cycle of references.
    """
    from torchvision.datasets.folder import default_loader

    paths, seeds = key
    images = []
    with torch.random.fork_rng(devices=[]):
        for path, seed in zip(paths, np.zeros(len(paths)) if seeds is None else seeds, strict=True):
            torch.default_generator.manual_seed(int(seed))  # torchvision draws from the global generator
            try:
                images.append(transform(default_loader(os.fsdecode(path))))
            except Exception as error:  # what a broken file raises differs between formats
                return f"{os.fsdecode(path)} must be an image, got {error!r}: replace the file or take it out"
    return torch.stack(images)


def find_images(name: str, root: Path, download: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return split -> (paths, labels) as the set comes."""
    from torchvision import datasets

    sets: dict[str, Any]
    if name == "flowers102":
        sets = {split: datasets.Flowers102(root, split, download=download) for split in SPLITS}
    elif name == "pets":
        official = {"train": "trainval", "test": "test"}
        sets = {split: datasets.OxfordIIITPet(root, theirs, download=download) for split, theirs in official.items()}
    elif name == "imagenet":
        sets = {"train": datasets.ImageNet(root, "train"), "test": datasets.ImageNet(root, "val")}
    else:
        sets = _folders(root)
    return {split: _listed(source) for split, source in sets.items()}


def _listed(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return paths and labels of a torchvision data set without decoding anything."""
    paths = getattr(source, "_image_files", None) or getattr(source, "_images", None) or [p for p, _ in source.samples]
    labels = source.targets if hasattr(source, "targets") else source._labels
    return np.array([os.fsencode(path) for path in paths]), np.array(labels, dtype=np.int64)


def _folders(root: Path) -> dict[str, Any]:
    from torchvision.datasets import ImageFolder

    present = [split for split in SPLITS if (root / split).is_dir()]
    if not present:
        return {"train": ImageFolder(root)}
    if "train" not in present:
        raise FileNotFoundError(f"{root} must hold a folder train beside {present}, got none: add it")
    sets = {split: ImageFolder(root / split) for split in present}
    for split, source in sets.items():
        other = set(source.classes) ^ set(sets["train"].classes)
        if other:
            raise ValueError(f"{root / split} must hold the classes of train, got a difference in {sorted(other)[:5]}")
    if "test" not in sets and "val" in sets:
        sets["test"] = sets.pop("val")  # as with ImageNet
    return sets
