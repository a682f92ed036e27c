"""One look for all figures: a colour, a dash and a mark for each method, bands over seeds, panels of one height."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .study import Judged, mean_and_error

ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75  # inches, as ICML has them
DASH, DOT, DASH_DOT, LONG = (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 1.5))
# method -> label, colour, dash: any two that meet in a figure differ in both, and in MARKERS; also for the colour-blind
METHODS: dict[str, tuple[str, str, Any]] = {
    "fp32": ("FP32", "#000000", LONG),
    "sgd": ("LSQ, SGD", "#D55E00", "-"),
    "saq1": ("SAQ, Case 1", "#CC79A7", DASH),
    "saq2": ("SAQ, Case 2", "#D9A400", DOT),
    "saq3": ("SAQ, Case 3", "#009E73", DASH_DOT),
    "saq3-momentum": ("Case 3, momentum", "#882255", LONG),
    "saq3-subset": ("Case 3, subset", "#88CCEE", DOT),
    "sfp": ("SFP", "#999933", DASH),
    "csd": ("CSD", "#AA4499", DOT),
    "fpq": ("FPQ", "#0072B2", DASH),
    "sfp-p1": ("SFP, p = 1", "#7A4A12", DASH),
    "fpq-p0.5": ("FPQ, p = 0.5", "#332288", DOT),
    "fpq-p1": ("FPQ, p = 1", "#66C21E", DASH_DOT),
    "winq": ("WinQ", "#777777", DASH),
    "saq3-frozen": ("Case 3, frozen steps", "#0B5D3B", DOT),
    "ema": ("EMA", "#F5937A", DASH_DOT),
    "uniform": ("Uniform bits", "#A6A6A6", LONG),
    "asga-target": ("ASGA, on the target", "#882255", "-"),
    "hessian": ("Hessian", "#999933", DASH),
    "samq": ("SAMQ", "#0072B2", DOT),
    "asga-tenth": ("ASGA, on a tenth", "#009E73", DASH),
    "asga": ("ASGA", "#882255", "-"),
    "asga-half": ("ASGA, on half the classes", "#0072B2", DOT),
    "asga-fixed": ("ρ = 0.05", "#332288", DASH),
    "asga-cap": ("ρ = 0.1", "#009E73", DOT),
    "asga-plain": ("Plain search", "#D9A400", DASH_DOT),
    "sensitivity": ("Sensitivity", "#D55E00", DASH_DOT),
}
SHAPES = ("X", "o", "^", "v", "D", ">", "<", "P", "d", "s", "*", "p", "h", (4, 1, 0), (6, 1, 0), (3, 1, 0))
MARKERS: dict[str, Any] = {method: SHAPES[k % len(SHAPES)] for k, method in enumerate(METHODS)}


def panels(columns: int, height: float = 2.0, rows: int = 1, **settings: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure of one column's width (two's for several panels) and its axes, (rows * columns,)."""
    import matplotlib.pyplot as plt

    width = ONE_COLUMN if columns == 1 else TWO_COLUMNS
    figure = plt.figure(figsize=(width, rows * height), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False, **settings))
    for ax in axes:
        ax.grid(axis="y")
        ax.set_axisbelow(True)
    return figure, axes


def curve(ax: Any, x: Any, values: Any, method: str, **settings: Any) -> None:
    """Draw the mean over seeds of (seeds, x) and a band of one standard error, in the method's colour and dash."""
    values = np.atleast_2d(values)
    label, colour, dash = METHODS[method]
    mean, error = mean_and_error(values)
    ax.plot(x, mean, **{"color": colour, "linestyle": dash, "label": label, **settings})
    if len(values) > 1:
        ax.fill_between(x, mean - error, mean + error, color=settings.get("color", colour), alpha=0.2, linewidth=0)


def label_ends(ax: Any, height: float = 0.09) -> None:
    """Write each line's label and a piece of it at its right end, apart by `height` in parts of the axes."""
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]
    ends = np.array([ax.transData.transform(line.get_xydata()[-1]) for line in lines])
    places = ax.transAxes.inverted().transform(ends)[:, 1]
    for below, above in 50 * list(pairwise(np.argsort(places))):
        push = max(0.0, height - places[above] + places[below]) / 2
        places[below], places[above] = places[below] - push, places[above] + push
    for line, place in zip(lines, places, strict=True):
        (piece,) = ax.plot([1.02, 1.1], [place, place], transform=ax.transAxes)  # which leaves the limits alone
        piece.update_from(line)
        piece.set(transform=ax.transAxes, clip_on=False, marker="", label="_")
        text = {"color": line.get_color(), "transform": ax.transAxes, "va": "center", "fontsize": 7}
        ax.text(1.13, place, line.get_label(), **text)


def dots(ax: Any, values: Any, methods: Sequence[str], labels: Sequence[str] | None = None) -> None:
    """Draw a method on each row: every seed of (methods, seeds) as a small dot, the mean with one standard error."""
    for row, (method, own) in enumerate(zip(methods, np.asarray(values), strict=True)):
        own, colour = own[np.isfinite(own)], METHODS[method][1]
        mean, error = mean_and_error(own) if len(own) else (np.nan, np.nan)
        mark = {"fmt": MARKERS[method], "capsize": 2, "markersize": 4}
        ax.plot(own, np.full(len(own), row) + 0.22, ".", color=colour, markersize=2.5, alpha=0.6)
        ax.errorbar(mean, row, xerr=np.nan_to_num(error), color=colour, **mark)
    label_rows(ax, labels or [METHODS[method][0] for method in methods])


def intervals(ax: Any, tests: Sequence[Judged], methods: Sequence[str], labels: Sequence[str] | None = None) -> None:
    """Draw a test's difference on each row with its 95 % interval; filled where it survives Holm's correction."""
    for row, (test, method) in enumerate(zip(tests, methods, strict=True)):
        colour = METHODS[method][1]
        ax.plot(test.interval, [row, row], color=colour, linewidth=1)
        fill = colour if test.verdict == "holm" else "white"
        ax.plot(test.mean, row, MARKERS[method], color=colour, mfc=fill, markersize=4.5)
    label_rows(ax, labels or [METHODS[method][0] for method in methods])


def label_rows(ax: Any, labels: Sequence[str]) -> None:
    """Label the rows, the first one on top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(visible=True, axis="x")


def note(figure: Figure, text: str) -> None:
    """Say under the figure what was measured, in grey."""
    figure.supxlabel(text, fontsize=7, color="0.4")


def told(data: Any, *more: str, images: int | None = None, errors: str = " ± 1 stderr") -> str:
    """Return what a note says of the networks of `Profile.dataset`, and more; `images`: how many, 0 not to tell."""
    about = data.attrs
    images = about["samples"] if images is None else images
    shown = [f"{images} images"] if images else []
    return ", ".join([about["family"], f"{about['seeds']} seeds{errors}", *shown, *more])


def legend(figure: Figure, ax: Any, columns: int) -> None:
    """Put the legend of one panel above all of them."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)


def whole_epochs(ax: Any) -> None:
    """Label the epochs, at whole numbers only."""
    ax.set_xlabel("Epoch")
    ax.locator_params(axis="x", integer=True, nbins=6)
