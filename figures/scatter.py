"""Does flatness come with accuracy? Every method of the CIFAR-10 study against SGD at the same bits and seed."""

from typing import Any

import numpy as np
from scipy import stats

from . import methods
from .drawing import METHODS, legend, note, panels

BITS = ("w4a4", "w2a2")
DRAWS = 4000


def points(bits: str) -> dict[str, np.ndarray]:
    """Return variant -> (pairs, 2): how much lower log trace is than SGD's, and how many points accuracy is higher."""
    rows, found = methods.by_seed(), {}
    sgd = f"{methods.BASE}-{bits}-sgd"
    for variant in METHODS:
        name = f"{methods.BASE}-{bits}-{variant}"
        both = [(rows[name, seed], rows[sgd, seed]) for seed in methods.pairs(rows, name, sgd)] if name != sgd else []
        if both:
            pairs = [(np.log(b["trace"] / a["trace"]), a["accuracy"] - b["accuracy"]) for a, b in both]
            found[variant] = np.array(pairs)
    return found


def correlations() -> dict[str, tuple[float, float, float, int]]:
    """Return bits -> rank correlation of the two over all pairs, its 95 % interval, and the number of pairs.

    The interval is a bootstrap's over whole methods, within which pairs are not independent.
    """
    return {bits: _correlation(list(points(bits).values())) for bits in BITS if len(points(bits)) > 2}


def _correlation(groups: list[np.ndarray]) -> tuple[float, float, float, int]:
    generator, whole = np.random.default_rng(0), np.concatenate(groups)
    draws = []
    for _ in range(DRAWS):
        drawn = [groups[i] for i in generator.integers(len(groups), size=len(groups))]
        draws.append(_rank_correlation(np.concatenate(drawn)))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return _rank_correlation(whole), float(low), float(high), len(whole)


def _rank_correlation(pairs: np.ndarray) -> float:
    ranks = stats.rankdata(pairs, axis=0)
    return float(np.corrcoef(ranks.T)[0, 1])


def draw() -> Any:
    """Draw a panel for each number of bits, a point for each network and its SGD twin."""
    figure, axes = panels(2, 2.4)
    found = {bits: points(bits) for bits in BITS}
    shown = [variant for variant in METHODS if any(variant in own for own in found.values())]
    for ax, bits in zip(axes, BITS, strict=True):
        for variant in shown:  # in both panels, for one legend
            pairs = found[bits].get(variant, np.empty((0, 2)))
            label, colour, _ = METHODS[variant]
            marker = "os^v<>DPX*"[list(METHODS).index(variant) % 10]
            ax.plot(np.exp(-pairs[:, 0]), pairs[:, 1], marker, color=colour, ms=4, label=label, alpha=0.85)
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.axvline(1, color="0.6", linewidth=0.6)
        ax.set(title=bits.upper(), xlabel="Trace / SGD's", ylabel="Test accuracy − SGD's, points")
        ax.invert_xaxis()
    legend(figure, axes[1], 5)
    note(figure, "CIFAR-10, ResNet-20, 10,000 images; a point: a network and SGD's of its seed; flatter to the right")
    return figure
