"""What a page says in words, from what results say about themselves: plain text, but for the table, which is HTML."""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..comparison import Comparison, quantity_label
from ..plotting.captions import axis, axis_label, caption
from ..results import Result, with_error
from ..surfaces import Surface

Numbers = Mapping[str, tuple[float, float]]
_ALPHA = 0.05
_NAMES = 3  # that a title lists
_UNMEASURED = '<p class="soft small">Curvature and sharpness were not measured: <i>compare</i> does.</p>'
_LENGTHS = {"in filter norms": "filter by filter", "in layer norms": "layer by layer"}
# what the columns of the table mean, in their order; of a radius the largest is shown
_MEANINGS = {
    "accuracy": "the share of the samples that the network classifies correctly",
    "loss": "the mean over the samples, at the network itself",
    "trace_filter": "the sum of the Hessian's eigenvalues, with weights in units of their filters' norms: how strongly "
    "the loss curves at the centre, over all directions",
    "lambda1_filter": "the largest of these eigenvalues: the curvature along the sharpest direction",
    "worst": "the largest that an ascent finds while each filter moves by at most this share of its norm",
    "average": "the mean over random moves of this length",
}


def title_of(names: Sequence[str]) -> str:
    """Name a page by its networks."""
    if len(names) > _NAMES:
        return f"{len(names)} loss landscapes"
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"The loss landscape{'s' * (len(names) > 1)} of {listed}"


def lead(surfaces: Mapping[str, Surface], comparisons: Sequence[Comparison]) -> str:
    """Say what was measured, on what."""
    abouts = [result.about for result in (*surfaces.values(), *comparisons)]
    samples = {str(about.get("samples", "unknown")) for about in abouts}
    directions = {(about.get("directions"), about.get("seed")) for about in (s.about for s in surfaces.values())}
    same, whose = ("", "a network") if len(surfaces) == 1 else ("the same ", "each of the networks")
    what = "The loss around" if surfaces else "The sharpness of"
    on = f", on {same}{samples.pop()} samples" if len(samples) == 1 and samples != {"unknown"} else ""
    along = f", along {same}two directions" if len(directions) == 1 else ""
    return f"{what} {whose}{on}{along}."


def step_length(surfaces: Mapping[str, Surface]) -> str:
    """Say how long a step along an axis is."""
    texts = []
    for surface in surfaces.values():
        units = {axis(surface, number)[1] for number in (1, 2)}
        parts = _LENGTHS.get(units.pop()) if len(units) == 1 else None
        long = f"A step of 1 along a direction is as long as the weights themselves, {parts}." if parts else ""
        names = [axis_label([surface], number).removeprefix("Step ") for number in (1, 2)]
        texts.append(long or f"Steps are {' and '.join(names)}.")
    return _grouped(dict(zip(surfaces, texts, strict=True)))


def verdict(comparison: Comparison) -> str:
    """Say whether the networks of the largest and of the smallest trace are told apart."""
    whole, quantity = _named(comparison), "trace_filter"
    values = {name: whole.value(name, quantity)[0] for name, seeds in whole.seeds.items() if quantity in seeds[0]}
    if len({*values.values()}) < 2 or not all(map(math.isfinite, values.values())):
        return ""
    low, high = (choose(values, key=lambda name: values[name]) for choose in (min, max))
    pairs = math.comb(len({*values.values()}), 2)
    sentence = whole.verdict(high, low, quantity, 1 - _ALPHA / pairs)
    plain = re.sub(r"\\(.)", r"\1", sentence.replace("**", ""))  # what it emphasises and escapes is Markdown's
    return f"At the centre, the largest and the smallest: {plain}{f', corrected for {pairs} pairs' * (pairs > 1)}."


def _named(comparison: Comparison) -> Comparison:
    """Return a comparison whose networks are called as they are shown."""
    return replace(comparison, seeds={shown(name): group for name, group in comparison.seeds.items()})


def note(numbers: Numbers) -> str:
    """Say under a panel what the network's own loss and accuracy are."""
    parts = [f"loss {numbers['loss'][0]:.3g}"] if "loss" in numbers else []
    parts += [f"accuracy {100 * numbers['accuracy'][0]:.1f} %"] if "accuracy" in numbers else []
    return " · ".join(parts).replace("-", "−")


def numbers_table(networks: Mapping[str, Numbers], comparisons: Sequence[Comparison]) -> str:
    """Return the table with a whisker for each number, what the columns mean, and all other numbers, as HTML."""
    if not (columns := _columns(networks.values())):
        return _UNMEASURED
    heads = "".join(f'<th scope="col">{html.escape(quantity_label(q))}</th>' for q in columns)
    rows = []
    for index, (name, numbers) in enumerate(networks.items()):
        cells = "".join(_cell(numbers.get(q), _range(q, networks.values())) for q in columns)
        rows.append(f'<tr data-network="{index}"><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    body = f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    meanings = [(quantity_label(q), _MEANINGS[q if q in _MEANINGS else q.partition("_")[0]]) for q in columns]
    terms = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in meanings)
    parts = [f'<div class="wrap"><table>{body}</table></div><dl>{terms}</dl>']
    parts += [_UNMEASURED] * (not comparisons)
    for whole in comparisons:
        text = f'<p class="soft small">{html.escape(whole._caption().replace("`", ""))}</p>'
        table = plain_table(_named(whole))
        parts.append(f"<details><summary>All numbers, and the differences</summary>{table}{text}</details>")
    return "".join(parts)


