"""What all matplotlib figures share: fonts and widths for print, axes, captions, curves, and saving."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .captions import wrapped
from .style import COLOURS
from .values import finite_of

ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75  # inches, as ICML has them

_RC: dict[Any, Any] = {
    "figure.dpi": 120,  # in notebooks, where type is then as large as the text around
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "0.85",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    **dict.fromkeys(("pdf.fonttype", "ps.fonttype"), 42),
}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 1.5)), (0, (4, 1, 1, 1, 1, 1)))
_DENSITY, _CAPTION = 19, {"fontsize": 7, "color": "0.4"}  # characters per inch
_own: WeakSet[Figure] = WeakSet()  # figures that are not the caller's, which captions may make higher
_MARKERS = ("o", "s", "D", "^", "X", "P")
# The backend comes with the first figure, and in a notebook turns interactive mode on. Inside of rc_context that would
# be undone at its end, and no later figure would show: so it comes now.
plt.draw_if_interactive()


def style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib figures have the look for print."""
    return plt.rc_context(_RC)


def new_axes(height: float, *, width: float = ONE_COLUMN, box_aspect: float | None = None) -> Axes:
    """Return the axes of a new figure."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    _own.add(figure)
    return figure.add_subplot(box_aspect=box_aspect)


def figure_of(ax: Axes) -> Figure:
    """Return the whole figure that axes stand in, also where they are in a part of it."""
    figure: Figure = ax.figure.figure  # type: ignore[assignment]
    return figure


def label_axes(ax: Axes, x: str, y: str) -> None:
    """Label the axes, unless they have labels."""
    ax.set_xlabel(ax.get_xlabel() or x)
    ax.set_ylabel(ax.get_ylabel() or y)


def entitle(ax: Axes, title: str | None, *phrases: str) -> None:
    """Set the title, and say below the axes what was measured, unless they have a title already."""
    if ax.get_title():
        return
    ax.set_title(title or "")
    if (figure := figure_of(ax)) in _own:
        caption_below(figure, *phrases)
        return
    width = max(40, round(_DENSITY * figure.get_figwidth() * ax.get_position().width))
    text = wrapped(" · ".join(filter(None, phrases)), width)
    below: Any = ("axes fraction", ax if ax.name == "3d" else ax.xaxis.label)
    style: dict[str, Any] = _CAPTION | {"ha": "center", "va": "top", "annotation_clip": False}
    ax.annotate(text, (0.5, 0), (0, -4), xycoords=below, textcoords="offset points", **style)


def caption_below(figure: Figure, *phrases: str) -> None:
    """Say below all axes of a figure what was measured, in a strip that is added to it, or the axes would shrink."""
    text = wrapped(" · ".join(filter(None, phrases)), round(_DENSITY * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.125 * (1 + text.count("\n")))
    figure.supxlabel(text, **_CAPTION)


def curve_style(index: int) -> dict[str, Any]:
    """Return the colour, dash and marker of a curve."""
    dash, marker = _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dash, "marker": marker}


def say_if_empty(ax: Any, values: Sequence[np.ndarray], value: str) -> None:
    """Write into the axes that there is no finite value, if so."""
    if not finite_of(values).size:
        where = {"transform": ax.transAxes, "horizontalalignment": "center"}
        (ax.text2D if hasattr(ax, "text2D") else ax.text)(0.5, 0.6, f"no finite {value}", **where)


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a PDF with embedded fonts and a PNG of 300 dpi beside it, without timestamps; return both paths."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".pdf", ".png") else path
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [stem.with_name(stem.name + suffix) for suffix in (".pdf", ".png")]
    with style():
        figure.savefig(written[0], metadata={"CreationDate": None})
        figure.savefig(written[1], dpi=300)
    return written


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, cut to what is drawn, and close it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return content.getvalue()


def thumbnail(draw: Callable[[Axes], Any], width: int = 200, height: int = 150) -> bytes:
    """Return a small PNG of what a function draws into axes, without labels; no figure of the caller's is touched."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    ax = figure.add_subplot()
    draw(ax)
    ax.set(title="", xlabel="", ylabel="", xticks=[], yticks=[])
    ax.minorticks_off()
    for text in list(ax.texts):
        text.remove()
    if (legend := ax.get_legend()) is not None:
        legend.remove()
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
