"""An explorer of loss landscapes for notebooks: choose, turn, slide, and take the figure away."""

from __future__ import annotations

import asyncio
import base64
import html
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..checking import numbers, one_of, seed_of
from ..comparison import Comparison
from ..model import BatchObjective, Loss
from ..plotting import Kind, save_figure
from ..progress import duration, progress
from ..surfaces import Line, Surface, grid
from .event_loop import Worker
from .study import Study
from .views import KINDS, POINTS, View, code, cut, unique_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 128  # samples to begin with on a CPU
_STATIC = "A static picture of the explorer: run this cell in JupyterLab or Notebook to turn, slide and choose."
_PICTURE = 0.3  # seconds between two pictures while work goes on
_QUIET = 2.0  # seconds after which a static picture is drawn, which takes as long as many moves of a slider


def explore(
    models: nn.Module | Mapping[Any, nn.Module],
    data: Any = None,
    *,
    parts: tuple[str, ...] | None = None,
    span: float = 1.0,
    points: int = 17,
    samples: int | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    path: str | Path = "landscape",
) -> Explorer:
    """Open an explorer of the surfaces of one network or several: 3-D, contours, a slice, sharpness, all to choose.

    It computes from coarse to fine on the kernel's event loop, and draws as it goes. Nothing is computed twice. Where
    no front end asked for it (a script, nbconvert, a test), the call computes everything and shows a static picture.

    Args:
        models: a network, or name → network; not touched. Names may be tuples, such as ``("W4A4", 0.05)``: each part
            is then a slider over the trained networks.
        data: ``(x, y)`` or batches; default the probe that all networks carry.
        parts: what the parts of such names are called, for example ``("bits", "ρ")``.
        span, points, samples, seed: where it begins. Points are 5, 9, 17, 33 or 65 per side. Samples are drawn from the
            data, by default 128 on a CPU, where more take longer, and all on an accelerator.
        loss, objective: see `Objective`.
        path: what is saved goes to this name, with an ending of its own.

    Raises:
        TypeError: no network, or something else.
        ValueError: names that look alike or whose parts differ in number, unknown settings, no data.

    Cost: a forward pass per point and network; about 30 Hessian-vector products for a row of the table.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> explorer = landscape.explore(model, data, points=5)  # without a front end it computes all at once
        >>> list(explorer.surfaces)
        ['model']
    """
    given: Mapping[Any, Any] = {"model": models} if isinstance(models, nn.Module) else models
    keys = unique_names(given, parts)
    grid(span, 3)
    one_of("points", points, POINTS)
    numbers(whole=True, at_least=2, optional=True, samples=samples)
    seed_of(seed)
    study = Study({name: given[key] for name, key in keys.items()}, data, loss=loss, objective=objective)
    on_cpu = all(tensor.device.type == "cpu" for model in study.models.values() for tensor in model.parameters())
    start = View((), span=float(span), points=points, samples=samples or (_FEW if on_cpu else None), seed=seed)
    explorer = Explorer(study, keys if given is models else {}, parts or (), start, Path(path))
    explorer.start()
    return explorer


