"""What all results share: `about`, saving and loading as netCDF without pickle, and a one-line repr."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One measurement with how it came about.

    ``about`` holds the space, the kind of derivative, samples, seed, products used, seconds, dtype and versions.
    Tensors are on the CPU. Subclasses name the dimensions of their arrays in ``dims``, and what has an entry for every
    row of `frame` in ``columns``.
    """

    about: dict[str, Any]
    dims: ClassVar[dict[str, tuple[str, ...]]] = {}
    columns: ClassVar[tuple[str, ...]] = ()

    def _kind(self) -> str:
        """Say what a number means: its units, its space, and whether derivatives are straight-through."""
        parts = [f"{self.about[key]} {key}" for key in ("units", "space") if key in self.about]
        return ", ".join(parts + ["straight-through"] * (self.about.get("derivatives") == "straight-through"))

    def save(self, path: str | Path) -> Path:
        """Write the result to a netCDF file (readable by `landscape.load` and by xarray); return the path.

        A name that ends in .csv gets the `frame` instead, which `load` cannot read back.
        """
        import xarray

        path = Path(path)
        scratch = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            self.frame.to_csv(scratch, index=False)
        else:
            xarray.DataTree.from_dict(self._groups()).to_netcdf(scratch, engine="h5netcdf")
        scratch.replace(path)  # a reader never sees half a file
        return path

    @property
    def frame(self) -> Any:
        """The numbers as a tidy pandas DataFrame: a row per point, sample or eigenvalue."""
        import pandas

        columns: dict[str, Any] = {}
        for name in self.columns:
            value = getattr(self, name)
            parts = value if isinstance(value, dict) else {} if value is None else {name: value}
            for key, part in parts.items():
                part = torch.as_tensor(part)
                several = {f"{key}_{i}": column for i, column in enumerate(part.unbind(1))} if part.ndim == 2 else {}
                columns |= {k: column.tolist() for k, column in (several or {key: part}).items()}
        return pandas.DataFrame(columns)

    def _groups(self) -> dict[str, Any]:
        """Split into datasets: arrays are variables, nested results are groups, everything else is JSON."""
        import xarray

        variables: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        groups: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor | np.ndarray):
                variables[field.name] = self._variable(field.name, value)
            elif _is_point(value):
                variables |= {f"{field.name}:{key}": self._variable("", part) for key, part in value.items()}
            elif isinstance(value, dict) and value and all(isinstance(part, Result) for part in value.values()):
                for number, part in enumerate(value.values()):
                    groups |= {f"/{field.name}/{number}{'' if k == '/' else k}": v for k, v in part._groups().items()}
                plain[field.name] = {"keys": list(value)}
            else:
                plain[field.name] = value
        attributes = {"result": type(self).__name__, "fields": json.dumps(plain, default=lambda number: number.item())}
        return {"/": xarray.Dataset(variables, attrs=attributes)} | groups

    def _variable(self, name: str, value: Tensor | np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value  # which netCDF does not know
        array = value.numpy() if isinstance(value, Tensor) else value
        # a dimension is named by its length where it has no name of its own: one name, one length
        return self.dims.get(name) or tuple(f"length_{n}_{i}" for i, n in enumerate(array.shape)), array


def _is_point(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(part, Tensor) for part in value.values())
