"""Pictures of lines and surfaces: `interactive` with plotly, `paper` with matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..surfaces import Line, Surface

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_UNITS = {
    "random, filter normalisation": "in filter norms",
    "random, layer normalisation": "in layer norms",
    "random, none normalisation": "not normalised",
    "gradient": "in learning rates",
}
_LABELS = {"loss": "Loss", "accuracy": "Accuracy", "stderr": "Standard error"}  # metrics keep their own names
BAND = "band: ± 1 stderr of the difference to centre"
_GAPS = ("not yet measured", "", "interpolated, without a standard error", "failed (NaN, infinite or an error)")


def check(results: Mapping[str, Line] | Mapping[str, Surface], value: str, log: bool = False) -> None:
    """Refuse to draw nothing, a value that a result does not have, or the logarithm of an accuracy."""
    if not results:
        raise ValueError("nothing to draw: the mapping from names to results is empty")
    for name, result in results.items():
        if value not in (known := measured(result)):
            listed, whose = ", ".join(f'"{one}"' for one in known), f"{name!r} has" if name else "there is"
            raise ValueError(f"value must be one of {listed}, which is what {whose}, got {value!r}")
    if log and value == "accuracy":
        raise ValueError('log must be False for value="accuracy", which runs from 0 to 1')


def measured(result: Line | Surface) -> list[str]:
    """Name what a result has at each of its points."""
    return ["loss", "accuracy", *["stderr"] * (result.stderr is not None), *result.metrics]


def label(value: str) -> str:
    """Name a value on an axis: a metric as its caller did."""
    return _LABELS.get(value, value)


def column(result: Line | Surface, value: str) -> np.ndarray:
    """Return a value at all points, float64."""
    found: np.ndarray = (getattr(result, value) if value in _LABELS else result.metrics[value]).numpy().astype(float)
    return found


def drawable(result: Line | Surface, value: str, log: bool = False) -> np.ndarray:
    """Return the values with NaN for everything that stays a gap: not finite or, on a log scale, not positive."""
    values = column(result, value)
    return np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)


def band(line: Line, values: np.ndarray, value: str, log: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the edges, one standard error of the loss's difference to the centre around it; None without any."""
    if value != "loss" or line.stderr is None or not np.isfinite(values + line.stderr.numpy()).any():
        return None
    errors = drawable(line, "stderr")
    floor = np.nanmin(values) if log else -np.inf  # a logarithmic axis has no place for what lies below zero
    return np.maximum(values - errors, floor), values + errors


def gaps(values: np.ndarray, log: bool = False, status: np.ndarray | None = None) -> str:
    """Say how many of the values are gaps and why, in words; empty without any."""
    missing = np.isnan(values)
    status = np.ones(values.shape, int) if status is None else status
    reasons = [*_GAPS]
    reasons[1] = f"not drawn ({'NaN, infinite or ≤ 0' if log else 'NaN or infinite'})"
    counts = [(int((missing & (status == kind)).sum()), reason) for kind, reason in enumerate(reasons)]
    return ", ".join(f"{count} of {values.size} points {reason}" for count, reason in counts if count)


def missing(results: Mapping[str, Any], values: Mapping[str, np.ndarray], log: bool = False) -> dict[str, str]:
    """Say of each result what its gaps are, name → words; see `gaps`."""
    statuses = {name: None if result.status is None else result.status.numpy() for name, result in results.items()}
    return {name: gaps(array, log, statuses[name]) for name, array in values.items()}


def notes(results: Mapping[str, Any], values: Mapping[str, np.ndarray], log: bool = False) -> list[str]:
    """Say what the gaps are, a note for each result that has any."""
    told = missing(results, values, log)
    return [f"{name}: {text}" if name else text for name, text in told.items() if text]


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


def bent_ticks(bulk: float, low: float, high: float) -> np.ndarray:
    """Return zero, and ±1, ±3, ±10 … between two ends, none inside the part that asinh leaves straight."""
    ticks = np.array([sign * m * 10.0**d for d in range(-9, 10) for m in (1, 3) for sign in (-1, 1)] + [0])
    return np.sort(ticks[(np.abs(ticks) >= bulk / 3) & (ticks >= low) & (ticks <= high) | (ticks == 0)])


