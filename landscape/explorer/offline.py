"""One self-contained HTML file of surfaces and numbers: no server, no kernel, no network.

The file holds the template ``page.html`` with ``page.css`` and ``page.js`` (its own WebGL 2 renderer), the numbers as
one block of float32, and a policy that forbids every request. What it says in words is made in ``wording``.
"""

from __future__ import annotations

import base64
import gzip
import html
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import parallel
from ..comparison import Comparison, compare, quantity_label
from ..files import atomic
from ..model import Objective
from ..plotting import draw_together
from ..plotting.captions import short
from ..plotting.values import is_log
from ..results import Result
from ..surfaces import Basin, Surface, Trajectory
from .template import asset, filled, pictured, script_json
from .views import check_parts
from .wording import Numbers, bibtex, lead, methods, note, numbers_table, shown, step_length, title_of, verdict

_BITS = re.compile(r"(?<![A-Za-z0-9])(?:W(\d+)A\d+|FP(\d+))(?![A-Za-z0-9])")
_HORIZONTAL = {q: quantity_label(q) for q in ("trace_filter", "lambda1_filter")} | {"bits": "bits per weight"}
_ERROR_BITS = 20  # of a float32: an error bar in four digits packs into half the bytes
_FRAME = "position: absolute; inset: 0; width: 100%; height: 100%; border: 0"


def page(
    content: Any,
    path: str | Path,
    *,
    data: Any = None,
    title: str | None = None,
    parts: tuple[str, ...] | None = None,
) -> Page:
    """Write one HTML file of loss surfaces to turn, slide, play and send, which needs no kernel and no network.

    It has surfaces and maps under one camera, a slider that morphs between networks, a slice, an overview, the table of
    sharpness with its error bars, how to read it, methods and BibTeX. The same content gives the same bytes.

    Args:
        content: a result; name → results; or networks, one or name → network, which `compare` measures. A `Comparison`,
            a `Surface`, an `Explorer` and the plane of a `Basin` are there to be turned; a `Trajectory` is drawn on the
            surface of its plane, which has to be there too; any other result is a picture and a table. Names may be
            tuples, such as ``("SGD", "W4A4")``: one part runs on a slider, the others stand
            side by side, and the reader may swap them; a plain name beside them stays in view. What is the same under
            several such names, as FP32 may be, stands in the table once.
        path: of the file, which ends in .html.
        data: ``(x, y)`` or batches, for networks; default the probe that they carry.
        title: of the page; default the names.
        parts: what the parts of such names are called, for example ``("training", "bits")``.

    Raises:
        TypeError: content is something else.
        ValueError: nothing to show, both networks and results, data beside results, names that look alike or whose
            parts differ in number, surfaces over different grids on one slider, a trajectory without its surface.

    Cost: of results a second; the file has 0.1 to 0.5 MB.

    Example:
        >>> import pathlib, tempfile, torch, landscape
        >>> folder, data = tempfile.TemporaryDirectory(), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> surfaces = {name: landscape.surface(torch.nn.Linear(3, 2), data, points=5) for name in ("W4A4", "W2A2")}
        >>> page = landscape.page(surfaces, pathlib.Path(folder.name) / "surfaces")
        >>> page.path.name, page.path.stat().st_size < 100_000
        ('surfaces.html', True)
        >>> folder.cleanup()
    """
    parallel.check_agreement(**locals())
    entries, wholes, others = _entries(content, data)
    places, dimensions = _dimensions(entries, parts)
    packed = _Packed()
    networks = _merged(entries, [packed.network(entry) for entry in entries], places)
    named = {network["name"]: network["first"] for network in networks}
    known = {entry.name: entry for entry in entries}
    surfaces = {name: surface for name, first in named.items() if (surface := known[first].surface) is not None}
    paths = any(entry.path is not None for entry in entries)
    title = title or title_of(list(named) or list(others))
    drawn = {
        "title": title,
        "start": "log" if is_log("auto", [surface.loss.numpy() for surface in surfaces.values()]) else "loss",
        "parts": dimensions,
        "slides": _slides(entries),
        "slider": _slider(entries, dimensions),
        "networks": networks,
        "overview": _overview(networks),
        "grids": packed.grids,
        "lengths": [len(array) for array in packed.arrays],
        "block": packed.block(),
    }
    text = {
        "TITLE": title,
        "LEAD": lead(surfaces, wholes),
        "STEP": step_length(surfaces),
        "VERDICT": " ".join(filter(None, map(verdict, wholes))),
        "METHODS": methods(surfaces, wholes, paths),
        "BIBTEX": bibtex(asset("page.bib"), surfaces, wholes, paths),
    }
    fields = {name: html.escape(part) for name, part in text.items()} | {
        "TABLE": numbers_table({name: known[first].numbers for name, first in named.items()}, wholes),
        "HIDDEN": "" if networks else "hidden",
        "OTHERS": "".join(pictured(name, result) for name, result in others.items()),
        "DATA": script_json(drawn),
    }
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        target = target.with_name(f"{target.name}.html")
    with atomic(target) as scratch:
        scratch.write_bytes(filled(fields))
    return Page(target, surfaces)


