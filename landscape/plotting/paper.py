"""Figures for papers: curves, labelled contours and 3-D panels at the width of one or two columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from ..densities import Density
from ..scales import ScaleCurvature
from ..surfaces import Line, Surface
from . import (
    BAND,
    COLOURS,
    axis_label,
    band,
    bent_ticks,
    beyond,
    caption,
    check,
    columns,
    drawable,
    even_levels,
    label,
    limits,
    notes,
    round_levels,
    short,
    units,
    wrapped,
)

ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75  # inches, as ICML has them
_RC: dict[Any, Any] = {
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
_MARKERS = ("o", "s", "D", "^", "X", "P")
_MARK = "#D55E00"
# The backend comes with the first figure, and in a notebook turns interactive mode on. Inside of rc_context that would
# be undone at its end, and no later figure would show: so it comes now.
plt.draw_if_interactive()
_QUIET = ListedColormap(0.45 + 0.55 * plt.get_cmap("viridis")(np.linspace(0, 1, 256))[:, :3], name="quiet viridis")


@dataclass(frozen=True)
class _Scale:
    """Levels and colours shared by the panels compared."""

    levels: list[float]
    log: bool
    extend: Any

    def steps(self) -> ScalarMappable:
        """Return one quiet colour between two levels."""
        return ScalarMappable(BoundaryNorm(self.levels, _QUIET.N, extend=self.extend), _QUIET)

    def smooth(self) -> ScalarMappable:
        """Return colours that change all along."""
        return ScalarMappable((LogNorm if self.log else Normalize)(self.levels[0], self.levels[-1]), "viridis")


def lines(lines: Mapping[str, Line], ax: Axes | None = None, *, value: str = "loss", log: bool = False) -> Axes:
    """Draw curves, a colour, dash and marker for each network, into axes (new ones by default) and return them.

    Args:
        lines: name → line, in the order of the colours.
        ax: axes to draw into; labels that they have stay.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        log: logarithmic axis; values ≤ 0 are gaps then, as NaN and inf always are.
    """
    check(lines, value, log)
    with plt.rc_context(_RC):
        ax = ax or _new_axes(2.3)
        ax.axvline(0, color="0.8", linewidth=0.6, zorder=0)
        ax.locator_params(axis="x", nbins=5)
        values = {name: drawable(line, value, log) for name, line in lines.items()}
        bands = {name: band(line, values[name], value, log) for name, line in lines.items()}
        for number, (name, line) in enumerate(lines.items()):
            _curve(ax, number, name, line, values[name], bands[name])
        if log:
            ax.set_yscale("log")
        if value == "accuracy":
            ax.set_ylim(-0.02, 1.02)
        _label(ax, x=axis_label(next(iter(lines.values()))), y=label(value))
        if all(np.isnan(array).all() for array in values.values()):
            ax.set(xticks=[], yticks=[])
        if len(lines) > 1:
            ax.legend(frameon=False)
        told = notes(lines, values, log)
        if any(edges is not None for edges in bands.values()):
            told.append(BAND)
        _entitle(ax, caption(lines, value), *told)
        _say_if_empty(ax, list(values.values()), value)
    return ax


def contours(
    surface: Surface, ax: Axes | None = None, *, value: str = "loss", levels: Sequence[float] | None = None
) -> Axes:
    """Draw labelled contours over a quiet map into axes (new ones by default) and return them.

    Args:
        surface: what to draw; gaps stay white.
        ax: axes to draw into; labels that they have stay.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        levels: increasing values; default round numbers, logarithmic for a positive loss.
    """
    check({"": surface}, value)
    values = drawable(surface, value)
    with plt.rc_context(_RC):
        ax = ax or _new_axes(3.0, box_aspect=1)
        _contours(ax, surface, values, _scale([values], value, levels))
        _label(ax, x=axis_label(surface, 1), y=axis_label(surface, 2))
        _entitle(ax, caption({"": surface}, value), *notes({"": surface}, {"": values}))
        _say_if_empty(ax, [values], value)
    return ax


def surfaces(
    surfaces: Mapping[str, Surface],
    *,
    value: str = "loss",
    kind: str = "contour",
    levels: Sequence[float] | None = None,
) -> Figure:
    """Draw a panel for each network side by side, all at the same levels and with one colour bar.

    Args:
        surfaces: name → surface; the names become titles.
        value: ``"loss"``, ``"accuracy"``, ``"stderr"`` or a metric.
        kind: ``"contour"`` or ``"3d"``, whose heights are logarithmic where the levels are.
        levels: increasing values; default round numbers around all panels, logarithmic for a positive loss.
    """
    check(surfaces, value)
    if kind not in ("contour", "3d"):
        raise ValueError(f'kind must be "contour" or "3d", got {kind!r}')
    values = {name: drawable(surface, value) for name, surface in surfaces.items()}
    scale = _scale(list(values.values()), value, levels)
    with plt.rc_context(_RC):
        figure, axes = _panels(list(surfaces), kind)
        for number, (ax, surface, array) in enumerate(zip(axes, surfaces.values(), values.values(), strict=True)):
            (_relief if kind == "3d" else _contours)(ax, surface, array, scale)
            below, left = number + columns(len(axes)) >= len(axes), number % columns(len(axes)) == 0
            ax.tick_params(labelbottom=below or kind == "3d", labelleft=left or kind == "3d")
            _say_if_empty(ax, [array], value)
        width = 120 if len(axes) > 1 else 56
        _label_panels(figure, axes, next(iter(surfaces.values())), kind)
        told = wrapped(" · ".join([caption(surfaces, value), *notes(surfaces, values)]), width)
        figure.set_figheight(figure.get_figheight() + 0.13 * told.count("\n"))  # or the panels would shrink
        figure.suptitle(told, fontsize=7, color="0.4")
        _colour_bar(axes, scale.smooth() if kind == "3d" else scale.steps(), scale, value)
        if kind == "3d":
            _place_tick_labels(figure)
    return figure


def density(density: Density, ax: Axes | None = None) -> Axes:
    """Draw a density of eigenvalues with its band, and the atoms as stems, into axes (new ones by default).

    The vertical axis is logarithmic and ends at a third of what one eigenvalue alone would reach: less means nothing.
    The horizontal one is bent (asinh) where the atoms lie far outside of the bulk.

    Args:
        density: what to draw.
        ax: axes to draw into; labels that they have stay.
    """
    grid, values, low, high = (getattr(density, name).numpy() for name in ("grid", "density", "low", "high"))
    one = density.one_eigenvalue
    with plt.rc_context(_RC):
        ax = ax or _new_axes(2.3)
        colour = COLOURS[0]
        ax.set_yscale("log")
        ax.set_ylim(one / 3, 3 * max(float(values.max()), one))
        ax.axhline(one, color="0.6", linewidth=0.6, linestyle=":", label="one eigenvalue", zorder=1)
        ax.fill_between(grid, one / 3, np.maximum(values, one / 3), color=colour, alpha=0.15, linewidth=0)
        if np.isfinite(low).all():
            edges = np.maximum([low, high], one / 3)
            ax.fill_between(grid, *edges, color=colour, alpha=0.4, linewidth=0, label="95 % band")
        ax.plot(grid, values, color=colour, linewidth=1, label="bulk")
        if len(density.atoms):
            atoms = density.atoms.numpy()
            ax.vlines(atoms, one / 3, one, color=_MARK, linewidth=1)
            ax.plot(atoms, np.full(len(atoms), one), "o", color=_MARK, label=f"{len(atoms)} outliers")
        bulk = float(np.abs(grid).max())
        if bent := bool((density.atoms.abs() > 4 * bulk).any()):
            ax.set_xscale("asinh", linear_width=bulk / 3)
            ticks = bent_ticks(bulk, *ax.get_xlim())
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        _label(ax, x="Eigenvalue" + " (asinh scale)" * bent, y="Density")
        _entitle(ax, caption({"": density}))
        ax.legend(frameon=False)
    return ax


def scales(found: ScaleCurvature, ax: Axes | None = None) -> Axes:
    """Draw the curvature against the radius, with its errors and the derivative, into axes (new ones by default).

    Rungs that are not to be trusted are hollow and grey, triangles at the edge where they lie above or below the
    picture. Random directions are drawn as the trace that they imply.

    Args:
        found: what to draw.
        ax: axes to draw into; labels that they have stay.
    """
    unit = found.numel if found.is_random else 1
    radii, trusted = found.radii.numpy(), found.trusted.numpy()
    values, errors = unit * found.curvature.numpy(), unit * found.error.numpy()
    low, high = (unit * end for end in found.window())
    with plt.rc_context(_RC):
        ax = ax or _new_axes(2.3)
        ax.set_xscale("log")
        ax.axhline(0, color="0.7", linewidth=0.6, zorder=0.6)
        if trusted.any():
            sure: dict[str, Any] = {"color": COLOURS[0], "elinewidth": 1, "label": "at a scale ± one error"}
            ax.errorbar(radii, np.where(trusted, values, np.nan), errors, fmt="o-", **sure)
        grey: dict[str, Any] = {"color": "0.5", "markerfacecolor": "white", "zorder": 3}
        inside = (values > low) & (values < high) & ~trusted
        if inside.any():
            dots: dict[str, Any] = {"fmt": "o", "elinewidth": 0.6, "label": "not to be trusted"}
            ax.errorbar(radii[inside], values[inside], errors[inside], **dots, **grey)
        for (where, out), marker in zip(beyond(values, (low, high)).items(), "^v", strict=True):
            if out.any():
                far = values[out].clip(low, high)
                ax.plot(radii[out], far, marker, label=f"not to be trusted, {where}", clip_on=False, **grey)
        if len(found.derivatives):
            ax.axhline(unit * found.derivative, color=_MARK, linestyle=(0, (4, 1.5)), label=found.about["derivative"])
        ax.set_ylim(low, high)
        what = "Trace" if found.is_random else "Curvature"
        _label(ax, x="Length of the step ε, in norms of the weights", y=f"{what}, {found.about['units']} units")
        _entitle(ax, caption({"": found}), "" if trusted.any() else "no rung is trustworthy")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(framealpha=0.85, edgecolor="none")  # error bars may pass behind
    return ax


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a PDF with embedded fonts and a PNG of 300 dpi beside it, without timestamps; return both paths."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".pdf", ".png") else path
    stem.parent.mkdir(parents=True, exist_ok=True)
    written = [stem.with_name(stem.name + suffix) for suffix in (".pdf", ".png")]
    with plt.rc_context(_RC):
        figure.savefig(written[0], metadata={"CreationDate": None})
        figure.savefig(written[1], dpi=300)
    return written


def _entitle(ax: Axes, *phrases: str) -> None:
    """Say what was measured above the axes, unless they have a title."""
    if not ax.get_title():
        ax.set_title(wrapped(" · ".join(filter(None, phrases)), 54), fontsize=7, color="0.4")


def _new_axes(height: float, box_aspect: float | None = None) -> Axes:
    figure = plt.figure(figsize=(ONE_COLUMN, height), layout="constrained")
    return figure.add_subplot(box_aspect=box_aspect)


def _panels(names: Sequence[str], kind: str) -> tuple[Figure, list[Axes]]:
    wide = columns(len(names))
    rows = -(-len(names) // wide)
    width = ONE_COLUMN if len(names) == 1 else TWO_COLUMNS
    figure = plt.figure(figsize=(width, 0.4 + rows * ((width - 1.4) / wide + 0.25)), layout="constrained")
    axes: list[Axes] = []
    for number, name in enumerate(names, start=1):
        if kind == "3d":
            axes.append(figure.add_subplot(rows, wide, number, projection="3d", computed_zorder=False))
        else:
            first = axes[0] if axes else None
            axes.append(figure.add_subplot(rows, wide, number, sharex=first, sharey=first, box_aspect=1))
        axes[-1].set_title(name)
        axes[-1].locator_params(nbins=2 if kind == "3d" else 5)
        if wide == 3 and kind == "contour":
            axes[-1].locator_params(axis="x", nbins=3)  # more would touch each other
    return figure, axes


def _label(ax: Axes, *, x: str, y: str) -> None:
    """Label the axes, unless they have labels."""
    ax.set_xlabel(ax.get_xlabel() or x)
    ax.set_ylabel(ax.get_ylabel() or y)


def _label_panels(figure: Figure, axes: Sequence[Axes], surface: Surface, kind: str) -> None:
    """Write the long labels once for all panels; in 3-D each axis has its short name."""
    if kind == "contour":
        figure.supxlabel(axis_label(surface, 1))
        figure.supylabel(axis_label(surface, 2))
        return
    if unit := units(surface):
        figure.supxlabel(f"S{unit[1:]}")
    for ax in axes:
        ax.set_xlabel(short(surface, 1), labelpad=-4)
        ax.set_ylabel(short(surface, 2), labelpad=-4)


def _curve(ax: Axes, number: int, name: str, line: Line, values: np.ndarray, edges: Any) -> None:
    """Draw a curve with about eight markers, one on every point between two gaps, and a larger one at the centre."""
    alphas = line.alphas.numpy()
    style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
    missing = np.isnan(np.pad(values, 1, constant_values=np.nan))
    every = -(-len(values) // 8)
    marked = (np.arange(len(values)) % every == number * every // 6 % every) | (missing[:-2] & missing[2:])
    dash = _DASHES[number % len(_DASHES)]
    ax.plot(alphas, values, label=name or None, linestyle=dash, markevery=list(np.flatnonzero(marked)), **style)
    if edges is not None:
        ax.fill_between(alphas, *edges, color=style["color"], alpha=0.18, linewidth=0, zorder=1)
    if line.centre is not None:
        at = [line.centre]
        ax.plot(alphas[at], values[at], markersize=6, markeredgecolor="white", linestyle="none", **style)


def _scale(values: Sequence[np.ndarray], value: str, levels: Sequence[float] | None) -> _Scale:
    """Choose levels around all values, logarithmic for a loss without negative values and its standard error."""
    low, high = limits(values, value)
    positive = np.concatenate([array[array > 0] for array in values])
    log = value in ("loss", "stderr") and low >= 0 and positive.size > 0
    if levels is not None:
        chosen, log = [float(level) for level in levels], log and levels[0] > 0
    else:
        chosen = round_levels(float(positive.min()), high, 9) if log else even_levels(low, high)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    return _Scale(chosen, log, extend.get((low < chosen[0], high > chosen[-1]), "neither"))


def _contours(ax: Axes, surface: Surface, values: np.ndarray, scale: _Scale) -> None:
    alphas, betas = surface.alphas.numpy(), surface.betas.numpy()
    seen = np.ma.masked_invalid(values.T)  # matplotlib has x along columns
    if seen.count():
        colours = scale.steps()
        ax.contourf(alphas, betas, seen, scale.levels, norm=colours.norm, cmap=colours.cmap, extend=scale.extend)
    crossed = [level for level in scale.levels if seen.count() and seen.min() < level < seen.max()]
    if crossed:  # matplotlib warns of levels that nothing reaches
        drawn = ax.contour(alphas, betas, seen, crossed, colors="0.25", linewidths=0.6)
        ax.clabel(drawn, fmt="%g", fontsize=7)
    if surface.centre is not None:
        ax.plot(0, 0, "+", color=_MARK, markersize=8, markeredgewidth=1.5)
    ax.update_datalim([(alphas[0], betas[0]), (alphas[-1], betas[-1])])  # also where nothing is finite
    ax.margins(0)


def _relief(ax: Any, surface: Surface, values: np.ndarray, scale: _Scale) -> None:
    """Draw a surface in 3-D over its contours; heights are logarithms where the levels are."""
    heights = np.log10(np.where(values > 0, values, np.nan)) if scale.log else values
    levels = np.log10(scale.levels) if scale.log else np.array(scale.levels)
    floor = levels[0] - 0.4 * (levels[-1] - levels[0])
    x, y = np.meshgrid(surface.alphas.numpy(), surface.betas.numpy(), indexing="ij")
    seen = np.ma.masked_invalid(heights)
    colours = Normalize(levels[0], levels[-1])
    crossed = [level for level in levels if seen.count() and seen.min() < level < seen.max()]
    if crossed:
        ax.contour(x, y, seen, crossed, zdir="z", offset=floor, norm=colours, linewidths=0.7, zorder=1)
    if seen.count():
        ax.plot_surface(
            x, y, heights, norm=colours, cmap="viridis", rcount=200, ccount=200, antialiased=False, zorder=2
        )
    if surface.centre is not None:
        ax.plot([0], [0], [heights[surface.centre]], marker="o", color=_MARK, markersize=3, zorder=3)
    shown = np.arange(len(levels))[:: -(-len(levels) // 5)]
    ax.set_zticks(levels[shown], [f"{scale.levels[number]:g}" for number in shown])
    ax.set(xlim=(x[0, 0], x[-1, 0]), ylim=(y[0, 0], y[0, -1]), zlim=(floor, levels[-1]))
    ax.tick_params(pad=-1.5)
    ax.tick_params(axis="z", pad=1)
    plt.setp(ax.get_xticklabels(), horizontalalignment="right")  # the last one would touch the other axis's first
    ax.set_box_aspect((1, 1, 0.8), zoom=0.85)


def _place_tick_labels(figure: Figure) -> None:
    """Draw once without a layout: matplotlib before 3.11.2 lays 3-D axes out by where labels were drawn last."""
    engine = figure.get_layout_engine()
    figure.set_layout_engine("none")
    figure.draw_without_rendering()
    figure.set_layout_engine(engine)


def _colour_bar(axes: Sequence[Axes], colours: ScalarMappable, scale: _Scale, value: str) -> None:
    ticks = scale.levels[:: -(-len(scale.levels) // 12)]
    thin = 24 * -(-len(axes) // columns(len(axes)))
    bar = axes[0].figure.colorbar(colours, ax=axes, label=label(value), ticks=ticks, format="%g", aspect=thin)
    bar.minorticks_off()


def _say_if_empty(ax: Any, values: Sequence[np.ndarray], value: str) -> None:
    if all(np.isnan(array).all() for array in values):
        where = {"transform": ax.transAxes, "horizontalalignment": "center"}
        (ax.text2D if hasattr(ax, "text2D") else ax.text)(0.5, 0.6, f"no finite {value}", **where)
