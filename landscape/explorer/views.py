"""What the explorer is asked for: the settings, the grids that they stand for, and the code that does the same.

A grid grows from 3 × 3 points, a row or a column at a time, outwards from the model, to the next finer one: whatever
is there is a whole rectangle at every moment, and every finer grid takes over the points of the coarser ones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import describe
from ..plotting import Kind, Scale
from ..surfaces import COLUMNS, Line, Surface, grid

# what is chosen by name, and what it means
QUANTITIES = ("loss", "accuracy")
SCALES: tuple[Scale, ...] = ("auto", "linear", "log")
KINDS: dict[str, tuple[Kind, ...]] = {"3-D": ("3d",), "contour": ("contour",), "both": ("3d", "contour")}
DIRECTIONS = {
    "random, filter-normalised": "random",
    "top eigenvectors": "eigenvectors",
    "between two networks": "between",
}
POINTS = (5, 9, 17, 33, 65)  # each grid holds the ones before
SPAN_BETWEEN = (-0.5, 1.5)  # the span of a line between two networks, which lie at 0 and 1


@dataclass(frozen=True)
class View:
    """All that decides which numbers are computed.

    Attributes:
        names: of the networks; between two, the line leads from the first to the second.
        directions: a value of DIRECTIONS.
        space: ``"quantized"`` or ``"latent"``.
        batchnorm: ``"fixed"`` or ``"recomputed"``.
        span: half the side of the square, in units of the directions.
        points: per side, one of POINTS.
        samples: how many of the data, None for all.
        seed: of the directions and of the probes.
        numbers: whether curvatures are measured beside the surfaces.
    """

    names: tuple[str, ...]
    directions: str = "random"
    space: str = "quantized"
    batchnorm: str = "fixed"
    span: float = 1.0
    points: int = 17
    samples: int | None = None
    seed: int = 0
    numbers: bool = True

    def __post_init__(self) -> None:
        if self.directions == "between" and len(self.names) < 2:
            raise ValueError("choose two networks: there is no line between one and itself")

    def panels(self) -> tuple[str, ...]:
        """Name the pictures: the networks, or the line between two."""
        return (" → ".join(self.names[:2]),) if self.directions == "between" else self.names

    @property
    def _between(self) -> bool:
        return self.directions == "between"

    def stages(self) -> Stages:
        """Return ever finer grids, each with the points that are new in it."""
        return _stages(self._between, self.span, self.points)


class Grid(NamedTuple):
    """A rectangle of points: the steps along both directions, and key → point for those that no coarser one has.

    A key names a point, the same one in every grid that holds it.
    """

    alphas: Tensor
    betas: Tensor
    new: dict[Any, tuple[float, float]]

    def points(self) -> list[Any]:
        """Return the keys of all points, a row after the other."""
        return list(_keyed(self.alphas, self.betas))


Stages = tuple[Grid, ...]


@functools.lru_cache(maxsize=8)
def _stages(between: bool, span: float, points: int) -> Stages:
    fine = grid(SPAN_BETWEEN if between else span, points), grid(span, points)
    stride = (points - 1) // 2
    taken = [list(range(0, points, stride)) for _ in fine]
    alphas, betas = (axis[kept] for axis, kept in zip(fine, taken, strict=True))
    stages = [Grid(alphas, betas, _keyed(alphas, betas))]
    while stride > 1:
        stride //= 2
        for axis in (0, 1):
            between_them = [i for i in range(0, points, stride) if i not in taken[axis]]
            for index in sorted(between_them, key=lambda i: abs(float(fine[axis][i]))):
                taken[axis] = sorted([*taken[axis], index])
                both = [fine[n][taken[n]] for n in (0, 1)]
                line = [fine[axis][[index]], both[1 - axis]]
                stages.append(Grid(both[0], both[1], _keyed(*(line if axis == 0 else line[::-1]))))
    return tuple(stages)


def _keyed(alphas: Tensor, betas: Tensor) -> dict[Any, tuple[float, float]]:
    # nine digits name a point, and there is no negative zero
    rows, columns = ([(float(f"{step:.9g}") + 0.0, step) for step in axis.tolist()] for axis in (alphas, betas))
    return {(a, b): (alpha, beta) for a, alpha in rows for b, beta in columns}


def rows(length: int, samples: int) -> Tensor:
    """Choose samples anywhere in the data: they may be sorted by class."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(0))[:samples]


