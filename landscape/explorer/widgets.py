"""The widgets of the explorer and where they stand; what they do is in `landscape.explorer.app`."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as w
import traitlets

from ..comparison import Measured, quantity_label
from ..results import with_error
from .study import Study
from .views import DIRECTIONS, KINDS, POINTS, QUANTITIES, SCALES, View

_SPANS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)  # each half of the next: their grids share points
_SAMPLES = (128, 256, 512, 1024, 2048, 4096)
_COLUMN = ("quantity", "scale", "own scales", "directions")  # and what is seldom changed, folded away:
_MORE = ("seed", "span", "points", "samples", "space", "batchnorm", "numbers")
_GONE = "<div class='landscape-gone'>The kernel is gone: run the cell again.</div>"
# innerText would wait for a layout; a page that is not on https has no clipboard, but knows the older command
_COPY = (
    "const b = this, t = b.parentNode.querySelector('pre').textContent, done = () => { b.textContent = 'Copied'; }, "
    "old = () => { const a = document.createElement('textarea'); a.value = t; document.body.append(a); a.select(); "
    "document.execCommand('copy'); a.remove(); done(); }; "
    "navigator.clipboard ? navigator.clipboard.writeText(t).then(done, old) : old();"
)


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
    controls["quantity"] = w.Dropdown(options=QUANTITIES, description="quantity")
    controls["scale"] = w.Dropdown(options=SCALES, description="scale")
    controls["own scales"] = w.Checkbox(description="each panel on its own scale", indent=False)
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
    controls["numbers"] = w.Checkbox(value=start.numbers, description="curvature in the table", indent=False)
    controls["path"] = w.Text(value=str(path), description="save as")
    for control in controls.values():
        if not isinstance(control, w.Checkbox):
            control.style = {"description_width": "84px"}
        control.layout = w.Layout(width="250px")
    controls["kind"] = w.ToggleButtons(options=list(KINDS))
    controls["linked"] = w.Checkbox(value=True, description="linked", indent=False, layout=w.Layout(width="auto"))
    controls["axis"] = w.ToggleButtons(options=[("along 1", 0), ("along 2", 1)])
    controls["slice"] = w.FloatSlider(min=-1, max=1, step=0.01, readout_format=".3g", description="slice at")
    controls["slice"].layout, controls["slice"].style = w.Layout(width="230px"), {"description_width": "48px"}
    return controls


def outputs() -> dict[str, Any]:
    """Make the buttons, and what tells how far things are, name → widget."""
    buttons = {
        "stop": ("Stop", "stop", "keeps what is there"),
        "go on": ("Go on", "play", "computes what is missing"),
        "reset view": ("Reset view", "home", "turns the surfaces back"),
        "save figure": ("Save figure", "image", "what is seen, as PDF and PNG for print"),
        "save data": ("Save data", "save", "netCDF"),
        "save page": ("Save page", "globe", "a page to send: it needs no kernel"),
    }
    made: dict[str, Any] = {
        name: w.Button(description=text, icon=icon, tooltip=tip, layout=w.Layout(width="auto"))
        for name, (text, icon, tip) in buttons.items()
    }
    made["go on"].disabled = True
    made["fold"] = w.ToggleButton(value=True, description="Controls", icon="bars", layout=w.Layout(width="auto"))
    made["more"] = w.ToggleButton(description="More", icon="sliders", tooltip="seed, span, points, samples, space")
    made["show code"] = w.ToggleButton(description="Code", icon="code", tooltip="the same picture without me")
    made["more"].layout = made["show code"].layout = w.Layout(width="auto")
    made["progress"] = w.FloatProgress(max=1.0, layout=w.Layout(width="70px"))
    made |= {name: w.HTML() for name in ("said", "message", "table", "code")}
    made["still"] = w.Box(layout=w.Layout(display="none"))  # stands where other viewers see a picture
    return made


def arranged(controls: Mapping[str, Any], outputs: Mapping[str, Any], picture: Any) -> Any:
    """Lay everything out: choices in a column that folds away, beside it the pictures, and what to take away."""
    parts = [name for name in controls if name.startswith("part ")]
    more = _box(w.VBox, "more", [controls[name] for name in _MORE])
    column = [*(controls[name] for name in (*parts, "models", *_COLUMN)), outputs["more"], more]
    left = _box(w.VBox, "controls", column)
    for button, folded in (("fold", left), ("more", more)):
        _unfold(outputs[button], folded)
    top = [outputs["fold"], controls["kind"]]
    top += [outputs[name] for name in ("reset view", "stop", "go on", "progress", "said")]
    cut = [controls["slice"], controls["axis"], controls["linked"]]
    take = [controls["path"], *(outputs[name] for name in ("save figure", "save data", "save page", "show code"))]
    traitlets.link((controls["linked"], "value"), (picture, "linked"))
    table = _box(w.VBox, "scroll", [outputs["table"]])
    for name in ("table", "said"):
        outputs[name].add_class(f"landscape-{name}")
    main = [_box(w.HBox, "row", cut), picture, table, _box(w.HBox, "row", take), outputs["code"]]
    body = _box(w.HBox, "body", [left, _box(w.VBox, "main", main)])
    return _box(w.VBox, "explorer", [w.HTML(_GONE), _box(w.HBox, "row", top), outputs["message"], body])


def _box(kind: Any, name: str, children: Sequence[Any]) -> Any:
    box = kind(children)
    box.add_class(f"landscape-{name}")
    return box


def _unfold(button: Any, box: Any) -> None:
    """Let a button show and hide a box."""

    def show(_: Any = None) -> None:
        box.layout.display = None if button.value else "none"

    button.observe(show, "value")
    show()


def table_html(numbers: Mapping[str, Mapping[str, Measured]]) -> str:
    """Write a table of network → quantity → number, a column for each network."""
    quantities = dict.fromkeys(quantity for row in numbers.values() for quantity in row)
    rows = [[quantity_label(one), *(_cell(row.get(one)) for row in numbers.values())] for one in quantities]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *numbers))
    body = "".join(f"<tr><th>{label}</th><td>{'</td><td>'.join(cells)}</td></tr>" for label, *cells in rows)
    return f"<table><tr>{head}</tr>{body}</table>" + "<small>† stopped before its tolerance</small>" * ("†" in body)


def _cell(one: Measured | None) -> str:
    """Write a number with its error; without one, three digits are more than is known."""
    if one is None:
        return "…"
    text = with_error(one.value, one.stderr) if one.stderr > 0 else f"{one.value:#.3g}".rstrip(".")
    return text.replace("-", "−") + " †" * (not one.converged)


def code_html(text: str) -> str:
    """Write lines of code, with a button that copies them."""
    button = f'<button class="jupyter-button lm-mod-primary" onclick="{html.escape(_COPY)}">Copy</button>'
    return f'<div class="landscape-code">{button}<pre>{html.escape(text)}</pre></div>'


def _samples(study: Study, start: View) -> Any:
    """Choose how many samples: what takes long is begun with few."""
    if study.rows is None:
        return w.Dropdown(options=[("all", None)], description="samples", disabled=True)
    options: list[tuple[str, int | None]] = [(f"{n:,}", n) for n in _SAMPLES if n < study.rows]
    if start.samples and start.samples < study.rows and start.samples not in _SAMPLES:
        options = sorted([*options, (f"{start.samples:,}", start.samples)], key=lambda option: option[1] or 0)
    chosen = start.samples if start.samples is None or start.samples < study.rows else None
    return w.Dropdown(options=[*options, (f"all {study.rows:,}", None)], value=chosen, description="samples")