@dataclass(frozen=True, repr=False, eq=False)
class Page(os.PathLike[str]):
    """The file that `page` wrote: a path, and in a notebook the page itself, in a frame that can reach nothing.

    Attributes:
        path: of the file.
        surfaces: name → what it draws.
    """

    path: Path
    surfaces: Mapping[str, Surface]

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Page({str(self.path)!r}: {len(self.surfaces)} surfaces, {self.path.stat().st_size / 1000:.0f} kB)"

    def _repr_html_(self) -> str:
        """Return the frame, over a picture that is seen where a viewer takes frames away."""
        text = html.escape(self.path.read_text("utf-8"))
        frame = f'<iframe sandbox="allow-scripts" style="{_FRAME}" srcdoc="{text}"></iframe>'
        picture = ""
        if self.surfaces:
            alt = html.escape(f"Loss surfaces of {', '.join(self.surfaces)}")
            picture = f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(self._picture()).decode()}">'
        return f'<div style="position: relative; min-height: 860px">{picture}{frame}</div>'

    def _picture(self) -> bytes:
        from ..plotting.paper import png

        return png(draw_together(self.surfaces, kind="3d"))


@dataclass(frozen=True)
class _Entry:
    """What there is to show under one name."""

    key: Any
    surface: Surface | None = None
    numbers: Numbers = field(default_factory=dict)
    path: Trajectory | None = None

    @property
    def name(self) -> str:
        return shown(self.key)


def _entries(content: Any, data: Any) -> tuple[list[_Entry], list[Comparison], dict[str, Result]]:
    """Return what there is to turn, the comparisons that it comes from, and other results; measure networks first."""
    if isinstance(content, nn.Module | Objective):
        content = {"network": content}
    items = dict(content) if isinstance(content, Mapping) else {"": getattr(content, "comparison", content)}
    networks = [isinstance(content, Mapping) and _is_network(item) for item in items.values()]
    if not items:
        raise ValueError("content must hold at least one network or result, got none")
    if any(networks) and not all(networks):
        raise ValueError("content must hold networks or results, got both")
    if data is not None and not any(networks):
        raise ValueError(
            f"data must be None where content holds results, which are measured, got {type(data).__name__}"
        )
    if any(networks):
        first: dict[int, Any] = {}  # each network is measured once
        for name, network in items.items():
            first.setdefault(id(network), name)
        wholes = [compare({name: items[name] for name in first.values()}, data)]
        measured = {entry.key: entry for entry in _of("", wholes[0])}
        entries = [replace(measured[first[id(network)]], key=name) for name, network in items.items()]
    else:
        entries = [entry for key, item in items.items() for entry in _of(key, item)]
        wholes = [item for item in items.values() if isinstance(item, Comparison)]
    apart = (Comparison, Surface, Trajectory)
    others = [(shown(key), item) for key, item in items.items() if isinstance(item, Result) and type(item) not in apart]
    for names in ([entry.name for entry in entries], [name for name, _ in others]):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"content must have names that look different, got {twice!r} twice")
    return _with_paths(entries), wholes, dict(others)


def _is_network(item: Any) -> bool:
    """Tell a network from a result; several are one over seeds."""
    several = isinstance(item, list | tuple) and bool(item) and all(map(_is_network, item))
    return several or isinstance(item, nn.Module | Objective)


