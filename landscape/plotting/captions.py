"""Labels and captions: what the axes are, what was measured, what is missing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .values import LABELS, LineLike, SurfaceLike, column, measured, missing

_UNITS = {"filter": "in filter norms", "layer": "in layer norms", "none": "not normalised"}
BAND = "band: ± 1 stderr of the difference to centre"


def label(value: str) -> str:
    """Name a value on an axis: a metric as its caller did."""
    return LABELS.get(value, value)


def notes(results: Mapping[str, Any], values: Mapping[str, np.ndarray], log: bool = False) -> list[str]:
    """Say what the gaps are, a note for each result that has any."""
    return [f"{name}: {text}" if name else text for name, text in missing(results, values, log).items() if text]


def axis(result: LineLike | SurfaceLike, number: int = 0) -> tuple[str, str]:
    """Return the name of direction 1 or 2 (0: the only one) and its unit, empty where it has none of its own.

    ``about["axes"]`` has an entry per axis: ``{"kind": "random", "normalize": "filter"}``, ``{"kind": "gradient"}``,
    ``{"kind": "network"}`` and ``{"kind": "given"}`` (which may have a ``"name"``), ``{"kind": "eigenvector", "index":
    1}``, ``{"kind": "principal component", "index": 1}``.
    """
    axes = result.about.get("axes") or [{}]
    entry = axes[min(max(number - 1, 0), len(axes) - 1)]
    match entry.get("kind"):
        case "network" if "name" in entry:
            return f"network {entry['name']} (at 1)", ""
        case "network":
            return f"{('the', 'the first', 'the second')[number]} other network (at 1)", ""
        case "eigenvector" | "principal component":
            return f"{entry['kind']} {entry['index']}", ""
        case "gradient":
            return "the gradient", "in learning rates"
        case "given":
            if "name" in entry:
                return entry["name"], ""
            return f"given direction {number}" if number else "the given direction", ""
    return f"direction {number}" if number else "the direction", _UNITS.get(entry.get("normalize"), "")


def axis_label(results: Iterable[LineLike | SurfaceLike], number: int = 0) -> str:
    """Name the axis of direction 1 or 2 (0: the only one) and its unit, where all results have it in common."""
    names, texts = zip(*(axis(result, number) for result in results), strict=True)
    common = len({*names}) == len({*texts}) == 1
    name = names[0] if common else f"each one's direction {number or ''}".strip()
    unit = f", {texts[0]}" if texts[0] and len({*texts}) == 1 else ""
    return f"Step {'towards' if 'network' in name else 'along'} {name}{unit}"


def short(surface: LineLike | SurfaceLike, number: int) -> str:
    """Name a direction in a word or two, as an axis does, where there is no room for more."""
    name = axis(surface, number)[0].replace(" other network (at 1)", " network")
    for article in ("the ", "principal ", "given "):
        name = name.removeprefix(article)
    return name[:1].upper() + name[1:]


def hover(result: LineLike | SurfaceLike) -> tuple[str, np.ndarray]:
    """Return what hovering says, everything measured at the point, as plotly's template and the data it refers to."""
    names = measured(result)
    texts = [f"{name} %{{customdata[{index}]:.4g}}" for index, name in enumerate(names)]
    data = np.stack([column(result, name) for name in names], -1)
    if data.ndim < 3:
        return ", ".join(texts), data
    places = [f"{short(result, number)} %{{{letter}:.4g}}" for number, letter in ((1, "x"), (2, "y"))]
    return "<br>".join([*places, *texts]) + "<extra></extra>", data


def caption(results: Mapping[str, Any], value: str = "") -> str:
    """Say what was measured: along which directions, how far, in which space, on how many samples."""
    interpolated = [result.about for result in results.values() if "interpolation_error" in result.about]
    phrases: dict[str, Callable[[Any], str]] = {
        "axes": _directions,
        "space": lambda result: f"{result.about['space']} weights",
        "batchnorm": lambda result: f"BatchNorm statistics {result.about['batchnorm']}",
        "samples": lambda result: f"{count:,} samples" if isinstance(count := result.about["samples"], int) else count,
        "band": lambda result: f"band: {result.about['band']}",
        "interpolation_error": lambda _: _interpolated(interpolated, value),
    }
    parts = ["stderr of the loss's difference to the centre"] * (value == "stderr")
    for key, phrase in phrases.items():
        names: dict[str, list[str]] = {}
        for name, result in results.items():
            if key in result.about:
                names.setdefault(phrase(result), []).append(name)
        everyone = len(names) == 1 and len(results) == len(*names.values())
        parts += [text if everyone else f"{text} ({', '.join(who)})" for text, who in names.items() if text]
    return " · ".join(parts)


def wrapped(text: str, width: int) -> str:
    """Break a caption into lines, between its phrases where they are short enough."""
    lines: list[str] = []
    for phrase in text.split(" · "):
        if lines and len(lines[-1]) + len(phrase) + 3 <= width:
            lines[-1] += f" · {phrase}"
        else:
            lines += textwrap.wrap(phrase, width, break_on_hyphens=False)
    return "\n".join(lines)


def _directions(result: Any) -> str:
    """Say along which directions, in which units, by which seed they were drawn, and how far."""
    if not hasattr(result, "alphas"):
        return ""
    steps = [result.alphas, result.betas] if hasattr(result, "betas") else [result.alphas]
    random = [entry.get("kind") == "random" for entry in result.about["axes"]]
    names = [" ".join(axis(result, number if len(steps) > 1 else 0)).strip() for number in range(1, len(steps) + 1)]
    if all(random):
        names = [f"random direction{'s' * (len(steps) > 1)} {axis(result, 1)[1]}"]
    seed = result.about.get("seed")
    drawn = f", seed {seed}" if any(random) and seed is not None else ""
    ends = dict.fromkeys((float(step[0]), float(step[-1])) for step in steps)
    spans = [f"{high:.4g}" if low == -high else f"{low:.4g} to {high:.4g}" for low, high in ends]
    return f"{' and '.join(names)}{drawn}, span {' and '.join(spans)}".replace("-", "−")


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
