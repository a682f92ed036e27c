"""An explorer of loss landscapes for notebooks: choose, turn, slide, and take the figure away.

Work is done in steps of a forward pass or a product, on the kernel's own event loop between the messages that it
answers: never in a second thread, where the global switches that a measurement sets (random numbers, precision) would
reach the cells that run meanwhile. Front ends may deliver clicks in threads of their own, hence the lock.
"""

from __future__ import annotations

import asyncio
import html
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..checking import numbers, one_of, seed_of
from ..comparison import Comparison, quantity_label
from ..model import BatchObjective, Loss
from ..plotting import Kind, save_figure
from ..progress import duration
from ..results import with_error
from ..surfaces import Surface, grid
from .study import Study
from .views import KINDS, POINTS, QUANTITIES, View, code, cut, unique_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 128  # samples to begin with on a CPU
_STATIC = (
    "No notebook front end asked for this, so here is a static picture of all that was asked for. "
    "Run the cell in JupyterLab or Notebook to turn, slide and choose."
)
_SLICE, _PAUSE = 0.05, 0.01  # seconds of work, and for messages, in turn
_PICTURE = 0.3  # seconds between two pictures while work goes on


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
    single = isinstance(models, nn.Module)
    given: Mapping[Any, Any] = {"model": models} if isinstance(models, nn.Module) else models
    keys = unique_names(given, parts)
    grid(span, 3)
    one_of("points", points, POINTS)
    numbers(whole=True, at_least=2, optional=True, samples=samples)
    seed_of(seed)
    study = Study({name: given[key] for name, key in keys.items()}, data, loss=loss, objective=objective)
    on_cpu = all(tensor.device.type == "cpu" for model in study.models.values() for tensor in model.parameters())
    start = View((), span=float(span), points=points, samples=samples or (_FEW if on_cpu else None), seed=seed)
    explorer = Explorer(study, {} if single else keys, parts or (), start, Path(path))
    explorer.start()
    return explorer


