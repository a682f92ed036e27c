"""Several lines, or several surfaces, in one picture, or your own in the same look: plotly or matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .values import Results


def plot_together(results: Results, *, value: str = "loss", log: bool = False) -> Any:
    """Draw lines into one interactive plot, or surfaces in 3-D side by side on one scale.

    For results that you measured yourself; `compare` measures several networks alike and draws them itself.

    Args:
        results: name → `Line`, or name → `Surface`.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        log: logarithmic heights; values ≤ 0 are gaps then.

    Returns:
        A plotly figure.

    Raises:
        ValueError: nothing to draw, an unknown value.
        TypeError: lines and surfaces mixed, or something else.
    """
    from . import interactive

    drawn: Any = interactive.lines if _are_lines(results) else interactive.surfaces
    return drawn(results, value=value, log=log)


def draw_together(results: Results, *, value: str = "loss", log: bool = False, kind: str = "contour") -> Any:
    """Draw for print what `plot_together` draws: lines in one column, surfaces in two at the same levels.

    Args:
        results: see `plot_together`.
        value: see `plot_together`.
        log: of lines; the levels of surfaces are logarithmic where their loss is positive.
        kind: of surfaces, ``"contour"`` or ``"3d"``.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError, TypeError: as `plot_together`.
    """
    from . import paper

    if _are_lines(results):
        return paper.lines(results, value=value, log=log).figure  # type: ignore[arg-type]
    return paper.surfaces(results, value=value, kind=kind)  # type: ignore[arg-type]


def paper_style() -> AbstractContextManager[None]:
    """Return a context in which your own matplotlib figures look like ours: 8-point type, colours for the colour-blind.

    Axes made inside of ``with landscape.paper_style():`` keep it; save them by `save_figure`.
    """
    from matplotlib.pyplot import rc_context

    from . import paper

    return rc_context(paper._RC)


def _are_lines(results: Mapping[str, Any]) -> bool:
    planes = {hasattr(result, "betas") for result in results.values()}
    if len(planes) > 1 or not all(hasattr(result, "alphas") for result in results.values()):
        kinds = sorted({type(result).__name__ for result in results.values()})
        raise TypeError(f"results must be all lines or all surfaces, got {', '.join(kinds)}")
    return planes == {False}


def save_figure(figure: Any, path: str | Path) -> list[Path]:
    """Write what ``.draw`` returned (a matplotlib figure or axes) as PDF and PNG for print; return the two paths.

    TrueType fonts, 300 dots per inch, no timestamps, the size as drawn.
    """
    from . import paper

    return paper.save(getattr(figure, "figure", figure), path)
