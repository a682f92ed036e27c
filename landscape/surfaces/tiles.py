"""A folder that keeps every finished tile of a surface: a killed measurement goes on from there."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .. import parallel
from ..files import atomic, is_sealed, unsealed
from ..model import Objective, fingerprint


class Tiles:
    """A folder with one small file per finished tile, and a manifest of what it is that they are tiles of.

    Files appear under their names only when they are whole (written beside and renamed), so a kill at any moment
    loses the tile in progress and nothing else; a second call finds them and goes on.

    Args:
        path: the folder; made if it is not there.
        settings: everything that decides the numbers, as JSON: another surface's folder is refused.

    Raises:
        ValueError: the folder holds another surface, or something else.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        manifest = self.path / "manifest.json"
        expected = json.loads(json.dumps(settings, default=lambda scalar: scalar.item()))  # of numpy's seeds, too
        if manifest.exists():
            self._check(_manifest(manifest), expected)
            return
        if others := [file.name for file in self.path.iterdir() if not file.name.endswith(".part")]:
            raise ValueError(f"path must be a new folder or one of a surface, but {path} holds {others[0]!r}")
        with atomic(manifest) as scratch:
            scratch.write_text(json.dumps(expected, indent=1))

    def read(self, index: int, points: Tensor) -> tuple[Tensor, str] | None:
        """Return a finished tile, or None: not there, damaged, or one of other points."""
        file = self.path / f"tile_{index:05d}.npz"
        if not file.exists() or not is_sealed(file):
            return None
        try:
            with np.load(io.BytesIO(unsealed(file))) as arrays:
                if not np.array_equal(arrays["points"], points.numpy()) or len(arrays["values"]) != len(points):
                    return None
                return torch.from_numpy(arrays["values"]), str(arrays["failure"])
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
            return None  # measured again

    def write(self, index: int, points: Tensor, values: Tensor, failure: str) -> None:
        """Keep a finished tile."""
        with atomic(self.path / f"tile_{index:05d}.npz", sealed=True) as scratch, scratch.open("wb") as file:
            np.savez(file, points=points.numpy(), values=values.numpy(), failure=np.array(failure))

    def _check(self, there: dict[str, Any], expected: dict[str, Any]) -> None:
        for key in [*expected, *there]:
            if key in _ROUNDED:  # last digits depend on the machine; earlier versions kept no metrics
                stored, wanted = np.array(there.get(key, expected.get(key))), np.array(expected.get(key, math.nan))
                if np.allclose(stored, wanted, rtol=1e-3, atol=0, equal_nan=key != "centre_loss"):
                    continue
            if there.get(key) != expected.get(key):
                raise ValueError(
                    f"path must be a new folder, or the one of this very surface: {self.path} holds one with "
                    f"{key} = {there.get(key)!r}, asked for is {expected.get(key)!r}; choose another path"
                )


# Where a surface was begun; and ‖w‖, whose last digit depends on the number of threads: the weights tell models apart.
# "axes" says the same as "directions", and folders begun by an earlier version do not have it.
# What is said of derivatives decides no number here.
_NOT_ASKED = {"torch", "device", "weight_norm", "axes", "derivatives", "derivatives_note", "varies"}
_ROUNDED = ("centre_loss", "centre_metrics")
_NOT_ASKED |= {"end_losses", "end_losses_shown", "generator"}


def open_tiles(
    path: str | Path | None, function: Objective, coordinates: Tensor, about: Mapping[str, Any]
) -> Tiles | None:
    """Open the folder of a surface, with everything that decides its numbers as its manifest."""
    if path is None:
        return None
    settings = {key: value for key, value in function.about(**about).items() if key not in _NOT_ASKED}
    data = [fingerprint(_tensors(batch)) for batch in function.batches()] if function.same_order else ["in any order"]
    state = dict(function.model.named_parameters()) | dict(function.model.named_buffers())
    settings |= {
        "coordinates": fingerprint({"": coordinates}),
        "model": fingerprint(state),
        "data": data,
        "batch_rows": function.batch_rows,
        "metrics": list(function.criterion.metrics),
        "centre_metrics": function.centre.metrics.tolist(),
    }
    return parallel.first_alone(lambda: Tiles(path, settings))


def _tensors(batch: Any) -> dict[str, Tensor]:
    known = (Tensor, np.ndarray, int, float)
    return {
        str(index): torch.as_tensor(leaf if isinstance(leaf, known) else list(repr(leaf).encode()))
        for index, leaf in enumerate(tree_leaves(batch))
    }


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete the folder, or choose another path") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (no mapping): delete the folder, or choose another path")
    return content