class Explorer:
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
        from . import widgets as controls

        self.study, self._keys = study, dict(keys)
        self._loop, self._lock = _front_end_loop(), threading.RLock()
        self._task: asyncio.Task[None] | None = None
        self._job: Iterator[int] | None = None
        self._begun, self._done, self._total = 0.0, 0, 0
        self._drawn, self._drawn_at, self._pace, self._turning = -1, 0.0, _PICTURE, False
        self._pictures: dict[str, Any] = {}
        self._shown: dict[str, Surface] = {}
        self.controls = controls.controls(study, self._tuples(), parts, start, path)
        self.outputs = controls.outputs()
        self._sliders = [control for name, control in self.controls.items() if name.startswith("part ")]
        self.view = self._chosen()
        self.widget = controls.arranged(self.controls, self.outputs)
        self._connect()

    @property
    def live(self) -> bool:
        """Whether work goes on in the background, on the event loop of the kernel that a front end talks to."""
        return self._loop is not None

    @property
    def surfaces(self) -> dict[str, Surface]:
        """What is measured of what is chosen: of each panel the finest whole grid."""
        return self.study.shown(self.view)

    @property
    def comparison(self) -> Comparison:
        """What is measured of what is chosen, as `compare` gives it: to draw, save, read numbers from."""
        return self.study.comparison(self.view, self._lines(self.surfaces))

    def wait(self) -> Explorer:
        """Work until all is done, or until interrupted, which keeps what is there; return the explorer.

        Raises:
            ValueError: there is nothing to show, because every network fails.
        """
        try:
            while self._advance():
                pass
        except KeyboardInterrupt:
            self.stop()
        if self.study.errors and not self.surfaces:
            raise ValueError("; ".join(f"{name}: {text}" for name, text in self.study.errors.items()))
        return self

    def start(self, *_: Any) -> None:
        """Draw what there is, and compute what is missing: in the background if a front end is there."""
        with self._lock:
            self._end_job()
            try:
                self.view = self._chosen()
            except ValueError as error:
                self._say(str(error))
                return
            self._fit_slider()
            self._begun, self._done, self._total = time.perf_counter(), 0, self.study.work(self.view)
            self._job = self.study.steps(self.view) if self._total else None
            self.draw_again()
            self._report()
        if self._job is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._in_background)
        elif self._job is not None:
            self.wait()

    def stop(self, *_: Any) -> None:
        """Stop working and keep what is there."""
        with self._lock:
            self._end_job()
            self.draw_again()
            self._report()

    def save_figure(self, path: str | Path | None = None) -> list[Path]:
        """Write what is chosen as figures for print, PDF and PNG; return their paths."""
        import matplotlib.pyplot as plt

        stem, written = Path(path or self.controls["path"].value), []
        for kind in (kinds := KINDS[self.controls["kind"].value]):
            figure = self.draw(kind)
            name = stem if len(kinds) == 1 else stem.with_name(f"{stem.name}_{kind}")
            written += save_figure(figure, name)
            plt.close(figure)  # or the notebook would show it under the next cell
        return written

    def save(self, path: str | Path | None = None) -> Path:
        """Write surfaces, slices and numbers as netCDF, which `landscape.load` reads; return the path."""
        path = Path(path or self.controls["path"].value)
        return self.comparison.save(path if path.suffix == ".nc" else path.with_name(path.name + ".nc"))

    def draw(self, kind: Kind = "contour") -> Figure:
        """Draw what is chosen as a matplotlib figure, ``kind`` "contour" or "3d"."""
        value, scale = QUANTITIES[self.controls["quantity"].value]
        return self.comparison.draw(value=value, scale=scale, kind=kind)

    def code(self) -> str:
        """Write the lines that make the same picture without the explorer, from the same ``models`` and ``data``."""
        study, quantity, kind = self.study, self.controls["quantity"].value, self.controls["kind"].value
        given = [name for name, setting in study.settings.items() if setting is not None]
        return code(self.view, self._keys, quantity, kind, [*["data"] * study.own_data, *given])

    def draw_again(self, *_: Any) -> None:
        """Draw what is measured, without computing anything."""
        from . import panels

        with self._lock:
            began, shown = time.perf_counter(), self.surfaces
            waiting = len(shown) < len(self.view.panels()) and self._job is not None and not self.study.errors
            if not shown or waiting:
                return  # the last picture stays until there is one for every network
            self._shown = shown
            value, scale = QUANTITIES[self.controls["quantity"].value]
            axis = self.controls["axis"].value
            cuts = {name: cut(surface, axis, self.controls["slice"].value) for name, surface in shown.items()}
            kinds = KINDS[self.controls["kind"].value]
            figures: dict[str, Any] = {kind: panels.with_cuts(shown, kind, cuts, axis, value, scale) for kind in kinds}
            figures["slice"] = panels.slices(cuts, axis, value, scale)
            for name, figure in figures.items():
                self._pictures[name] = panels.updated(self._pictures.get(name), figure, self._turned)
            self._place(kinds)
            self._drawn, self._drawn_at = self.study.version, time.perf_counter()
            self._pace = max(_PICTURE, 4 * (self._drawn_at - began))

    def _chosen(self) -> View:
        """Read the controls.

        Raises:
            ValueError: no network is chosen, or none is trained with what the sliders say.
        """
        value = {name: control.value for name, control in self.controls.items()}
        names = list(value["models"])
        if self._sliders:
            key = tuple(slider.value for slider in self._sliders)
            matches = [name for name, known in self._tuples().items() if known == key]
            if not matches:
                raise ValueError(f"no network {key} among those given: move a slider")
            names = [*(name for name in names if name not in matches), *matches]
        if not names:
            raise ValueError("choose at least one network")
        settings = {
            name: value[name] for name in ("space", "batchnorm", "span", "points", "samples", "seed", "numbers")
        }
        return View(tuple(names), value["directions"], **settings)

    def _tuples(self) -> dict[str, tuple[Any, ...]]:
        return {name: key for name, key in self._keys.items() if isinstance(key, tuple)}

    def _fit_slider(self) -> None:
        """Let the slider of the slice run over the axis that is cut."""
        across = self.view.axes()[1 - self.controls["axis"].value]
        slider, low, high = self.controls["slice"], float(across[0]), float(across[-1])
        with slider.hold_trait_notifications():
            slider.value = min(max(slider.value, low), high)
            slider.min, slider.max, slider.step = low, high, (high - low) / 64

    def _lines(self, surfaces: Mapping[str, Surface]) -> dict[str, Any]:
        axis, at = self.controls["axis"].value, self.controls["slice"].value
        return {name: cut(surface, axis, at)[0] for name, surface in surfaces.items()}

    def _end_job(self) -> None:
        if self._job is not None:
            self._job.close()  # type: ignore[attr-defined]
        self._job = None

    def _advance(self) -> bool:
        """Work for a moment, then draw and say how far it is; tell whether anything is left."""
        with self._lock:
            if self._job is None:
                return False
            until, done = time.perf_counter() + _SLICE, False
            while not done:
                done = (cost := next(self._job, None)) is None
                self._done += cost or 0
                if time.perf_counter() >= until:
                    break
            self._job = None if done else self._job
            if done or (self.study.version > self._drawn and time.perf_counter() > self._drawn_at + self._pace):
                self.draw_again()
            self._report()
            return not done

    def _in_background(self) -> None:
        async def run() -> None:
            while self._advance():
                await asyncio.sleep(_PAUSE)

        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(run())

    def _connect(self) -> None:
        for name, control in self.controls.items():
            if name in ("quantity", "kind", "slice"):
                control.observe(self._guarded(self.draw_again), "value")
            elif name not in ("path", "linked"):
                control.observe(self._guarded(self.start), "value")
        self.outputs["stop"].on_click(self._guarded(self.stop))
        self.outputs["go on"].on_click(self._guarded(self.start))
        self.outputs["save figure"].on_click(self._guarded(lambda: self._wrote(*self.save_figure())))
        self.outputs["save data"].on_click(self._guarded(lambda: self._wrote(self.save())))
        self.outputs["copy code"].on_click(self._guarded(self._show_code))

    def _guarded(self, action: Callable[[], Any]) -> Callable[[Any], None]:
        """Show what goes wrong: an error in a callback is seen nowhere else."""

        def call(_: Any) -> None:
            try:
                action()
            except Exception as error:
                self._say(f"{type(error).__name__}: {error}")
                if self._loop is None:
                    raise

        return call

    def _left(self) -> bool:
        """Tell whether anything is missing that could be computed."""
        return self.study.work(self.view) > 0 and not self.study.errors

    def _wrote(self, *paths: Path) -> None:
        self._say("wrote " + ", ".join(map(str, paths)))

    def _show_code(self) -> None:
        self.outputs["code"].value = self.code()
        self.outputs["code"].layout.display = None

    def _place(self, kinds: tuple[str, ...]) -> None:
        """Put the pictures where they belong, if they are not there, and fill the table."""
        for area, pictures in (("pictures", kinds), ("slice", ("slice",))):
            children = tuple(self._pictures[name] for name in pictures)
            if self.outputs[area].children != children:
                self.outputs[area].children = children
        from . import widgets as controls

        rows = {
            name: {quantity_label(quantity): with_error(one.value, one.stderr) for quantity, one in row.items()}
            for name, row in self.study.numbers(self.view).items()
        }
        self.outputs["table"].value = controls.table_html(rows)

    def _turned(self, scene: str, camera: Any) -> None:
        from . import panels

        with self._lock:
            if self._turning or not self.controls["linked"].value:
                return
            self._turning = True
            try:
                panels.turn(self._pictures["3d"], scene, camera)
            finally:
                self._turning = False

    def _report(self) -> None:
        """Say how far the work is, what went wrong, and what the table holds."""
        bar = self.outputs["progress"]
        share = min(1.0, self._done / self._total) if self._total else 1.0
        if self._job is not None:
            seconds = time.perf_counter() - self._begun
            text = "working" if share < 0.02 else f"{duration(seconds * (1 / share - 1))} left"
        else:
            text = "stopped" if self._left() else "done"
        size = min((f"{len(s.alphas)} × {len(s.betas)} points" for s in self._shown.values()), default="")
        bar.value = 1.0 if text == "done" else share
        bar.bar_style = {"stopped": "warning", "done": "success"}.get(text, "")
        self.outputs["stop"].disabled = self._job is None
        self.outputs["go on"].disabled = self._job is not None or not self._left()
        self.outputs["said"].value = html.escape(" · ".join(filter(None, [size, text])))
        errors = [f"<b>{html.escape(name)}</b>: {html.escape(said)}" for name, said in self.study.errors.items()]
        self._say("<br>".join(errors), safe=True)

    def _say(self, text: str, safe: bool = False) -> None:
        self.outputs["message"].value = text if safe else html.escape(text, quote=False)

    def _repr_mimebundle_(self, **_: Any) -> Any:
        return self.widget._repr_mimebundle_() if self.live else {"text/plain": repr(self)}

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        if self.live:
            display(self.widget)
            return
        print(_STATIC)
        import matplotlib.pyplot as plt

        for kind in KINDS[self.controls["kind"].value]:
            (figure := self.draw(kind)).savefig(picture := io.BytesIO(), dpi="figure", bbox_inches="tight")
            plt.close(figure)
            display(Image(picture.getvalue()))  # whatever draws figures in this kernel

    def __repr__(self) -> str:
        points = {f"{len(one.alphas)}×{len(one.betas)}" for one in self.surfaces.values()}
        return f"Explorer({', '.join(self.view.panels())}: {', '.join(sorted(points)) or 'nothing yet'})"


def _front_end_loop() -> asyncio.AbstractEventLoop | None:
    """Return the kernel's event loop if what runs was sent by a notebook's front end, which names the cell."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or "cellId" not in kernel.get_parent("shell").get("metadata", {}):
        return None
    return asyncio.get_running_loop()
