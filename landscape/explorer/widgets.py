"""The widgets of the explorer and where they stand; what they do is in `landscape.widgets`."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as w

from .study import Study
from .views import DIRECTIONS, KINDS, POINTS, QUANTITIES, View

_SPANS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)  # each half of the next: their grids share points
_SAMPLES = (128, 256, 512, 1024, 2048, 4096)
_WIDE, _LABEL = w.Layout(width="310px"), {"description_width": "92px"}


def controls(
    study: Study, tuples: Mapping[str, tuple[Any, ...]], parts: Sequence[str], start: View, path: Path
) -> dict[str, Any]:
    """Make all that can be chosen, name → widget.

    Args:
        study: the networks.
        tuples: name → key, of those whose parts become sliders.
        parts: what the parts are called.
        start: where it begins.
        path: where things are saved.
    """
    names = list(study.models)
    plain = [name for name in names if name not in tuples] or (names if not tuples else [])
    controls: dict[str, Any] = {}
    for index, values in enumerate(zip(*tuples.values(), strict=True)):
        name = parts[index] if index < len(parts) else f"part {index + 1}"
        controls[f"part {index + 1}"] = w.SelectionSlider(options=list(dict.fromkeys(values)), description=name)
    rows = min(5, max(2, len(names)))
    beside = "beside" if tuples else "networks"
    controls["models"] = w.SelectMultiple(options=names, value=plain[:3], rows=rows, description=beside)
    controls["quantity"] = w.Dropdown(options=list(QUANTITIES), description="quantity")
    controls["directions"] = w.Dropdown(options=DIRECTIONS, description="directions")
    controls["seed"] = w.BoundedIntText(value=start.seed, min=0, max=10**6, description="seed")
    controls["space"] = w.Dropdown(options=["quantized", "latent"], description="space")
    controls["space"].disabled = not any(study.rounded.values())
    controls["batchnorm"] = w.Dropdown(options=["fixed", "recomputed"], description="BatchNorm")
    spans = sorted({*_SPANS, start.span})
    controls["span"] = w.SelectionSlider(options=[(f"{s:g}", s) for s in spans], value=start.span, description="span")
    grids = [(f"{n} × {n}", n) for n in POINTS]
    controls["points"] = w.SelectionSlider(options=grids, value=start.points, description="points")
    controls["samples"] = _samples(study, start)
    controls["kind"] = w.ToggleButtons(options=list(KINDS), style={"button_width": "72px"})
    controls["linked"] = w.Checkbox(
        value=True, description="linked cameras", indent=False, layout=w.Layout(width="auto")
    )
    controls["numbers"] = w.Checkbox(
        value=start.numbers, description="curvature in the table", indent=False, layout=w.Layout(width="auto")
    )
    controls["axis"] = w.ToggleButtons(options=[("along 1", 0), ("along 2", 1)], style={"button_width": "72px"})
    controls["slice"] = w.FloatSlider(min=-1, max=1, value=0, step=0.01, readout_format=".2f", description="slice at")
    controls["path"] = w.Text(value=str(path), description="save as")
    for control in controls.values():
        if control.description and not isinstance(control, w.Checkbox):
            control.layout, control.style = w.Layout(width=_WIDE.width), _LABEL
    return controls


def outputs() -> dict[str, Any]:
    """Make the buttons, and what tells how far things are, name → widget."""
    short = w.Layout(width="132px")
    made: dict[str, Any] = {
        "stop": w.Button(description="Stop", icon="stop", layout=short, tooltip="keeps what is there"),
        "go on": w.Button(description="Go on", icon="play", layout=short, disabled=True),
        "save figure": w.Button(
            description="Save figure", icon="image", layout=short, tooltip="PDF and PNG, for print"
        ),
        "save data": w.Button(description="Save data", icon="save", layout=short, tooltip="netCDF"),
        "copy code": w.Button(
            description="Copy code", icon="code", layout=short, tooltip="the same picture without me"
        ),
        "progress": w.FloatProgress(max=1.0, layout=w.Layout(width="200px")),
        "said": w.HTML(),
        "message": w.HTML(),
        "table": w.HTML(),
        "code": w.Textarea(layout=w.Layout(width="100%", height="220px", display="none")),
        "pictures": w.VBox(layout=w.Layout(overflow="auto")),
        "slice": w.VBox(),
    }
    return made


def arranged(controls: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
    """Lay everything out: choices above, pictures, slice and table below them, what to take away at the end."""
    parts = [name for name in controls if name.startswith("part ")]
    columns = [
        [*parts, "models"],
        ["quantity", "directions", "seed", "space"],
        ["span", "points", "samples", "batchnorm"],
    ]
    across = w.Layout(flex_flow="row wrap", align_items="center", grid_gap="4px 12px")
    top = w.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="0 8px")
    choices = w.HBox([w.VBox([controls[name] for name in column]) for column in columns], layout=top)
    state = [outputs[name] for name in ("stop", "go on", "progress", "said")]
    view = [controls[name] for name in ("kind", "linked", "numbers")]
    cut = w.HBox([controls["slice"], controls["axis"]], layout=across)
    side = w.VBox([outputs["table"]], layout=w.Layout(overflow="auto"))
    below = w.HBox([outputs["slice"], side], layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))
    taken = [controls["path"], *(outputs[name] for name in ("save figure", "save data", "copy code"))]
    rows = [choices, w.HBox(state, layout=across), w.HBox(view, layout=across), outputs["message"], outputs["pictures"]]
    return w.VBox([*rows, cut, below, w.HBox(taken, layout=across), outputs["code"]])


def table_html(numbers: Mapping[str, Mapping[str, str]]) -> str:
    """Write a table, network → label → text, a column for each network."""
    labels = list(dict.fromkeys(label for row in numbers.values() for label in row))
    right = "padding: 3px 8px; text-align: right; white-space: nowrap"
    left = "padding: 3px 8px; text-align: left; font-weight: normal; min-width: 100px"
    head = "".join(f"<th style='{right}'>{html.escape(name)}</th>" for name in numbers)
    rows = "".join(
        f"<tr><th style='{left}'>{label}</th>"
        + "".join(f"<td style='{right}'>{row.get(label, '…')}</td>" for row in numbers.values())
        + "</tr>"
        for label in labels
    )
    return f"<table style='line-height: 1.4; font-size: 12px'><tr><th></th>{head}</tr>{rows}</table>"


def _samples(study: Study, start: View) -> Any:
    """Choose how many samples: what takes long is begun with few."""
    if study.rows is None:
        return w.Dropdown(options=[("all", None)], description="samples", disabled=True)
    options: list[tuple[str, int | None]] = [(f"{n:,}", n) for n in _SAMPLES if n < study.rows]
    if start.samples and start.samples < study.rows and start.samples not in _SAMPLES:
        options = sorted([*options, (f"{start.samples:,}", start.samples)], key=lambda option: option[1] or 0)
    chosen = start.samples if start.samples is None or start.samples < study.rows else None
    return w.Dropdown(options=[*options, (f"all {study.rows:,}", None)], value=chosen, description="samples")
