"""Does flatness come with accuracy? Every method of the CIFAR-10 study against SGD at the same bits and seed."""

from typing import Any

import numpy as np
from scipy import stats

from . import methods
from .drawing import MARKERS, METHODS, legend, note, panels
from .study import decimal

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
    """Draw a panel for each number of bits: every network and SGD's of its seed small, the means of a method large."""
    figure, axes = panels(2, 2.6, sharey=True)
    found, ranks = {bits: points(bits) for bits in BITS}, correlations()
    shown = [variant for variant in METHODS if any(variant in own for own in found.values())]
    for ax, bits in zip(axes, BITS, strict=True):
        for variant in shown:  # in both panels, for one legend
            lower, higher = found[bits].get(variant, np.full((1, 2), np.nan)).T
            label, colour, _ = METHODS[variant]
            ax.plot(np.exp(-lower), higher, MARKERS[variant], color=colour, ms=3, alpha=0.5, mew=0)
            ax.plot(np.exp(-lower.mean()), higher.mean(), MARKERS[variant], color=colour, ms=6, label=label)
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.axvline(1, color="0.6", linewidth=0.6)
        rank, low, high, _ = (decimal(value, 2, "+") for value in ranks[bits]) if bits in ranks else 4 * ("–",)
        title = f"{bits.upper()}: rank correlation {rank} [{low}, {high}]"
        ax.set(title=title, xlabel="Trace / SGD's (flatter to the right)")
        ax.invert_xaxis()
    axes[0].set_ylabel("Test accuracy − SGD's, points")
    legend(figure, axes[0], 4)
    about = f"CIFAR-10, {', '.join(methods.about())}"
    note(figure, f"{about}; small: a network and SGD's of its seed, large: a method's mean; 95 % intervals")
    return figure