class Explorer(Worker):
    """What `explore` returns: the widgets, and the same by name, for code.

    Attributes:
        controls: name → widget; ``controls["span"].value = 0.5`` does what a hand would.
        widget: all of it, as it is displayed.
        live: whether a front end is there, and work goes on in the background.
        view: the settings that decide the numbers, as they are chosen.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> explorer = landscape.explore({'a': model, 'b': torch.nn.Linear(3, 2)}, data, points=5)
        >>> explorer.controls['span'].value = 0.5
        >>> explorer.surfaces['b'].alphas.tolist()
        [-0.5, -0.25, 0.0, 0.25, 0.5]
    """

    def __init__(self, study: Study, keys: Mapping[str, Any], parts: tuple[str, ...], start: View, path: Path) -> None:
        from . import panels, widgets  # and with them plotly and ipywidgets, which nobody else needs

        super().__init__(_front_end_loop())
        self._panels, self._widgets = panels, widgets
        self.study, self._keys, self._parts = study, dict(keys), parts
        self._begun, self._total = 0.0, 0
        self._drawn, self._next = -1, 0.0  # the version that is drawn, and when the next one may be
        self._shown: dict[str, Surface] = {}
        self._still: Any = None  # where the static picture is shown, and when it will be renewed
        self._timer: asyncio.TimerHandle | None = None
        self.controls = widgets.controls(study, self._tuples(), parts, start, path)
        self.outputs = widgets.outputs()
        self.picture = panels.Picture(library=panels.library())
        self.view = self._chosen()
        self.widget = widgets.arranged(self.controls, self.outputs, self.picture)
        self._connect()

    @property
    def surfaces(self) -> dict[str, Surface]:
        """What is measured of what is chosen: of each panel the finest whole grid."""
        self.study.look()
        return self.study.shown(self.view)

    @property
    def comparison(self) -> Comparison:
        """What is measured of what is chosen, as `compare` gives it: to draw, save, read numbers from."""
        lines = {name: line for name, (line, _) in self._cuts(self.surfaces).items()}
        return self.study.comparison(self.view, lines)

    def wait(self) -> Explorer:
        """Work until all is done, or until interrupted, which keeps what is there; return the explorer.

        Raises:
            ValueError: there is nothing to show, because every network fails.
        """
        for _ in progress(iter(self.advance, False), "explorer"):
            pass
        if self.study.errors and not self.surfaces:
            raise ValueError("; ".join(f"{name}: {text}" for name, text in self.study.errors.items()))
        return self

    def start(self, *_: Any) -> None:
        """Draw what there is, and compute what is missing: in the background if a front end is there."""
        self._ask("begin", self._begin)

    def stop(self, *_: Any) -> None:
        """Stop working and keep what is there."""
        self._end_job()
        self._worked(True)

    def save_figure(self, path: str | Path | None = None) -> list[Path]:
        """Write what is seen as figures for print, PDF and PNG: surfaces and their slice; return the paths."""
        import matplotlib.pyplot as plt

        stem, written = Path(path or self.controls["path"].value), []
        figures = {f"_{kind}" * (len(self._kinds) > 1): self.draw(kind) for kind in self._kinds}
        figures["_slice"] = self.comparison.draw_lines(**self._panels.resolved(self.surfaces, **self._drawing))
        for ending, figure in figures.items():
            written += save_figure(figure, stem.with_name(stem.name + ending))
            plt.close(figure)  # or the notebook would show it under the next cell
        return written

    def save(self, path: str | Path | None = None) -> Path:
        """Write surfaces, slices and numbers as netCDF, which `landscape.load` reads; return the path."""
        return self.comparison.save(self._path(path, ".nc"))

    def save_page(self, path: str | Path | None = None) -> Path:
        """Write a page that needs neither a kernel nor a network; return the path.

        It has all networks that are measured like those that are seen, with the sliders over the parts of their names.
        """
        from .offline import page

        path, whole, parts = self._path(path, ".html"), self.comparison, None
        if self.view.directions != "between":
            fine = {surface.loss.shape for surface in whole.surfaces.values()}
            whole = self.study.comparison(replace(self.view, names=tuple(self.study.models)))
            keys = {n: self._keys.get(n, n) for n, one in whole.surfaces.items() if one.loss.shape in fine}
            parts = self._parts if any(isinstance(key, tuple) for key in keys.values()) else None
            seeds = {key: whole.seeds[name] for name, key in keys.items()}
            whole = replace(whole, seeds=seeds, surfaces={key: whole.surfaces[name] for name, key in keys.items()})
        page(whole, path, parts=parts or None)
        return path

    def draw(self, kind: Kind = "contour") -> Figure:
        """Draw what is seen as a matplotlib figure, ``kind`` "contour" or "3d": turned and cut in the same way."""
        comparison, axis = self.comparison, self.controls["axis"].value
        drawn = self._panels.resolved(comparison.surfaces, **self._drawing)
        figure, cuts = comparison.draw(kind=kind, **drawn), self._cuts(comparison.surfaces)
        self._panels.draw_on(figure, cuts, kind, axis, self.picture.cameras, **drawn)
        return figure

    def code(self) -> str:
        """Write the lines that make the same picture without the explorer, from the same ``models`` and ``data``."""
        given = [name for name, setting in self.study.settings.items() if setting is not None]
        given = [*["data"] * self.study.own_data, *given]
        return code(self.view, self._keys, self._drawing, self._kinds, given, self.controls["own scales"].value)

    def draw_again(self, *_: Any) -> None:
        """Draw what is measured, without computing anything."""
        began, shown = time.perf_counter(), self.surfaces
        waiting = len(shown) < len(self.view.panels()) and self._job is not None and not self.study.errors
        if not shown or (waiting and self._shown):
            return  # the last picture stays, dimmed, until there is one for every network; the first comes as it may
        self._shown = shown
        self.controls["scale"].disabled = self.controls["quantity"].value != "loss"
        own, note = self.controls["own scales"].value, self.study.note(self.view)
        with self.picture.hold_sync():
            self.picture.figures = {
                kind: self._panels.surfaces_figure(shown, kind, note, own, **self._drawing) for kind in self._kinds
            }
            self._draw_cuts()
            self.picture.busy = ""
        self.outputs["table"].value = self._widgets.table_html(self.study.numbers(self.view))
        self._drawn, now = self.study.version, time.perf_counter()
        self._next = now + max(_PICTURE, 4 * (now - began))

    def _begin(self) -> None:
        self._end_job()
        self.study.doing = ""
        try:
            self.view = self._chosen()
        except ValueError as error:
            self.picture.busy = str(error)
            return self._say(str(error))
        self.study.look()
        self._begun, self._done, self._total = time.perf_counter(), 0, self.study.work(self.view)
        self._job = self.study.steps(self.view) if self._total else None
        self.picture.busy = "computing …"
        self.draw_again()
        self._report()

    def _worked(self, done: bool) -> None:
        if done or (self.study.version > self._drawn and time.perf_counter() > self._next):
            self.draw_again()
        self._report()

    def _chosen(self) -> View:
        """Read the controls.

        Raises:
            ValueError: no network is chosen, or none is trained with what the sliders say.
        """
        value = {name: control.value for name, control in self.controls.items()}
        chosen = set(value["models"])
        key = tuple(part for name, part in value.items() if name.startswith("part "))
        if key:
            matches = {name for name, known in self._tuples().items() if known == key}
            if not matches:
                raise ValueError(f"no network {key} among those given: move a slider")
            chosen |= matches
        if not chosen:
            raise ValueError("choose at least one network")
        settings = {field.name: value[field.name] for field in fields(View)[1:]}
        return View(tuple(name for name in self.study.models if name in chosen), **settings)

    @property
    def _drawing(self) -> dict[str, Any]:
        """What is drawn, and on which scale: an accuracy has no logarithm."""
        value, scale = (self.controls[name].value for name in ("quantity", "scale"))
        return {"value": value, "scale": scale if value == "loss" else "linear"}

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        return KINDS[self.controls["kind"].value]

    def _path(self, path: str | Path | None, ending: str) -> Path:
        path = Path(path or self.controls["path"].value)
        return path if path.suffix == ending else path.with_name(path.name + ending)

    def _tuples(self) -> dict[str, tuple[Any, ...]]:
        return {name: key for name, key in self._keys.items() if isinstance(key, tuple)}

    def _fit_slider(self) -> None:
        """Let the slider of the slice run over the rows of the axis that is cut, and stand at one of them."""
        grid, slider = self.view.stages()[-1], self.controls["slice"]
        across = (grid.betas if self.controls["axis"].value == 0 else grid.alphas).tolist()
        low, high, step = across[0], across[-1], (across[-1] - across[0]) / (len(across) - 1)
        row = min(across, key=lambda row: abs(row - slider.value))
        with slider.hold_trait_notifications():
            if abs(row - slider.value) > 1e-6 * step:  # else it is the browser's rounding
                slider.value = row
            slider.min, slider.max, slider.step = low, high, step

    def _cuts(self, surfaces: Mapping[str, Surface]) -> dict[str, tuple[Line, float]]:
        axis, at = self.controls["axis"].value, self.controls["slice"].value
        return {name: cut(surface, axis, at) for name, surface in surfaces.items()}

    def _draw_cuts(self) -> None:
        """Draw the slice, and on the surfaces the lines along which they are cut."""
        if self._shown:
            self._fit_slider()
            cuts, axis = self._cuts(self._shown), self.controls["axis"].value
            drawn = self._panels.resolved(self._shown, **self._drawing)
            lines = {kind: self._panels.cut_traces(cuts, kind, axis, **drawn) for kind in self._kinds}
            self.picture.cuts = lines | {"slice": self._panels.slice_figure(cuts, axis, **drawn)}

    def _connect(self) -> None:
        draw, begin = ("draw", self.draw_again), ("begin", self._begin)
        asks: dict[str, Any] = dict.fromkeys(("kind", "quantity", "scale", "own scales", "axis"), draw)
        asks["slice"] = ("slice", self._draw_cuts)
        for name, control in self.controls.items():
            if name not in ("linked", "path"):
                control.observe(self._asking(*asks.get(name, begin)), "value")
        actions: dict[str, Callable[[], Any]] = {
            "stop": self.stop,
            "go on": self._begin,
            "reset view": lambda: setattr(self.picture, "cameras", {}),
            "save figure": lambda: self._wrote(*self.save_figure()),
            "save data": lambda: self._wrote(self.save()),
            "save page": lambda: self._wrote(self.save_page()),
        }
        for name, action in actions.items():
            self.outputs[name].on_click(self._asking(name, action))
        self.outputs["show code"].observe(self._asking("code", lambda: None), "value")

    def _asking(self, name: str, action: Callable[[], Any]) -> Callable[[Any], None]:
        return lambda _: self._ask(name, action)

    def _wrote(self, *paths: Path) -> None:
        self._say("wrote " + ", ".join(map(str, paths)))

    def _report(self) -> None:
        """Say how far the work is, and what went wrong."""
        share = min(1.0, self._done / self._total) if self._total else 1.0
        left = self.study.work(self.view) > 0 and not self.study.errors
        state, doing, outputs = "stopped" if left else "done", "", self.outputs
        if self._job is not None:
            seconds, doing = time.perf_counter() - self._begun, f"computing {self.study.doing}"
            state = "working" if share < 0.02 else f"{duration(seconds * (1 / share - 1))} left"
            self.picture.busy = self.picture.busy and f"{doing} …"
        size = min((f"{len(s.alphas)} × {len(s.betas)} points" for s in self._shown.values()), default="")
        outputs["progress"].value = 1.0 if state == "done" else share
        outputs["progress"].bar_style = {"stopped": "warning", "done": "success"}.get(state, "")
        outputs["stop"].disabled, outputs["go on"].disabled = self._job is None, self._job is not None or not left
        doing = doing if "points" not in doing else ""  # which is seen
        outputs["said"].value = html.escape(" · ".join(filter(None, [size, state, doing])))
        outputs["message"].value = "<br>".join(
            f"<b>{html.escape(name)}</b>: {html.escape(said)}" for name, said in self.study.errors.items()
        )

    def _say(self, text: str) -> None:
        self.outputs["message"].value = html.escape(text, quote=False)

    def _changed(self) -> None:
        """Renew the code, and, once nothing has happened for a while, the static picture for where no kernel runs."""
        self.outputs["code"].value = self._widgets.code_html(self.code()) if self.outputs["show code"].value else ""
        if self._timer is not None:
            self._timer.cancel()
        if self._loop is not None and self._still is not None and self._job is None:

            def renew() -> None:
                self._still.update(self._still_bundle(), raw=True)

            self._timer = self._loop.call_later(_QUIET, lambda: self._guarded(renew))

    def _pictures(self) -> list[bytes]:
        """Draw what is seen as PNG, one for each kind of picture."""
        from ..plotting.paper import png

        return [png(self.draw(kind)) for kind in self._kinds]

    def _still_bundle(self) -> dict[str, Any]:
        """Return an output that is empty where the widgets are seen, and a picture everywhere else."""
        bundle: dict[str, Any] = self.outputs["still"]._repr_mimebundle_() | {"text/plain": ""}
        return bundle | ({"image/png": base64.b64encode(self._pictures()[0]).decode()} if self._shown else {})

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        if self.live:
            display(self.widget._repr_mimebundle_() | {"text/plain": repr(self)}, raw=True)
            self._still = display(self._still_bundle(), raw=True, display_id=True)
            return
        print(_STATIC)
        for picture in self._pictures():
            display(Image(picture))  # whatever draws figures in this kernel

    def __repr__(self) -> str:
        points = {f"{len(one.alphas)}×{len(one.betas)}" for one in self.surfaces.values()}
        return f"Explorer({', '.join(self.view.panels())}: {', '.join(sorted(points)) or 'nothing yet'})"


def _front_end_loop() -> asyncio.AbstractEventLoop | None:
    """Return the kernel's event loop if what runs was sent by a notebook's front end."""
    from ..plotting.interactive import asked

    return asyncio.get_running_loop() if asked() else None
