"""What all results share: `about`, saving and loading as netCDF without pickle, pictures, tables and how they show."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec

import numpy as np
import torch
from torch import Tensor

from . import parallel
from .checking import checked
from .files import atomic
from .plotting import drawing_function
from .plotting.captions import caption

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
_PAIRS, _TUPLE = "pairs of key and value", "tuple"  # of what JSON has no form for
_DOUBTFUL = ("straight-through", "unverified")
_ROWS = 20  # of a table in a notebook


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One measurement with how it came about.

    ``about`` holds the space, the kind of derivative, samples, seed, products used, seconds, dtype and versions.
    Tensors are on the CPU. Subclasses name the dimensions of their arrays in ``dims``, what has an entry for every
    row of `frame` in ``columns``, what `plot` and `draw` draw in ``picture`` (see `landscape.plotting`), and how it is
    measured, in a sentence for a page, in ``how``.

    Example:
        >>> import torch, landscape
        >>> data = torch.randn(16, 3), torch.arange(16) % 2
        >>> line = landscape.line(torch.nn.Linear(3, 2), data, points=5)
        >>> line.about["samples"], len(line.frame)
        (16, 5)
        >>> line.draw(scale="linear").axes[0].get_ylabel()
        'Loss'
    """

    about: dict[str, Any]
    dims: ClassVar[dict[str, tuple[str, ...]]] = {}
    columns: ClassVar[tuple[str, ...]] = ()
    picture: ClassVar[str] = ""
    how: ClassVar[str] = ""

    def plot(self, **options: Any) -> go.Figure:
        """Draw an interactive plotly figure.

        Args:
            options: ``scale=`` ("auto", "linear", "log") and ``title=``; of lines, surfaces and comparisons also
                ``value=``, of surfaces ``kind=`` ("3d", "contour") and ``levels=``, of a trajectory ``surface=``.
        """
        figure: go.Figure = self._function("plot", options)(self._drawn(), **options)
        return figure

    def draw(self, ax: Axes | None = None, **options: Any) -> Figure:
        """Draw for print with matplotlib; return the figure, with ``ax`` that of the axes.

        Args:
            ax: axes to draw into; default a new figure.
            options: those of `plot`.
        """
        figure: Figure = self._function("draw", options)(self._drawn(), ax, **options)
        return figure

    def _function(self, how: Any, options: dict[str, Any]) -> Callable[..., Any]:
        function: Callable[..., Any] = drawing_function(self.picture, how)
        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        if unknown := [name for name in options if name not in known]:
            raise TypeError(f"{type(self).__name__}.{how} takes {', '.join(known)}, got {', '.join(unknown)}")
        return checked(function)

    def _drawn(self) -> Any:
        """Return what the drawing function takes."""
        return self

    def _kind(self) -> str:
        """Say what a number means: its units, its space, and whether derivatives are straight-through."""
        parts = [f"{self.about[key]} {key}" for key in ("units", "space") if key in self.about]
        return ", ".join(filter(None, [*parts, self._doubts()]))

    def _doubts(self) -> str:
        """Say what a reader must know: derivatives that are not exact, weights that do not vary."""
        label, (varies, total) = self.about.get("derivatives"), self.about.get("varies", (0, 0))
        few = f"{varies:,} of {total:,} weights vary" if varies < total else ""
        return ", ".join(filter(None, [f"{label} derivatives" if label in _DOUBTFUL else "", few]))

    def save(self, path: str | Path) -> Path:
        """Write the result to a netCDF file with a checksum (`landscape.load` and xarray read it); return the path.

        A name that ends in .csv gets the `frame` instead, which `load` cannot read back. What lies in shards on
        several processes is gathered: all of them call this, with one path.
        """
        path = Path(path)
        if path.suffix == ".csv":
            with atomic(path) as scratch:
                self.frame.to_csv(scratch, index=False)
            return path
        import xarray

        # in memory first: the HDF5 library does not survive a full disk
        tree = xarray.DataTree.from_dict(self._groups())
        tree.attrs["sealed"] = 1
        content = tree.to_netcdf(engine="h5netcdf")
        with atomic(path, sealed=True) as scratch:
            scratch.write_bytes(content)  # type: ignore[arg-type]
        return path

    @property
    def frame(self) -> pd.DataFrame:
        """The numbers as a tidy pandas DataFrame: a row per point, sample, eigenvalue or whatever ``rows`` holds."""
        import pandas

        if hasattr(self, "rows"):
            return pandas.DataFrame(self.rows)
        columns: dict[str, Any] = {}
        for name in self.columns:
            value = getattr(self, name)
            parts = value if isinstance(value, dict) else {} if value is None else {name: value}
            for key, part in parts.items():
                part = torch.as_tensor(part)
                several = {f"{key}_{i}": column for i, column in enumerate(part.unbind(1))} if part.ndim == 2 else {}
                columns |= {k: column.tolist() for k, column in (several or {key: part}).items()}
        return pandas.DataFrame(columns)

    @property
    def table(self) -> pd.DataFrame:
        """The numbers for reading, with their errors, as a pandas DataFrame of text."""
        import pandas

        cells = self._cells()
        first = next(iter(cells), "")
        frame = pandas.DataFrame(cells)
        return frame.set_index(first).rename_axis(index=None, columns=first or None) if cells else frame

    def _cells(self) -> dict[str, list[str]]:
        """Return the columns of `table`, the first of which names the rows."""
        return {name: [str(cell) for cell in column] for name, column in self.frame.items()}  # type: ignore[misc]

    def _caption(self) -> str:
        """Say in a line what was measured."""
        units = f"{self.about['units']} units" if "units" in self.about else ""
        return " · ".join(filter(None, [type(self).__name__, caption({"": self}), units, self._doubts()]))

    def _thumbnail(self) -> bytes | None:
        """Return a small PNG, if a picture says more than the table."""
        return None

    def _repr_html_(self) -> str:
        table = self.table.to_html(border=0, max_rows=_ROWS)  # which escapes
        table = table.replace("<table", '<table style="white-space: nowrap"', 1)  # no line ends at a ±
        image = ""
        if (content := self._thumbnail()) is not None:
            data = base64.b64encode(content).decode()
            image = f'<img alt="" style="float: left; margin-right: 1em" src="data:image/png;base64,{data}">'
        return f'<div>{image}{table}<p style="clear: both">{html.escape(self._caption())}</p></div>'

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
            elif isinstance(value, dict) and value and all(isinstance(part, Tensor) for part in value.values()):
                variables |= {f"{field.name}:{key}": self._variable("", part) for key, part in value.items()}
            elif isinstance(value, dict) and value and all(isinstance(part, Result) for part in value.values()):
                for index, part in enumerate(value.values()):
                    groups |= {f"/{field.name}/{index}{'' if k == '/' else k}": v for k, v in part._groups().items()}
                plain[field.name] = {"keys": list(value)}  # any text may be a key, which no group's name may be
            else:
                plain[field.name] = value
        fields = json.dumps(as_json(plain), default=lambda number: number.item())
        return {"/": xarray.Dataset(variables, attrs={"result": type(self).__name__, "fields": fields})} | groups

    def _variable(self, name: str, value: Tensor | np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        if isinstance(value, Tensor):
            value = parallel.whole(value).detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value  # which netCDF does not know
        array = value.numpy() if isinstance(value, Tensor) else value
        # a dimension is named by its length where it has no name of its own: one name, one length
        return self.dims.get(name) or tuple(f"length_{n}_{i}" for i, n in enumerate(array.shape)), array


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it: mappings whose keys are no texts as pairs, tuples by name."""
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: as_json(part) for key, part in value.items()}
        return {_PAIRS: [[as_json(key), as_json(part)] for key, part in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [as_json(part) for part in value]}
    return [as_json(part) for part in value] if isinstance(value, list) else value


def from_json(value: Any) -> Any:
    """Undo `as_json`."""
    if isinstance(value, dict):
        if value.keys() == {_PAIRS}:
            return {from_json(key): from_json(part) for key, part in value[_PAIRS]}
        if value.keys() == {_TUPLE}:
            return tuple(from_json(part) for part in value[_TUPLE])
        return {key: from_json(part) for key, part in value.items()}
    return [from_json(part) for part in value] if isinstance(value, list) else value


def plotted(measure: Callable[P, Result]) -> Callable[P, go.Figure]:
    """Return ``plot_x`` of a function ``x`` that measures: ``plot_x(…)`` is ``x(…).plot()``, with its signature."""

    @functools.wraps(measure)
    def plot(*args: P.args, **kwargs: P.kwargs) -> go.Figure:
        return measure(*args, **kwargs).plot()

    name, document = measure.__name__, inspect.getdoc(measure) or ""
    plot.__name__ = plot.__qualname__ = f"plot_{name}"
    plot.__doc__ = f"Return ``{name}(…).plot()``, an interactive plotly figure, of what `{name}` does:\n\n{document}"
    plot.__annotations__ = measure.__annotations__ | {"return": "go.Figure"}
    vars(plot)["__signature__"] = inspect.signature(measure).replace(return_annotation="go.Figure")
    return plot


def with_errors(values: Tensor, *errors: Tensor) -> list[str]:
    """Write numbers with their standard errors, independent ones joined; see `with_error`."""
    rows = zip(values.tolist(), *(error.tolist() for error in errors), strict=True)
    return [with_error(value, join(*parts)) for value, *parts in rows]


def with_error(value: float, error: float, *, sign: bool = False) -> str:
    """Write a number and its standard error, with as many digits as the error leaves certain.

    Example:
        >>> with_error(-0.04721, 0.0031), with_error(8.89e-05, 8e-05), with_error(31.4, math.nan)
        ('−0.0472 ± 0.0031', '(8.9 ± 8.0) × 10⁻⁵', '31.4')
    """
    plus, known = "+" if sign else "", error > 0 and math.isfinite(error) and math.isfinite(value)
    if not known or error < 1e-6 * abs(value):  # more digits than anyone reads
        number, _, power = f"{value:{plus}.4g}".partition("e")
        return (number + (_times(int(power)) if power else "")).replace("-", "−")
    exponent = math.floor(math.log10(max(abs(value), error)))
    exponent = 0 if -4 < exponent < 5 else exponent
    value, error = value / 10**exponent, error / 10**exponent
    digits = max(0, 1 - math.floor(math.log10(float(f"{error:.1e}"))))
    text = f"{value:{plus}.{digits}f} ± {error:.{digits}f}"
    return (f"({text}){_times(exponent)}" if exponent else text).replace("-", "−")


def _times(power: int) -> str:
    return f" × 10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def join(*errors: float) -> float:
    """Add independent standard errors up in quadrature, those that are known; NaN without any."""
    known = [error for error in errors if not math.isnan(error)]
    return math.hypot(*known) if known else math.nan
