"""A sheet in 3-D over its contours, as matplotlib draws it: in pictures for print and in those that turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap

_LIGHT = np.array([-0.35, 0.55, 1.0]) / np.linalg.norm([-0.35, 0.55, 1.0])
FLOOR = 0.45  # below the lowest point, in units of the range


def draw_relief(
    ax: Any,
    x: np.ndarray,
    y: np.ndarray,
    heights: np.ndarray,
    lines: Sequence[float],
    ends: tuple[float, float],
    colours: Colormap | None = None,
) -> None:
    """Draw a shaded sheet with its contour lines, white on the sheet and coloured on the floor; gaps stay open.

    Args:
        ax: 3-D axes, whose artists are ordered by their zorder.
        x, y: steps, (m,) and (n,).
        heights: (m, n), NaN where there is a gap.
        lines: heights of the contours.
        ends: of the range of heights that colours and axes have.
        colours: of the range; default viridis.
    """
    (low, high), shown = ends, np.ma.masked_invalid(heights)
    floor, cmap = low - FLOOR * (high - low), colours or colormaps["viridis"]
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), zlim=(floor, high))
    if not shown.count():
        return
    u, v = np.meshgrid(x, y, indexing="ij")
    crossed = [line for line in lines if shown.min() < line < shown.max()]
    style: dict[str, Any] = {"levels": crossed, "linestyles": "solid"}
    coloured = {"cmap": cmap, "vmin": low, "vmax": high, "linewidths": 0.9}
    if crossed:  # matplotlib warns of levels that nothing reaches
        ax.contour(u, v, shown, zdir="z", offset=floor, zorder=1, **coloured, **style)
    sheet: dict[str, Any] = {"rcount": 999, "ccount": 999, "linewidth": 0, "antialiased": False, "shade": False}
    ax.plot_surface(u, v, heights, facecolors=_shaded(x, y, (heights - low) / (high - low), cmap), zorder=2, **sheet)
    if crossed:
        lifted = shown + 0.004 * (high - low)  # or the sheet would hide parts of them
        ax.contour(u, v, lifted, colors="white", linewidths=0.6, alpha=0.5, zorder=3, **style)


def _shaded(x: np.ndarray, y: np.ndarray, shares: np.ndarray, cmap: Colormap) -> np.ndarray:
    """Return the colours of heights, which are shares of their range, lit from the upper left."""
    slopes = np.gradient(1.3 * shares, x, y)
    normals = np.stack([-slopes[0], -slopes[1], np.ones_like(shares)], -1)
    light = normals @ _LIGHT / np.linalg.norm(normals, axis=-1)
    colours = cmap(np.nan_to_num(np.clip(shares, 0, 1)))
    brightness = 0.66 + 0.42 * np.clip(np.nan_to_num(light, nan=0.8), 0, 1)
    colours[..., :3] = np.clip(colours[..., :3] * brightness[..., None], 0, 1)
    return colours
