"""What a chart shows, said once: `interactive` draws it with plotly, `paper` with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .style import COLOURS


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: what stands at it.
        log: whether it is logarithmic.
        asinh: up to which size it is linear, beyond that logarithmic; 0 for an ordinary axis.
        ends: of what is seen, None for one that what is drawn decides.
        values: all that lies along it; without them a logarithmic axis has ticks at the powers of ten alone.
        zero: whether zero is marked, on an axis that is not logarithmic.
        whole: whether ticks are at whole numbers alone.
        names: of rows or bars at 0, 1, …, instead of numbers.
    """

    title: str
    log: bool = False
    asinh: float = 0.0
    ends: tuple[float | None, float | None] = (None, None)
    values: Sequence[np.ndarray] = ()
    zero: bool = False
    whole: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Curve:
    """Points with error bars, joined by a line or not; NaN are gaps.

    Attributes:
        x, y: of the points.
        name: in the legend.
        colour: of line, marks and bars.
        look: index of the mark, in print of the dash as well; None for a line without marks, or for small dots.
        joined: whether there is a line.
        dashed: whether it is dashed, and the same whatever the look.
        hollow: whether the marks are.
        errors: half the length of the bars, NaN where there is none; None for a curve without.
        floor: from where a stem leads to each point; None for no stems.
        centre: index of the point whose mark is larger; of the others few are marked in print.
        hover: plotly's template of what hovering says.
        data: what the template refers to, a row for each point; default the errors.
    """

    x: Any
    y: np.ndarray
    name: str = ""
    colour: str = COLOURS[0]
    look: int | None = 0
    joined: bool = True
    dashed: bool = False
    hollow: bool = False
    errors: np.ndarray | None = None
    floor: float | None = None
    centre: list[int] | None = None
    hover: str | None = None
    data: np.ndarray | None = None


@dataclass(frozen=True)
class Band:
    """The area between two curves, interrupted where one has a gap; in the legend by its name, or with a curve."""

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    opacity: float = 0.2
    colour: str = COLOURS[0]
    name: str = ""
    curve: str = ""


@dataclass(frozen=True)
class Level:
    """A line across the whole chart at a value."""

    y: float
    name: str
    dash: Literal["dash", "dot"]
    colour: str


@dataclass(frozen=True)
class Bars:
    """Bars at some of the names of the axis, given by index, with error bars and a text each."""

    x: Sequence[int]
    y: Sequence[float]
    errors: Sequence[float]
    texts: Sequence[str]
    name: str
    colour: str


@dataclass(frozen=True)
class Chart:
    """Parts on two axes, the first part at the bottom.

    Attributes:
        parts: what is drawn.
        x, y: the axes; values are along ``y``.
        title: the default one, of plotly's figure.
        summary: the numbers in a few words: plotly's has them in its default title, print below the axes.
        notes: what was measured, and what is missing.
        legend: whether there is one, and its title.
        empty: what has no finite value, where nothing can be drawn.
        rows: whether values run from left to right, beside names that are too long to stand side by side.
        compared: whether hovering tells all curves at once.
    """

    parts: Sequence[Curve | Band | Level | Bars]
    x: Axis
    y: Axis
    title: str = ""
    summary: str = ""
    notes: Sequence[str] = ()
    legend: bool | str = True
    empty: str = ""
    rows: bool = False
    compared: bool = False
