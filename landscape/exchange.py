"""Surfaces that other people's scripts wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from .surfaces import Line, Surface
from .tiles import COMPUTED, FAILED, PENDING

_PENDING = -1.0  # what the scripts fill their arrays with before a point is measured


def loss_landscape(path: str | Path) -> Line | Surface:
    """Read a surface file of github.com/tomgoldstein/loss-landscape (Li et al. 2018).

    Its arrays hold x along the second dimension, in the order of ``numpy.meshgrid``, whatever their shape says: on
    grids that are not square the file's own shape is transposed. Accuracies come in percent, points not measured as −1.
    """
    with h5py.File(path) as file:
        axes = [torch.from_numpy(np.array(file[n], dtype=float)) for n in ("xcoordinates", "ycoordinates") if n in file]
        kind = next((kind for kind in ("train", "test") if f"{kind}_loss" in file), None)
        if kind is None:
            raise ValueError(f"{path} has coordinates but neither train_loss nor test_loss")
        loss, accuracy = (np.array(file[f"{kind}_{name}"], dtype=float) for name in ("loss", "acc"))
    about: dict[str, Any] = {"written_by": "loss-landscape (Li et al. 2018)", "data": kind, "file": Path(path).name}
    if len(axes) == 1:
        return Line(about, axes[0], *_values(loss.ravel(), accuracy.ravel()))
    shape = (len(axes[1]), len(axes[0]))
    values = _values(loss.ravel().reshape(shape).T, accuracy.ravel().reshape(shape).T)
    return Surface(about, axes[0], axes[1], *values)


def _values(loss: np.ndarray, accuracy: np.ndarray) -> tuple[Tensor, Tensor, None, Tensor]:
    """Return loss, accuracy, no standard errors, and the status."""
    pending = (loss == _PENDING) & (accuracy == _PENDING)
    values = [torch.from_numpy(np.where(pending, np.nan, part).copy()) for part in (loss, accuracy / 100)]
    status = np.where(pending, PENDING, np.where(np.isfinite(loss), COMPUTED, FAILED)).astype(np.int8)
    return values[0], values[1], None, torch.from_numpy(status)
