"""Reading results back: our own netCDF files, and surfaces that other people's scripts wrote."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from .files import is_sealed, unsealed
from .results import Result, from_json
from .surfaces import COMPUTED, FAILED, PENDING, Line, Surface

# field → its name in files of version 0.1
_FORMER = {"delta_loss": "rise", "data_delta_loss": "data_rises", "rounding_ratio": "misstep", "stored": "directions"}
_PATIENCE = 20.0  # seconds for a file without a checksum
_LARGEST = 1000  # times the file's size: what a compressed array may be
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
    return Surface(about, axes[0], axes[1], *_values(loss.ravel().reshape(shape).T, accuracy.ravel().reshape(shape).T))


def _values(loss: np.ndarray, accuracy: np.ndarray) -> tuple[Tensor, Tensor, None, Tensor]:
    """Return loss, accuracy, no standard errors, and the status."""
    pending = (loss == _PENDING) & (accuracy == _PENDING)
    values = [torch.from_numpy(np.where(pending, np.nan, part).copy()) for part in (loss, accuracy / 100)]
    status = np.where(pending, PENDING, np.where(np.isfinite(loss), COMPUTED, FAILED)).astype(np.int8)
    return values[0], values[1], None, torch.from_numpy(status)


def load(path: str | Path) -> Any:
    """Read a result written by ``.save``, or a surface or line of the loss-landscape scripts of Li et al. (.h5).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no result of this package, or is damaged.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> path = landscape.line(model, data, points=3).save('line.nc')
        >>> landscape.load(path).alphas.tolist()
        [-1.0, 0.0, 1.0]
    """
    import xarray

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no result at {path}")
    content = unsealed(path)
    try:
        with h5py.File(io.BytesIO(content)) as file:  # a damaged one is refused here: h5netcdf complains when collected
            _check_contents(file, len(content))
            foreign = "xcoordinates" in file
        if not is_sealed(path):
            _check_readable(path)
        if foreign:
            return loss_landscape(path)
        tree = xarray.open_datatree(io.BytesIO(content), engine="h5netcdf").load()
        tree.close()
    except Exception as error:
        raise ValueError(f"{path} is not a readable netCDF file (cut short?): {error}") from error
    if "sealed" in tree.attrs and not is_sealed(path):
        reason = "it is damaged, or another program wrote it anew (then delete its attribute 'sealed')"
        raise ValueError(f"{path} has lost its checksum: {reason}")
    if "result" not in tree.attrs:
        raise ValueError(f"{path} holds no landscape result")
    try:
        result = _read(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or was written by another version: {error!r}") from error
    if not is_sealed(path):
        result.about["note"] = "read from a file without a checksum (of version 0.1?): damage would not be noticed"
    return result


# What another process does with a file without a checksum: the library may hang on a damaged one, deaf to interrupts.
_READ = """
import sys, h5py, xarray
file = h5py.File(sys.argv[1])
foreign = "xcoordinates" in file
file.visititems(lambda _, part: hasattr(part, "shape") and part.nbytes < 1e9 and part[()] is None or None)
file.close()
foreign or xarray.open_datatree(sys.argv[1], engine="h5netcdf").load()
"""


def _check_readable(path: Path) -> None:
    """Raise if another process cannot read a file.

    Raises:
        ValueError: it ends in an error, or not in time.
    """
    try:
        subprocess.run([sys.executable, "-c", _READ, str(path)], capture_output=True, check=True, timeout=_PATIENCE)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise ValueError(f"{path} is not a readable netCDF file (damaged, or cut short?)") from error


def _check_contents(file: h5py.File, size: int) -> None:
    """Raise if a file reaches for what is not in it, or claims arrays that cannot be.

    Raises:
        ValueError: links to other files, data sets that lie elsewhere, or larger than the file by far.
    """
    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.ExternalLink):
            raise ValueError(f"{name} is a link to another file")
        part = file[name]
        if isinstance(part, h5py.Group):
            _check_contents(part, size)
        elif part.is_virtual or part.external:
            raise ValueError(f"{name} lies in another file")
        elif part.nbytes > _LARGEST * size:
            raise ValueError(f"{name} claims {part.nbytes:,} bytes in a file of {size:,}")


def _read(tree: Any) -> Any:
    kind = {kind.__name__: kind for kind in _subclasses(Result)}[tree.attrs["result"]]
    plain = from_json(json.loads(tree.attrs["fields"]))
    arrays: dict[str, Any] = {}
    for variable_name, variable in tree.data_vars.items():
        field_name, colon, key = variable_name.partition(":")
        tensor = torch.from_numpy(np.array(variable.values))
        if colon:  # one of a dict of tensors, whose name may be empty
            arrays.setdefault(field_name, {})[key] = tensor
        else:
            arrays[field_name] = tensor
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        former = _FORMER.get(field.name, "")
        name = former if former in arrays and field.name not in arrays else field.name
        if name in arrays:
            values[field.name] = arrays[name]
        elif name in tree.children:
            values[field.name] = {key: _read(tree[name][str(i)]) for i, key in enumerate(plain[name]["keys"])}
        elif name in plain or {field.default, field.default_factory} == {dataclasses.MISSING}:  # else an older file
            values[field.name] = plain[name]
    values["about"] = _migrated(values["about"])
    return kind(**values)


def _migrated(about: dict[str, Any]) -> dict[str, Any]:
    """Add ``axes`` to what a file of an earlier version says of its directions in words alone."""
    words = about.get("directions")
    if "axes" in about or not isinstance(words, str):
        return about
    axes = [axis for part in words.split(" and ") if (axis := _axis(part)) is not None]
    return about | {"axes": axes} if axes else about


def _axis(words: str) -> dict[str, str | int] | None:
    if match := re.fullmatch(r"random, (\w+) normalisation", words):
        return {"kind": "random", "normalize": match[1]}
    if match := re.fullmatch(r"(eigenvector|principal component) (\d+)", words):
        return {"kind": match[1], "index": int(match[2])}
    kinds = {"towards a network": "network", "gradient": "gradient", "given": "given"}
    return {"kind": kinds[words]} if words in kinds else None


def _subclasses(kind: type[Any]) -> list[type]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _subclasses(child))]
