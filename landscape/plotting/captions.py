"""Labels and captions: what the axes are, what was measured, what is missing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .values import LABELS, LineLike, SurfaceLike, missing

_UNITS = {"filter": "in filter norms", "layer": "in layer norms", "none": "not normalised"}
BAND = "band: ± 1 stderr of the difference to centre"


def label(value: str) -> str:
    """Name a value on an axis: a metric as its caller did."""
    return LABELS.get(value, value)


def notes(results: Mapping[str, Any], values: Mapping[str, np.ndarray], log: bool = False) -> list[str]:
    """Say what the gaps are, a note for each result that has any."""
    texts = missing(results, values, log)
    return [f"{name}: {text}" if name else text for name, text in texts.items() if text]


def axis(result: LineLike | SurfaceLike, number: int = 0) -> tuple[str, str]:
    """Return the name of direction 1 or 2 (0: the only one) and its unit, empty where it has none of its own.

    ``about["axes"]`` has an entry per axis: ``{"kind": "random", "normalize": "filter"}``, ``{"kind": "gradient"}``,
    ``{"kind": "network"}``, ``{"kind": "eigenvector", "index": 1}``, ``{"kind": "principal component", "index": 1}`` or
    ``{"kind": "given"}``.
    """
    axes = result.about.get("axes") or [{}]
    entry = axes[min(max(number - 1, 0), len(axes) - 1)]
    match entry.get("kind"):
        case "network":
            return f"{('the', 'the first', 'the second')[number]} other network (at 1)", ""
        case "eigenvector" | "principal component":
            return f"{entry['kind']} {entry['index']}", ""
        case "gradient":
            return "the gradient", "in learning rates"
        case "given":
            return f"given direction {number}" if number else "the given direction", ""
    return f"direction {number}" if number else "the direction", _UNITS.get(entry.get("normalize"), "")


def axis_label(result: LineLike | SurfaceLike, number: int = 0) -> str:
    """Name the axis of direction 1 or 2 (0: the only one) and its unit."""
    name, unit = axis(result, number)
    return f"Step {'towards' if 'network' in name else 'along'} {name}" + f", {unit}" * bool(unit)


def short(surface: SurfaceLike, number: int) -> str:
    """Name a direction in a word or two, for 3-D panels."""
    name = axis(surface, number)[0].replace(" other network (at 1)", " network")
    return name.removeprefix("the ").removeprefix("principal ").removeprefix("given ")


def units(surface: SurfaceLike) -> str:
    """Say the units of both axes, where the directions have any, for pictures without room for them at the axes."""
    axes = [axis(surface, number) for number in (1, 2)]
    if axes[0][1] == axes[1][1]:
        return f"steps {axes[0][1]}" if axes[0][1] else ""
    return "steps " + ", ".join(f"along {name} {unit}" for name, unit in axes if unit)


def caption(results: Mapping[str, Any], value: str = "") -> str:
    """Say what was measured: the space, BatchNorm's statistics, the number of samples, what is interpolated."""
    interpolated = [result.about for result in results.values() if "interpolation_error" in result.about]
    phrases: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "space": lambda about: f"{about['space']} weights",
        "batchnorm": lambda about: f"BatchNorm statistics {about['batchnorm']}",
        "samples": lambda about: f"{about['samples']:{',' * isinstance(about['samples'], int)}} samples",
        "band": lambda about: f"band: {about['band']}",
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


def quantity(name: str, about: Mapping[str, Any]) -> str:
    """Name a curvature and its units, where it has any: those of a matrix are its own."""
    units = {"raw": "raw units", "filter": "filter-relative units"}.get(about.get("units", ""), "")
    return f"{name}, {units}" if units else name
