"""Pictures of lines and surfaces: `interactive` with plotly, `paper` with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..surfaces import Line, Surface

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_UNITS = {
    "random, filter normalisation": ", in filter norms",
    "random, layer normalisation": ", in layer norms",
    "random, none normalisation": ", not normalised",
}


def check(results: Mapping[str, Any], value: str, log: bool = False) -> None:
    """Refuse to draw nothing, an unknown value, or the logarithm of an accuracy."""
    if not results:
        raise ValueError("nothing to draw: the mapping from names to results is empty")
    if value not in ("loss", "accuracy"):
        raise ValueError(f'value must be "loss" or "accuracy", got {value!r}')
    if log and value == "accuracy":
        raise ValueError('log must be False for value="accuracy", which runs from 0 to 1')


def drawable(result: Line | Surface, value: str, log: bool = False) -> np.ndarray:
    """Return the values with NaN for everything that stays a gap: not finite or, on a log scale, not positive."""
    values = getattr(result, value).numpy().astype(float)
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def gaps(values: np.ndarray, log: bool = False) -> str:
    """Say how many of the values are gaps, in words; empty without any."""
    missing = int(np.isnan(values).sum())
    reason = "NaN, infinite or ≤ 0" if log else "NaN or infinite"
    return f"{missing} of {values.size} points not drawn ({reason})" if missing else ""


def limits(arrays: Iterable[np.ndarray], value: str) -> tuple[float, float]:
    """Return the range shared by all arrays: 0 to 1 for accuracies and where nothing is finite."""
    finite = np.concatenate([array[np.isfinite(array)] for array in arrays])
    if value == "accuracy" or not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def round_levels(low: float, high: float, at_least: int) -> list[float]:
    """Return round numbers at logarithmic distances (1, 2, 5, …) that enclose low and high, both positive.

    Ranges too narrow for them get evenly spaced ones.
    """
    levels: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in mantissas]
        first = max(step for step in steps if step <= low)
        last = min(step for step in steps if step >= high)
        levels = [step for step in steps if first <= step <= last]
        if len(levels) >= at_least:
            return levels
    return levels if len(levels) >= 6 else even_levels(low, high)


def even_levels(low: float, high: float) -> list[float]:
    """Return about ten evenly spaced round numbers that enclose low and high."""
    rough = (high - low) / 10
    decade = 10.0 ** math.floor(math.log10(rough))
    step = min(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def axis_label(result: Line | Surface, number: int = 0) -> str:
    """Name the axis of direction 1 or 2 (0: the only one) and its unit."""
    directions = str(result.about.get("directions", ""))
    part = (directions.split(" and ") * 2)[max(number - 1, 0)]
    if part == "towards a network":
        return f"Step towards {('the', 'the first', 'the second')[number]} other network (at 1)"
    name = f"direction {number}" if number else "the direction"
    return f"Step along {name}{_UNITS.get(directions, '')}"


def columns(panels: int) -> int:
    """Return how many panels stand in a row: up to three, and four as two by two."""
    return 2 if panels == 4 else min(panels, 3)


def caption(results: Mapping[str, Line] | Mapping[str, Surface]) -> str:
    """Say what was measured: the space, BatchNorm's statistics and the number of samples."""
    phrases: dict[str, Callable[[Any], str]] = {
        "space": lambda space: f"{space} weights",
        "batchnorm": lambda policy: f"BatchNorm statistics {policy}",
        "samples": lambda samples: f"{samples:,} samples",
    }
    parts = []
    for key, phrase in phrases.items():
        names: dict[str, list[str]] = {}
        for name, result in results.items():
            if key in result.about:
                names.setdefault(phrase(result.about[key]), []).append(name)
        parts += [f"{text} ({', '.join(who)})" if len(names) > 1 else text for text, who in names.items()]
    return " · ".join(parts)