def axis(result: Line | Surface, number: int = 0) -> tuple[str, str]:
    """Return the name of direction 1 or 2 (0: the only one) and its unit, empty where it has none of its own."""
    directions = str(result.about.get("directions", ""))
    part = (directions.split(" and ") * 2)[max(number - 1, 0)]
    if part == "towards a network":
        return f"{('the', 'the first', 'the second')[number]} other network (at 1)", ""
    if part.startswith(("eigenvector", "principal component")):
        return part, ""
    kind = "given direction" if part == "given" else "direction"
    name = "the gradient" if part == "gradient" else f"{kind} {number}" if number else f"the {kind}"
    return name, _UNITS.get(part, "")


def axis_label(result: Line | Surface, number: int = 0) -> str:
    """Name the axis of direction 1 or 2 (0: the only one) and its unit."""
    name, unit = axis(result, number)
    return f"Step {'towards' if 'network' in name else 'along'} {name}" + f", {unit}" * bool(unit)


def short(surface: Surface, number: int) -> str:
    """Name a direction in a word or two, for 3-D panels."""
    name = axis(surface, number)[0].replace(" other network (at 1)", " network")
    return name.removeprefix("the ").removeprefix("principal ").removeprefix("given ")


def units(surface: Surface) -> str:
    """Say the units of both axes, where the directions have any, for pictures without room for them at the axes."""
    axes = [axis(surface, number) for number in (1, 2)]
    if axes[0][1] == axes[1][1]:
        return f"steps {axes[0][1]}" if axes[0][1] else ""
    return "steps " + ", ".join(f"along {name} {unit}" for name, unit in axes if unit)


def columns(panels: int) -> int:
    """Return how many panels stand in a row: up to three, and four as two by two."""
    return 2 if panels == 4 else min(panels, 3)


def caption(results: Mapping[str, Any], value: str = "") -> str:
    """Say what was measured: the space, BatchNorm's statistics, the number of samples, what is interpolated."""
    interpolated = [result.about for result in results.values() if "interpolation_error" in result.about]
    phrases: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "space": lambda about: f"{about['space']} weights",
        "batchnorm": lambda about: f"BatchNorm statistics {about['batchnorm']}",
        "samples": lambda about: f"{about['samples']:,} samples",
        "interpolation_error": lambda about: _interpolated(interpolated, value),
    }
    parts = ["stderr of the loss's difference to the centre"] * (value == "stderr")
    for key, phrase in phrases.items():
        names: dict[str, list[str]] = {}
        for name, result in results.items():
            if key in result.about:
                names.setdefault(phrase(result.about), []).append(name)
        everyone = len(names) == 1 and len(results) == len(*names.values())
        parts += [text if everyone else f"{text} ({', '.join(who)})" for text, who in names.items()]
    return " · ".join(parts)


def beyond(values: np.ndarray, window: tuple[float, float]) -> dict[str, np.ndarray]:
    """Return which values lie above and below a picture: they are marked at its edge."""
    return {"above": values >= window[1], "below": values <= window[0]}


def wrapped(text: str, width: int) -> str:
    """Break a caption into lines, between its phrases where they are short enough."""
    phrases = [part.replace(" ", "\xa0") if len(part) <= width else part for part in text.split(" · ")]
    return textwrap.fill("\xa0· ".join(phrases), width, break_on_hyphens=False).replace("\xa0", " ")


def _interpolated(abouts: Sequence[Mapping[str, Any]], value: str) -> str:
    """Say from how many points, and how far off at most: a share of the loss's range, or plainly."""
    counts = [about["evaluated"] for about in abouts]
    fewest, most = min(counts), max(counts)
    text = f"interpolated from {fewest:,}{f' to {most:,}' * (most > fewest)} measured points"
    if value == "loss":
        share = 100 * max(about["interpolation_error"] for about in abouts)
        ranges = " or ".join(sorted({about["interpolation_error_of"] for about in abouts}))
        return f"{text}, error ≤ {share:.2g} % of the {ranges} range"
    errors = [about["interpolation_errors"].get(value) for about in abouts]
    return text if None in errors else f"{text}, error ≤ {max(errors):.2g}"
