"""Several lines, or several surfaces, in one picture, or your own in the same look: plotly or matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .pairing import drawing_function
from .values import Results, Scale

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_together(
    results: Results, *, value: str = "loss", scale: Scale = "auto", title: str | None = None, **options: Any
) -> go.Figure:
    """Draw lines into one interactive plot, or surfaces side by side on one scale.

    For results that you measured yourself; `compare` measures several networks alike and draws them itself.

    Args:
        results: name → `Line`, or name → `Surface`.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        scale: ``"linear"``, ``"log"`` (values ≤ 0 are gaps then) or ``"auto"``: logarithmic where the largest loss is
            more than 30 times the smallest.
        title: replaces the default one.
        options: of surfaces ``kind=`` (``"3d"`` or ``"contour"``) and ``levels=``.

    Returns:
        A plotly figure.

    Raises:
        ValueError: nothing to draw, an unknown value.
        TypeError: lines and surfaces mixed, or something else.

    Example:
        >>> import torch, landscape
        >>> data = torch.randn(16, 3), torch.arange(16) % 2
        >>> lines = {f"seed {k}": landscape.line(torch.nn.Linear(3, 2), data, points=5, seed=k) for k in range(2)}
        >>> landscape.plot_together(lines, scale="log").layout.yaxis.type
        'log'
    """
    figure: go.Figure = _drawing(results, "plot")(results, value=value, scale=scale, title=title, **options)
    return figure


def draw_together(
    results: Results,
    ax: Axes | None = None,
    *,
    value: str = "loss",
    scale: Scale = "auto",
    title: str | None = None,
    **options: Any,
) -> Figure:
    """Draw for print what `plot_together` draws: lines in one column, surfaces in two at the same levels.

    Args:
        results: see `plot_together`.
        ax: matplotlib axes for lines, or for one surface; default a new figure.
        value, scale, title: see `plot_together`.
        options: see `plot_together`; ``kind`` is ``"contour"`` by default.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError, TypeError: as `plot_together`.

    Example:
        >>> import torch, landscape
        >>> data = torch.randn(16, 3), torch.arange(16) % 2
        >>> surface = landscape.surface(torch.nn.Linear(3, 2), data, points=3)
        >>> landscape.draw_together({"linear": surface}).axes[0].get_title()
        'linear'
    """
    figure: Figure = _drawing(results, "draw")(results, ax, value=value, scale=scale, title=title, **options)
    return figure


def paper_style() -> AbstractContextManager[None]:
    """Return a context in which your own matplotlib figures look like ours: 8-point type, colours for the colour-blind.

    Axes made inside of ``with landscape.paper_style():`` keep it; save them by `save_figure`.

    Example:
        >>> import landscape, matplotlib.pyplot as plt
        >>> with landscape.paper_style():
        ...     figure, ax = plt.subplots()
        >>> ax.xaxis.label.get_fontsize()
        8.0
        >>> plt.close(figure)
    """
    from . import paper

    return paper.style()


def save_figure(figure: Figure | Axes, path: str | Path) -> list[Path]:
    """Write what ``.draw`` returned (a matplotlib figure or axes) as PDF and PNG for print; return the two paths.

    TrueType fonts, 300 dots per inch, no timestamps, the size as drawn.

    Example:
        >>> import landscape, pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> files = landscape.save_figure(landscape.draw_layers({"conv": 1.0}), pathlib.Path(folder.name) / "layers")
        >>> [file.name for file in files]
        ['layers.pdf', 'layers.png']
        >>> folder.cleanup()
    """
    from . import paper

    return paper.save(figure if isinstance(figure, paper.Figure) else paper.figure_of(figure), path)


def save_animation(
    content: Any,
    path: str | Path,
    *,
    value: str = "loss",
    scale: Scale = "auto",
    notes: Mapping[str, str] | None = None,
    frames: int = 48,
    seconds: float = 3.0,
    size: tuple[int, int] | None = None,
    swing: float = 28.0,
) -> Path:
    """Write surfaces that turn to and fro as a GIF, WebP or MP4 which repeats; return its path.

    Heights and colours have one range. Between the points of a grid they follow cubic splines, beside gaps lines; such
    a file is to be looked at: numbers are read from `Surface.plot` and `Surface.draw`.

    Args:
        content: a `Surface`, name → `Surface` or a `Comparison`; or state → one of these ("W8", "W4", … or epochs),
            all with the same names: the sheets then change from state to state and back.
        path: ends in .gif (at most 255 colours), .webp (smaller) or .mp4 (where ffmpeg is installed).
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        scale: ``"auto"``, ``"linear"`` or ``"log"``: see `plot_together`.
        notes: name → what stands below it, say a curvature with its error.
        frames: of one period.
        seconds: that a period takes.
        size: width and height in pixels; default 320 by 330 for each panel.
        swing: degrees to either side; 0 stands still.

    Raises:
        TypeError: content that is not made of surfaces.
        ValueError: another suffix, states with different names or grids, settings out of range.

    Cost: about 0.1 s per frame and panel, a third more where states change. Colours or quality are lowered where the
    file would exceed 2 MB.

    Example:
        >>> import landscape, pathlib, tempfile, torch
        >>> data = torch.randn(16, 3), torch.arange(16) % 2
        >>> surface = landscape.surface(torch.nn.Linear(3, 2), data, points=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = landscape.save_animation(surface, pathlib.Path(folder) / "turn.gif", frames=2, size=(160, 160))
        ...     path.name, path.read_bytes()[:3]
        ('turn.gif', b'GIF')
    """
    from .animation import animate

    return animate(content, Path(path), value, scale, notes or {}, size, frames=frames, seconds=seconds, swing=swing)


def thumbnail(draw: Callable[[Axes], Any]) -> bytes:
    """Return a small PNG of what a function draws into axes."""
    from . import paper

    return paper.thumbnail(draw)


def _drawing(results: Mapping[str, Any], how: Literal["plot", "draw"]) -> Any:
    """Return the function that draws such results."""
    planes = {hasattr(result, "betas") for result in results.values()}
    if len(planes) > 1 or not all(hasattr(result, "alphas") for result in results.values()):
        kinds = sorted({type(result).__name__ for result in results.values()})
        raise TypeError(f"results must be all lines or all surfaces, got {', '.join(kinds)}")
    return drawing_function("lines.lines" if planes == {False} else "surfaces.surfaces", how)