def plain_table(result: Result) -> str:
    """Return the table of a result as HTML."""
    plain = result.table.to_html(border=0).replace(' style="text-align: right;"', "")  # which the policy forbids
    return f'<div class="wrap">{re.sub(r">-(?=[0-9.])", ">−", plain)}</div>'


def methods(surfaces: Mapping[str, Surface], comparisons: Sequence[Comparison], paths: bool) -> str:
    """Say how the numbers came about."""
    said = []
    if surfaces:
        said.append(_grouped({name: _grid(surface) for name, surface in surfaces.items()}))
        conditions = caption({n.replace(" · ", " "): s for n, s in surfaces.items()}, "loss").replace(" · ", "; ")
        said.append(f"{conditions[:1].upper()}{conditions[1:]}.")
        spaces = {surface.about.get("space") for surface in surfaces.values()}
        said += ["Quantized weights are moved after they are rounded."] * ("quantized" in spaces)
        said += ["Latent weights are moved before they are rounded."] * ("latent" in spaces)
    if paths:
        said.append("Checkpoints are projected onto the plane by least squares; each is drawn at its own loss.")
    for whole in comparisons:
        about = whole.about
        said.append(
            "Curvature: Hutchinson's estimator of the trace, deflated by Lanczos vectors, and Lanczos for λ₁, of the "
            "Hessian scaled by the filters' norms, from Hessian-vector products; derivatives: "
            f"{about['derivatives']}; seed {about['seed']}. ± is one standard error, over seeds where a network has "
            "several, else over samples, draws and probes."
        )
        varies, total = about.get("varies", (0, 0))
        said += [f"{varies:,} of {total:,} weights vary."] * (varies < total)
    versions = {f"{r.about.get('dtype')}, PyTorch {r.about.get('torch')}" for r in (*surfaces.values(), *comparisons)}
    return " ".join([*said, f"Computed in {'; '.join(sorted(versions))}."])


def bibtex(text: str, surfaces: Mapping[str, Surface], comparisons: Sequence[Comparison], paths: bool) -> str:
    """Keep the entries of the methods that were used."""
    entries = {entry.partition("{")[2].partition(",")[0]: entry.strip() for entry in text.split("\n\n")}
    used = ["li2018visualizing"] * bool(surfaces) + ["lorch2016visualizing"] * paths
    used += ["duchon1977splines"] * any("interpolation_error" in surface.about for surface in surfaces.values())
    quantities = {q for whole in comparisons for seeds in whole.seeds.values() for q in seeds[0]}
    if "trace_filter" in quantities:
        used += ["pearlmutter1994fast", "hutchinson1989stochastic", "gambhir2017deflation", "lanczos1950iteration"]
    kinds = {q.partition("_")[0] for q in quantities}
    used += ["foret2021sharpness"] * ("worst" in kinds) + ["andriushchenko2023modern"] * ("average" in kinds)
    used += ["bengio2013estimating"] * any(whole.about["derivatives"] == "straight-through" for whole in comparisons)
    return "\n\n".join(entries[key] for key in used)


def shown(key: Any) -> str:
    """Write a name; the parts of a tuple side by side."""
    return " · ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _grouped(texts: Mapping[str, str]) -> str:
    """Join texts, each once; where they differ, with the names that they hold for."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    return " ".join(names) if len(names) < 2 else " ".join(f"{', '.join(who)}: {text}" for text, who in names.items())


def _grid(surface: Surface) -> str:
    points = " × ".join(str(len(steps)) for steps in (surface.alphas, surface.betas))
    failed = f" {surface.about['failed']} points failed." if surface.about.get("failed") else ""
    return f"Measured at {points} points.{failed}"


def _columns(networks: Iterable[Numbers]) -> list[str]:
    known = list(dict.fromkeys(itertools.chain.from_iterable(networks)))
    last = {kind: [q for q in known if q.startswith(f"{kind}_")][-1:] for kind in ("worst", "average")}
    return [q for q in _MEANINGS if q in known] + [q for kind in last.values() for q in kind]


def _range(quantity: str, networks: Iterable[Numbers]) -> tuple[float, float]:
    """Return the ends of a column's whiskers, with zero but for accuracies."""
    known = [numbers[quantity] for numbers in networks if quantity in numbers]
    ends = [v + sign * e for v, error in known for e in (0.0 if math.isnan(error) else error,) for sign in (-1, 1)]
    finite = [end for end in ends if math.isfinite(end)] + [0.0] * (quantity != "accuracy")
    return min(finite, default=0.0), max(finite, default=1.0)


def _cell(number: tuple[float, float] | None, ends: tuple[float, float]) -> str:
    """Return a number and, on the scale of its column, a dot with its error bar."""
    if number is None or not math.isfinite(number[0]):
        return "<td>–</td>"
    main, plus, rest = with_error(*number).partition(" ± ")
    text = main + f" <small>± {rest}</small>" * bool(plus)
    value, error = number[0], number[1] if math.isfinite(number[1]) else 0.0
    low, high = ends

    def place(at: float) -> str:
        return f"{min(max(100 * (at - low) / ((high - low) or 1), 0), 100):.1f}%"

    return (
        f"<td>{text}"
        '<svg aria-hidden="true"><line x1="0" x2="100%" y1="7" y2="7"/>'
        f'<line class="error" x1="{place(value - error)}" x2="{place(value + error)}" y1="7" y2="7"/>'
        f'<circle cx="{place(value)}" cy="7" r="3.5"/></svg></td>'
    )