def _of(key: Any, item: Any) -> list[_Entry]:
    """Return what one result holds; a network of a comparison that has a name of its own is known by both names."""
    if isinstance(item, Comparison):
        outer = () if key == "" else key if isinstance(key, tuple) else (key,)
        made = []
        for name in dict.fromkeys([*item.seeds, *item.surfaces]):
            inner = name if isinstance(name, tuple) else (name,)
            numbers = {quantity: item.value(name, quantity) for quantity in item.seeds.get(name, [{}])[0]}
            made.append(_Entry((*outer, *inner) if outer else name, item.surfaces.get(name), numbers))
        return made
    if isinstance(item, Surface):
        at, loss = item.centre, float(item.about.get("centre_loss", math.nan))
        values = {"loss": loss} if at is None else {q: float(getattr(item, q)[at]) for q in ("loss", "accuracy")}
        return [_Entry(key or "network", item, {q: (v, math.nan) for q, v in values.items() if not math.isnan(v)})]
    if isinstance(item, Trajectory):
        return [_Entry(key or "training", path=item)]
    if isinstance(item, Basin):
        return [entry for plane in item.surfaces.values() for entry in _of(key or "basin", plane)]
    if isinstance(item, Result):
        return []
    raise TypeError(f"content must be networks, results, or name → these, got {type(item).__name__}")


def _with_paths(entries: Sequence[_Entry]) -> list[_Entry]:
    """Lay every trajectory on the surface over its plane."""
    drawn = [entry for entry in entries if entry.path is None]
    for entry in entries:
        if entry.path is None:
            continue
        fits = [_fits(entry.path, other.surface) for other in drawn]
        if True not in fits:
            raise ValueError(
                f"content must hold the surface over the plane of the trajectory {entry.name!r}: give both by name, "
                "the surface measured with directions=trajectory and span=trajectory.span()"
            )
        drawn[fits.index(True)] = replace(drawn[fits.index(True)], path=entry.path)
    return drawn


def _fits(path: Trajectory, surface: Surface | None) -> bool:
    return surface is not None and all(surface.about.get(key) == path.about[key] for key in ("plane", "model"))