def cut(surface: Surface, axis: int, at: float) -> tuple[Line, float]:
    """Take the line of a surface along an axis that is nearest to a step along the other one; tell which it is."""
    steps, across = (surface.alphas, surface.betas) if axis == 0 else (surface.betas, surface.alphas)
    index = int((across - at).abs().argmin())
    columns: dict[str, Any] = {name: getattr(surface, name).select(1 - axis, index) for name in (*COLUMNS, "status")}
    along, other = (surface.about["axes"][which] for which in (axis, 1 - axis))
    about = surface.about | describe([along])
    about["other direction"] = [describe([other])["directions"], float(across[index])]
    return Line(about, steps, **columns), float(across[index])


def code(
    view: View,
    keys: Mapping[str, Any],
    drawn: Mapping[str, str],
    kinds: Sequence[Kind],
    given: Sequence[str] = (),
    own_scales: bool = False,
) -> str:
    """Write the lines that make a picture without the explorer.

    Args:
        view: what is measured.
        keys: name → key in ``models``; empty where there is one network, ``model``.
        drawn: what is drawn, ``value=`` and ``scale=``.
        kinds: of pictures.
        given: what else `explore` was given, of data, loss and objective: the lines expect it under that name.
        own_scales: whether each network has a scale of its own.
    """
    models = {name: f"models[{keys[name]!r}]" if keys else "model" for name in view.names}
    lines = ["import landscape"]
    source = "data" if "data" in given else f"{models[view.names[0]]}.probe"
    if view.samples is not None:
        rows = f"torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:{view.samples}]"
        lines += ["import torch", "", f"x, y = {source}", f"rows = {rows}", "data = x[rows], y[rows]"]
    elif "data" not in given:
        lines += ["", f"data = {source}"]
    directions = f'[{models[view.names[1]]}, "random"]' if view._between else repr(view.directions)
    settings = {name: getattr(view, name) for name in ("span", "points", "space", "batchnorm", "seed")}
    settings |= {"span": (SPAN_BETWEEN, view.span)} if view._between else {}
    lines += [f"settings = {settings!r}", "surfaces = {"]
    more = "".join(f", {name}={name}" for name in given if name != "data")
    for panel, name in zip(view.panels(), view.names, strict=False):
        lines += [f"    {panel!r}: landscape.surface({models[name]}, data, directions={directions}{more}, **settings),"]
    lines += ["}", f"drawn = {dict(drawn)!r}"]
    plotted = "landscape.plot_together({}, kind={!r}, **drawn)"
    for one in kinds:
        figure = f"landscape.draw_together(surfaces, kind={one!r}, **drawn)"
        lines += [f"landscape.save_figure({figure}, 'landscape_{one}')"]
    if own_scales:
        alone = plotted.format("{name: surface}", kinds[0])
        lines += [f"figures = [{alone} for name, surface in surfaces.items()]", "figures[0]"]
    else:
        lines += [plotted.format("surfaces", kinds[0])]
    return "\n".join(lines) + "\n"


def unique_names(models: Any, parts: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what each network is shown as → its key.

    Raises:
        ValueError: none at all, two that are shown alike, tuples of different lengths, or of another than ``parts``.
    """
    if not models:
        raise ValueError("models must name at least one network, got none")
    keys: dict[str, Any] = {}
    for key in models:
        name = _name(key, parts or ()) if isinstance(key, tuple) else str(key)
        if name in keys:
            raise ValueError(f"models must have names that look different, got {keys[name]!r} and {key!r}")
        keys[name] = key
    check_parts("models", [key for key in keys.values() if isinstance(key, tuple)], parts)
    return keys


def check_parts(argument: str, tuples: Sequence[tuple[Any, ...]], parts: Sequence[str] | None) -> None:
    """Raise if the tuples that name an argument's networks differ in length, or from ``parts``."""
    lengths = {len(key) for key in tuples}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"tuples that name {argument} must have the same number of parts, got {sorted(lengths)}")
    if parts is not None and lengths != {len(parts)}:
        count = max(lengths, default=0)
        raise ValueError(f"parts must name each of the {count} parts of the names in {argument}, got {parts!r}")


def _name(key: tuple[Any, ...], parts: Sequence[str]) -> str:
    """Write ("W2A2", 0.1) as "W2A2, ρ = 0.1": a number does not say what it is of."""
    pairs = zip([*parts, *[""] * len(key)], key, strict=False)
    return ", ".join(
        f"{part} = {value}" if part and not isinstance(value, str) else str(value) for part, value in pairs
    )
