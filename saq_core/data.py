"""Data sets as tensors on the device, split and normalised once, augmented per sample where they lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Split = tuple[Tensor, Tensor]

PROBE_SIZE = 1024
PROBE_SEED = 20_111  # of its own, so that every network trained on these data gets the same probe
TEST_SEED = 1_797  # the digits come without a test split; this one never depends on the caller's seed
CIFAR_MOMENTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2557, 0.2761)),
}
DIGITS_MOMENTS = ((0.3053,), (0.3760,))
NAMES = ("cifar10", "cifar100", "digits")


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Three splits of one data set, each a pair (x, y), with the augmentation that training applies.

    Build one from your own tensors to train on them.

    Args:
        train: Inputs (n, …) float and labels (n,) int64.
        val: Chooses; drawn from the training data.
        test: Never chooses anything.
        num_classes: Labels are 0 … num_classes - 1.
        padding: Random crop after padding by this many pixels on each side; 0 = none. Images (n, c, h, w) only.
        flip: Horizontal flip of every second image on average.
        fill: Value of the padding per channel (black, once normalised).
        name: For titles.
    """

    train: Split
    val: Split
    test: Split
    num_classes: int
    padding: int = 0
    flip: bool = False
    fill: tuple[float, ...] = (0.0,)
    name: str = "custom"

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            check_split(getattr(self, split), split, self.num_classes)
        if self.padding < 0:
            raise ValueError(f"padding must be >= 0, got {self.padding}")
        if (self.padding or self.flip) and self.train[0].ndim != 4:
            raise ValueError(f"padding and flip need images (n, c, h, w), got inputs of shape {self.train[0].shape}")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, split)[0]):,} {split}" for split in ("train", "val", "test"))
        return f"Data({self.name}: {sizes}; inputs {self.input_shape}, {self.num_classes} classes)"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train[0].shape[1:])

    @cached_property
    def probe(self) -> Split:
        """The images on which landscapes are measured: 1,024 of the training split, un-augmented, on the CPU.

        Class-balanced; all images where there are fewer; the same for every network trained on these data.
        """
        x, y = self.train
        chosen = balanced_order(y.cpu(), PROBE_SEED)[:PROBE_SIZE]
        return x[chosen.to(x.device)].cpu(), y[chosen.to(y.device)].cpu()


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's weights; the CPU if it has none."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for a while, then every module back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_split(split: Split, name: str, num_classes: int) -> None:
    """Raise if a split is empty, of unequal lengths, or has labels out of range."""
    x, y = split
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"{name} must hold one label per input and at least one, got {len(x)} inputs, {len(y)} labels")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} labels must lie in 0 … {num_classes - 1}, got {low} … {high}")


