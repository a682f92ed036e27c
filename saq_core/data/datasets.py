"""Data sets: small ones as tensors on the device, image files as streams; their splits and the probe."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape.checking import numbers, seed_of
from landscape.model import samples_of

from ..contexts import seeded
from . import image_files
from .image_files import ImageFiles
from .splits import TEST_SEED, Source, balanced_order, complete_splits, count_classes, draw_two
from .streams import Split, check_stream, collated, is_dataset, is_pair, samples_in

Batch = tuple[Tensor, Tensor]

PROBE_SIZE = 1024
PROBE_SEED = 20_111  # fixed, so that every network trained on these data gets the same probe
MOMENTS = {
    "digits": ((0.3053,), (0.3760,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2557, 0.2761)),
}
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DataName = Literal["digits", "cifar10", "cifar100", "flowers102", "pets", "imagenet", "folder"]


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """The splits of one data set, with the augmentation that training applies.

    A split is a pair of tensors (inputs, targets), which lies on the device; a map-style `torch.utils.data.Dataset`,
    whose samples are put together by torch's default_collate; or batches: a DataLoader, or a list. Batches are pairs,
    or mappings that hold their targets ("labels", "targets", …) and go to the network as ``model(**batch)``.

    Args:
        train: Inputs (n, …), or `ImageFiles` in their place, and targets (n, …); or as above.
        val: For choices, say after every epoch; drawn from the training data. None: there is none.
        test: Never used for a choice.
        num_classes: Labels are int64 of shape (n,), 0 … num_classes - 1; None: targets of any kind.
        padding: Random crop after padding by this many pixels on each side; 0 = none. Tensors (n, c, h, w) only:
            image files are cropped and scaled at random.
        flip: Horizontal flip of every second image on average.
        fill: Value of the padding per channel (black, once normalised).
        name: For titles.

    Raises:
        ValueError: If a split is empty, its labels are out of range or not int64, or the augmentation does not fit.
        TypeError: If a split is none of these, or can be read only once.

    Example:
        >>> import torch, saq_core
        >>> x, y = torch.randn(30, 1, 8, 8), torch.arange(30) % 3
        >>> data = saq_core.Data((x[:20], y[:20]), (x[20:25], y[20:25]), (x[25:], y[25:]), num_classes=3)
        >>> data
        Data(custom: 20 train, 5 val, 5 test; inputs (1, 8, 8), 3 classes)
    """

    train: Split
    val: Split | None = None
    test: Split | None = None
    num_classes: int | None = None
    padding: int = 0
    flip: bool = False
    fill: tuple[float, ...] = (0.0,)
    name: str = "custom"

    def __post_init__(self) -> None:
        for name, split in ({"train": self.train} | self.splits).items():
            check_split(split, name, self.num_classes)
        numbers(whole=True, at_least=0, padding=self.padding)
        if not self.fill:
            raise ValueError("fill must hold one value, or one for each channel, got none")
        for value in self.fill:
            numbers(fill=value)
        if not self.padding and not self.flip:
            return
        shape = self.train[0].shape if is_pair(self.train) else ()
        if self.padding and isinstance(self.train[0], ImageFiles):
            raise ValueError(f"padding must be 0 for image files, which have crops of their own, got {self.padding}")
        if len(shape) != 4:
            raise ValueError(f"padding and flip need a tensor of images (n, c, h, w), got inputs of shape {shape}")
        if len(self.fill) not in (1, *shape[1:2]):
            raise ValueError(f"fill must hold one value, or one for each channel, got {self.fill}")

    def __repr__(self) -> str:
        kinds = {name: "" if samples_in(split) is not None else "batches of " for name, split in self.splits.items()}
        sizes = ", ".join(f"{samples_in(s) or len(s):,} {kinds[name]}{name}" for name, s in self.splits.items())
        inputs = f"; inputs {self.input_shape}" if is_pair(self.train) else f"; {type(self.train).__name__}"
        return f"Data({self.name}: {sizes}{inputs}{f', {self.num_classes} classes' if self.num_classes else ''})"

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in parts.items() if split is not None}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        if is_pair(self.train):
            return tuple(self.train[0].shape[1:])
        first = self.train[0] if is_dataset(self.train) else next(iter(self.train))
        if not isinstance(first, tuple | list) or not isinstance(first[0], Tensor):
            raise ValueError(f"train must hold pairs of tensors to have an input_shape, got a {type(first).__name__}")
        return tuple(first[0].shape[0 if is_dataset(self.train) else 1 :])

    @cached_property
    def probe(self) -> Any:
        """The samples on which landscapes are measured: 1,024 of the training split, un-augmented, on the CPU.

        Class-balanced, where they are a pair of tensors with classes; all samples where there are fewer; the same for
        every network trained on these data. Of a DataLoader or a list as many batches as hold 1,024.
        """
        if is_pair(self.train):
            x, y = self.train
            chosen = balanced_order(y.cpu(), PROBE_SEED) if self.num_classes else _order(len(y))
            chosen = chosen[:PROBE_SIZE]
            return x[chosen.to(x.device)].cpu(), y[chosen.to(y.device)].cpu()
        if is_dataset(self.train):
            probe = collated(self.train, _order(len(self.train))[:PROBE_SIZE].tolist())
            return tuple(probe) if isinstance(probe, list) else probe
        with seeded(PROBE_SEED):  # a loader that shuffles
            batches: list[Any] = []
            for batch in self.train:
                if sum(samples_of(earlier) or 1 for earlier in batches) >= PROBE_SIZE:
                    break
                batches.append(batch)
        return batches

    def to(self, device: torch.device | str) -> Data:
        """Return the data with all tensors on a device; these, where they lie there already."""
        device = torch.device(device)
        pairs: dict[str, Any] = {name: split for name, split in self.splits.items() if is_pair(split)}
        if all(t.device == device for pair in pairs.values() for t in pair):
            return self
        moved: dict[str, Any] = {name: tuple(t.to(device) for t in pair) for name, pair in pairs.items()}
        return replace(self, **moved)


def data_of(data: Any, *, has_labels: bool) -> Data:
    """Return what `train` or `search` was given as `Data`: a split alone has no validation, and classes as it shows."""
    if isinstance(data, Data):
        return data
    if not (has_labels and is_pair(data) and data[1].ndim == 1 and len(data[1])) or data[1].dtype not in _WHOLE:
        return Data(data)
    x, y = data[0], data[1].long()
    return Data((x, y), num_classes=int(y.max()) + 1 if int(y.min()) >= 0 else None)


def check_split(split: Split, name: str, num_classes: int | None) -> None:
    """Raise if a split is empty, of unequal lengths, or has labels out of range, where that is known."""
    if not is_pair(split):
        check_stream(split, name)
        return
    x, y = split
    if not y.ndim or len(x) == 0 or len(x) != len(y):
        count = f"{len(x)} inputs, {len(y) if y.ndim else 'no'} targets"
        raise ValueError(f"{name} must hold one target per input and at least one, got {count}")
    if num_classes is None:
        return
    if y.ndim != 1 or y.dtype != torch.int64:
        raise ValueError(f"{name} labels must be int64 of shape (n,), got {y.dtype} of shape {tuple(y.shape)}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} labels must lie in 0 … {num_classes - 1}, got {low} … {high}")


def _order(samples: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(PROBE_SEED))


def load_data(
    name: DataName,
    root: str | Path | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    download: bool = False,
    val_fraction: float = 0.1,
    image_size: int | None = None,
    min_scale: float = 0.08,
    workers: int | None = None,
) -> Data:
    """Load a data set: digits and CIFAR as normalised tensors on the device, the others as `ImageFiles`.

    The official splits are used where they exist (ImageNet's val is the test split). A missing validation split is
    drawn from the training images, balanced over the classes, by `seed`. The test split is always whole; where there is
    none it is drawn in the same way, by a fixed seed.

    Args:
        name: "digits" (1,797 images of 8x8, comes with scikit-learn), "cifar10", "cifar100", "flowers102", "pets"
            (Oxford-IIIT, 37 breeds), "imagenet" (2012), or "folder": any images in one folder per class, these in
            folders train, val and test, or train and one of the others (a lone val is the test split), or in `root`.
        root: Folder that holds the files, as torchvision lays them out.
        limit: Number of training images kept (a drawn validation split shrinks with it); None = all.
        seed: Draws the splits.
        device: Where the tensors go; None = the GPU where there is one.
        download: Fetch missing files into `root`; not for "imagenet" and "folder".
        val_fraction: Share of the training images that goes to a drawn validation split (and, first, test split).
        image_size: Side in pixels of images from files; None = 224.
        min_scale: Least share of the area that a random crop of an image file keeps (0.2 for MobileNets).
        workers: Processes that decode image files; None = one per core and at most 8.

    Raises:
        ValueError: If the name is unknown, `root` is missing, a setting out of range, or a class has no training image.
        FileNotFoundError: If the files are not in `root`.

    Example:
        >>> import saq_core
        >>> saq_core.load_data("digits", limit=100)
        Data(digits: 100 train, 11 val, 360 test; inputs (1, 8, 8), 10 classes)
    """
    numbers(above=0, below=1, val_fraction=val_fraction)
    numbers(above=0, at_most=1, min_scale=min_scale)
    numbers(whole=True, at_least=0, optional=True, workers=workers)
    seed_of(seed)
    if image_size is not None and name not in image_files.NAMES:
        raise ValueError(f"image_size must be None for {name}, whose images have one size, got {image_size}")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    parts = complete_splits(_find(name, root, download), limit, seed, val_fraction)
    wrap: Callable[[np.ndarray], Tensor | ImageFiles]
    if name in image_files.NAMES:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
        workers, size = min(8, cores) if workers is None else workers, 224 if image_size is None else image_size
        wrap = partial(ImageFiles, size=size, device=chosen, min_scale=min_scale, workers=workers)
        augmentation: dict[str, Any] = {"flip": True}
    else:
        mean, std = (np.asarray(m, dtype=np.float32) for m in MOMENTS[name])
        wrap = partial(_to_tensor, mean=mean, std=std, device=chosen)
        padding, flip = (1, False) if name == "digits" else (4, True)  # a mirrored digit is another sign
        augmentation = {"padding": padding, "flip": flip, "fill": tuple((-mean / std).tolist())}
    splits: dict[str, Any] = {k: (wrap(x), torch.from_numpy(y).to(chosen)) for k, (x, y) in parts.items()}
    return Data(**splits, num_classes=count_classes(parts), name=name, **augmentation)


def _find(name: str, root: str | Path | None, download: bool) -> dict[str, Source]:
    if name == "digits":
        return _digits()
    if root is None:
        raise ValueError(f'root must be the folder of the {name} files, got None: load_data("{name}", "data")')
    try:
        return (_cifar if name in MOMENTS else image_files.find_images)(name, Path(root), download)
    except RuntimeError as error:
        raise FileNotFoundError(f"no complete {name} under {root}, as torchvision lays it out: {error}") from error


def _to_tensor(x: np.ndarray, mean: np.ndarray, std: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy((x.astype(np.float32) - mean) / std).permute(0, 3, 1, 2).contiguous().to(device)


def _digits() -> dict[str, Source]:
    from sklearn.datasets import load_digits

    source = load_digits()
    train, test = draw_two((source.images[..., None] / 16, source.target.astype(np.int64)), TEST_SEED, 1437, 360)
    return {"train": train, "test": test}


def _cifar(name: str, root: Path, download: bool) -> dict[str, Source]:
    from torchvision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    with warnings.catch_warnings():
        # The published files were pickled by an old numpy; a new one remarks on that.
        warnings.filterwarnings("ignore", message=".*align")
        sets = {split: kind(root, train=split == "train", download=download) for split in ("train", "test")}
    return {k: (v.data / np.float32(255), np.asarray(v.targets, dtype=np.int64)) for k, v in sets.items()}
