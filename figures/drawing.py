"""One look for all figures: a colour and a dash for each method, bands over seeds, panels of one height."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .study import mean_and_error

ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75  # inches, as ICML has them
DASH, DOT = (0, (4, 1.5)), (0, (1, 1))
# method -> label, colour (Okabe and Ito's, for searches Tol's: told apart by colour-blind readers), dash
METHODS: dict[str, tuple[str, str, Any]] = {
    "fp32": ("FP32", "#000000", "-"),
    "sgd": ("LSQ, SGD", "#D55E00", "-"),
    "saq1": ("SAQ, Case 1", "#56B4E9", DASH),
    "saq2": ("SAQ, Case 2", "#009E73", DOT),
    "saq3": ("SAQ, Case 3", "#0072B2", "-"),
    "saq3-momentum": ("Case 3, momentum", "#CC79A7", DASH),
    "saq3-subset": ("Case 3, subset", "#CC79A7", DOT),
    "sfp": ("SFP", "#E69F00", DASH),
    "csd": ("CSD", "#E69F00", DOT),
    "fpq": ("FPQ", "#E69F00", "-"),
    "sfp-p1": ("SFP, p = 1", "#E69F00", DASH),
    "fpq-p0.5": ("FPQ, p = 0.5", "#E69F00", "-"),
    "fpq-p1": ("FPQ, p = 1", "#E69F00", "-"),
    "winq": ("WinQ", "#332288", DASH),
    "saq3-frozen": ("Case 3, frozen steps", "#6699CC", DOT),
    "ema": ("EMA", "#999933", DOT),
    "uniform": ("Uniform bits", "#555555", "-"),
    "hessian": ("Hessian", "#999933", DASH),
    "samq": ("SAMQ", "#44AA99", "-"),
    "asga": ("ASGA", "#882255", "-"),
    "asga-fixed": ("ρ = 0.05", "#332288", DASH),
    "asga-cap": ("ρ = 0.1", "#6699CC", DOT),
    "asga-plain": ("Plain search", "#DDAA33", DASH),
}


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


def dots(ax: Any, values: Any, methods: list[str]) -> None:
    """Draw a method on each row: every seed of (methods, seeds) as a small dot, the mean with one standard error."""
    for row, (method, own) in enumerate(zip(methods, np.asarray(values), strict=True)):
        own, colour = own[np.isfinite(own)], METHODS[method][1]
        mean, error = mean_and_error(own) if len(own) else (np.nan, np.nan)
        ax.plot(own, np.full(len(own), row) + 0.22, ".", color=colour, markersize=2.5, alpha=0.6)
        ax.errorbar(mean, row, xerr=np.nan_to_num(error), fmt="o", color=colour, capsize=2, markersize=4)
    ax.set_yticks(range(len(methods)), [METHODS[method][0] for method in methods])
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.grid(axis="x")


def note(figure: Figure, text: str) -> None:
    """Say under the figure what was measured, in grey."""
    figure.supxlabel(text, fontsize=7, color="0.4")


def told(data: Any, *more: str, images: int | None = None) -> str:
    """Return what a note says of the networks of `Profile.dataset`, and more; `images`: how many, 0 not to tell."""
    about = data.attrs
    images = about["samples"] if images is None else images
    shown = [f"{images} images"] if images else []
    return ", ".join([about["family"], f"{about['seeds']} seeds ± 1 stderr", *shown, *more])


def legend(figure: Figure, ax: Any, columns: int) -> None:
    """Put the legend of one panel above all of them."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)


def whole_epochs(ax: Any) -> None:
    """Label the epochs, at whole numbers only."""
    ax.set_xlabel("Epoch")
    ax.locator_params(axis="x", integer=True, nbins=6)