def load_data(
    name: str,
    root: str | Path | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    download: bool = False,
    val_fraction: float = 0.1,
) -> Data:
    """Load a data set as normalised tensors on the device.

    The validation split is drawn from the training images, balanced over the classes, by `seed`. The test split is
    always whole.

    Args:
        name: "digits" (1,797 images of 8x8, comes with scikit-learn), "cifar10" or "cifar100".
        root: Folder that holds the CIFAR files, as torchvision lays them out.
        limit: Number of training images kept (the validation split shrinks with it); None = all.
        seed: Draws the splits.
        device: Where the tensors go; None = the GPU where there is one.
        download: Fetch missing CIFAR files into `root`.
        val_fraction: Share of the training images that goes to the validation split.

    Raises:
        ValueError: For an unknown name, a missing root, or a limit or fraction out of range.
        FileNotFoundError: If the files are not in `root`.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {list(NAMES)}, got {name!r}")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction}")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train, test, moments = _digits() if name == "digits" else _cifar(name, root, download)
    ordered = balanced_order(torch.from_numpy(train[1]), seed).numpy()
    kept, held_out = _split_sizes(len(ordered), limit, val_fraction)
    pools = [(train, ordered[held_out : held_out + kept]), (train, ordered[:held_out]), (test, slice(None))]
    mean, std = (np.asarray(m, dtype=np.float32) for m in moments)
    first, second, third = (_to_tensors(x[rows], y[rows], mean, std, chosen) for (x, y), rows in pools)
    classes = 100 if name == "cifar100" else 10
    padding, flip = (1, False) if name == "digits" else (4, True)  # a mirrored digit is another sign
    return Data(first, second, third, classes, padding, flip, tuple((-mean / std).tolist()), name)


def _split_sizes(total: int, limit: int | None, val_fraction: float) -> tuple[int, int]:
    held_out = max(1, round(val_fraction * total))
    if limit is None:
        return total - held_out, held_out
    if not 1 <= limit <= total - held_out:
        raise ValueError(f"limit must be from 1 to {total - held_out}, got {limit}")
    return limit, min(held_out, max(1, round(limit * val_fraction / (1 - val_fraction))))


def balanced_order(y: Tensor, seed: int) -> Tensor:
    """Return a random order of which every beginning holds the classes in (almost) equal numbers."""
    mixed = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    labels = y[mixed]
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    rank = torch.empty_like(mixed)
    rank[by_class] = torch.arange(len(y)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return mixed[torch.argsort(rank, stable=True)]


def _to_tensors(x: np.ndarray, y: np.ndarray, mean: np.ndarray, std: np.ndarray, device: torch.device) -> Split:
    images = (x.astype(np.float32) - mean) / std
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device), torch.from_numpy(y).to(device)


def _digits() -> tuple[Any, Any, Any]:
    from sklearn.datasets import load_digits

    source = load_digits()
    x, y = source.images[..., None] / 16, source.target.astype(np.int64)
    ordered = balanced_order(torch.from_numpy(y), TEST_SEED).numpy()
    test, train = ordered[:360], ordered[360:]
    return (x[train], y[train]), (x[test], y[test]), DIGITS_MOMENTS


def _cifar(name: str, root: str | Path | None, download: bool) -> tuple[Any, Any, Any]:
    if root is None:
        raise ValueError(f'root must be the folder of the {name} files, got None: load_data("{name}", "data")')
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    parts = []
    try:
        with warnings.catch_warnings():
            # The published files were pickled by an old numpy; a new one remarks on that.
            warnings.filterwarnings("ignore", message=".*align")
            for train in (True, False):
                source = kind(str(root), train=train, download=download)
                parts.append((source.data / np.float32(255), np.asarray(source.targets, dtype=np.int64)))
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no complete {name} under {root}: pass download=True, or unpack the archive there ({kind.base_folder}/)"
        ) from error
    return parts[0], parts[1], CIFAR_MOMENTS[name]


def training_batches(data: Data, batch_size: int) -> Iterator[Split]:
    """Yield the training split once, shuffled and augmented by the global random generator.

    The last incomplete batch is left out, unless it is the only one.
    """
    x, y = data.train
    order = torch.randperm(len(x), device=x.device)
    used = len(x) - len(x) % batch_size if len(x) >= batch_size else len(x)
    for rows in order[:used].split(batch_size):
        yield augment(x[rows], data), y[rows]


def augment(x: Tensor, data: Data) -> Tensor:
    """Crop and flip each image on its own, in one gather."""
    if not data.padding and not data.flip:
        return x
    (n, c, h, w), p, device = x.shape, data.padding, x.device
    fill = torch.tensor(data.fill, dtype=x.dtype).to(device, non_blocking=True).view(1, -1, 1, 1)
    padded = fill.expand(n, c, h + 2 * p, w + 2 * p).clone()
    padded[:, :, p : p + h, p : p + w] = x
    down, right = torch.randint(0, 2 * p + 1, (2, n, 1), device=device)
    rows, columns = down + torch.arange(h, device=device), torch.arange(w, device=device).expand(n, w)
    if data.flip:
        columns = torch.where(torch.rand(n, 1, device=device) < 0.5, columns.flip(1), columns)
    places = rows[:, :, None] * (w + 2 * p) + (columns + right)[:, None, :]
    return padded.flatten(2).gather(2, places.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)