def _dimensions(entries: Sequence[_Entry], parts: Sequence[str] | None) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return where each entry stands among the values of each part of the names, and the parts.

    Without tuples all names are values of one part; beside tuples a name of its own has no place.
    """
    tuples = [entry.key for entry in entries if isinstance(entry.key, tuple)]
    check_parts("content", tuples, parts)
    keys = [entry.key if isinstance(entry.key, tuple) else None if tuples else (entry.key,) for entry in entries]
    values = [list(dict.fromkeys(map(str, column))) for column in zip(*filter(None, keys), strict=True)]
    names = parts or ["bits" if all(map(_BITS.fullmatch, column)) else "" for column in values]
    places = [key and [column.index(str(value)) for column, value in zip(values, key, strict=True)] for key in keys]
    return places, [{"name": name, "values": column} for name, column in zip(names, values, strict=True)]


def _slider(entries: Sequence[_Entry], dimensions: Sequence[Mapping[str, Any]]) -> int:
    """Return the part with the most values, the last of several; −1 for all side by side where no name is a tuple."""
    counts = [len(part["values"]) for part in dimensions] if any(isinstance(e.key, tuple) for e in entries) else []
    return max(range(len(counts)), key=lambda index: (counts[index], index), default=-1)


def _slides(entries: Sequence[_Entry]) -> bool:
    """Tell whether states may follow each other on a slider: only on one grid do they morph.

    Raises:
        ValueError: tuples ask for a slider, and two surfaces have other steps.
    """
    drawn = [(entry.name, _extent(entry.surface), entry.key) for entry in entries if entry.surface is not None]
    tuples = [row for row in drawn if isinstance(row[2], tuple)]
    others = [row for row in tuples or drawn if row[1] != (tuples or drawn)[0][1]]
    if tuples and others:
        (first, its, _), (other, theirs, _) = tuples[0], others[0]
        raise ValueError(
            "content must have surfaces of the same steps where names are tuples, for the slider; got "
            f"{its} of {first!r} and {theirs} of {other!r}"
        )
    return bool(drawn) and not others


def _extent(surface: Surface) -> str:
    """Say where the points of a surface lie, and how they are spread if not evenly."""
    texts = []
    for axis in (surface.alphas, surface.betas):
        even = torch.allclose(axis, torch.linspace(float(axis[0]), float(axis[-1]), len(axis), dtype=axis.dtype))
        texts.append(f"{len(axis)} from {float(axis[0]):g} to {float(axis[-1]):g}" + f" {axis.tolist()}" * (not even))
    return " × ".join(texts)


class _Packed:
    """Arrays, each kept once, and the grids that they lie on."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.grids: list[dict[str, Any]] = []
        self._known: dict[bytes, int] = {}

    def array(self, values: Tensor, kept: int = 32) -> int:
        """Return the index of an array, as float32, of which only the first bits may be kept."""
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is a gap in either case
            flat = values.detach().cpu().numpy().astype("<f4").ravel()
        if kept < 32:
            flat = ((flat.view("<u4") + (1 << (31 - kept))) >> (32 - kept) << (32 - kept)).view("<f4")
        self.arrays += [flat] * (self._known.setdefault(flat.tobytes(), len(self.arrays)) == len(self.arrays))
        return self._known[flat.tobytes()]

    def grid(self, surface: Surface) -> int:
        """Return the index of a grid: its steps, and what its axes are called."""
        axes = [short(surface, number) for number in (1, 2)]
        made = {"x": surface.alphas.tolist(), "y": surface.betas.tolist(), "axes": axes}
        self.grids += [made] * (made not in self.grids)
        return self.grids.index(made)

    def network(self, entry: _Entry) -> dict[str, Any]:
        """Return what the page's script reads of one network."""
        surface, path, numbers = entry.surface, entry.path, dict(entry.numbers)
        if found := _BITS.search(entry.name):
            numbers["bits"] = float(found[1] or found[2]), math.nan
        shown = [q for q in (*_HORIZONTAL, "accuracy", "loss") if q in numbers and math.isfinite(numbers[q][0])]
        made: dict[str, Any] = {"grid": None, "values": {}, "path": None, "note": note(numbers)}
        made["numbers"] = {q: [v if math.isfinite(v) else None for v in numbers[q]] for q in shown}
        if surface is not None:
            columns = {"loss": surface.loss, "accuracy": surface.accuracy, "stderr": surface.stderr}
            known = {name: part for name, part in columns.items() if part is not None and part.isfinite().any()}
            kept = {"stderr": _ERROR_BITS}
            made["values"] = {name: self.array(part, kept.get(name, 32)) for name, part in known.items()}
            made["grid"] = self.grid(surface)
        if path is not None:
            parts = dict(zip("xy", path.coordinates.unbind(1), strict=True)) | {"loss": path.loss}
            parts |= {"plane": path.plane_loss, "off": path.off_plane, "distance": path.distance}
            made["path"] = {name: self.array(part) for name, part in parts.items()}
        return made

    def block(self) -> str:
        """Return all arrays as text: bytes sorted by their place in a number, which pack better, and no time of day."""
        numbers = np.concatenate([*self.arrays, np.empty(0, "<f4")])
        sorted_bytes = numbers.view(np.uint8).reshape(-1, 4).T.tobytes()
        return base64.b64encode(gzip.compress(sorted_bytes, 9, mtime=0)).decode()


def _merged(
    entries: Sequence[_Entry], networks: Sequence[dict[str, Any]], places: Sequence[Any]
) -> list[dict[str, Any]]:
    """Make one of networks that are the same under several tuples, named by what these have in common."""
    groups: dict[Any, list[int]] = {}
    for index, (entry, network) in enumerate(zip(entries, networks, strict=True)):
        alone = not isinstance(entry.key, tuple) or entry.surface is None
        groups.setdefault(index if alone else repr((network, entry.numbers)), []).append(index)
    merged = []
    for group in groups.values():
        keys = [entries[index].key for index in group]
        name = entries[group[0]].name
        if len(group) > 1:
            name = shown(tuple(part for part, *others in zip(*keys, strict=True) if {*others} == {part})) or name
        where = [places[index] for index in group if places[index] is not None]
        merged.append({"name": name, "first": entries[group[0]].name, "keys": where or None, **networks[group[0]]})
    return merged


def _overview(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Choose the axes: what at least two networks have."""
    counts = {q: sum(q in network["numbers"] for network in networks) for q in (*_HORIZONTAL, "accuracy", "loss")}
    vertical = "accuracy" if counts["accuracy"] == len(networks) else "loss"
    enough = counts[vertical] > 1
    return {
        "x": [[q, label] for q, label in _HORIZONTAL.items() if enough and counts[q] > 1],
        "y": [vertical, vertical],
    }
