"""What the explorer measured, by the settings that decide the numbers. No widget and no picture in here.

All work is done in steps of a forward pass or a product each; between two steps the networks are as they were.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..comparison import Comparison, Measured, check_models, common_probe, fit, merge_about, trace_and_top
from ..curvature import Hessian, eigenvalues_of
from ..linalg import lanczos
from ..model import (
    BatchObjective,
    Evaluation,
    Loss,
    Objective,
    Replay,
    describe,
    fingerprint,
    is_plain,
    probe_of,
    quantized_layers,
    resolve_directions,
    translated,
)
from ..surfaces import COLUMNS, COMPUTED, FAILED, Line, Surface, evaluate_points
from .views import Grid, Stages, View, rows

_NUMBERS_AFTER = 9  # the table is filled once the pictures have so many points a side
_PRODUCT, _PRODUCTS = 5, 30  # forward passes in a product, about; products for a row of the table
_FOLDS = 5  # of the data, for the error of an eigenvalue


@dataclass
class Plane:
    """One network, two directions, and the points measured so far: key of a point → loss, accuracy, stderr."""

    replay: Replay
    about: dict[str, Any]
    rows: dict[Any, list[float]] = field(default_factory=dict)
    _last: tuple[Grid, Surface] | None = None

    def measure(self, key: Any, point: tuple[float, float]) -> None:
        """Measure one point. Cost: a forward pass over the data (two with recomputed statistics)."""
        values, failure = evaluate_points(self.replay, torch.tensor([point], dtype=torch.float64))
        self.rows[key] = values[0].tolist()
        if failure:
            self.about.setdefault("first_failure", failure)

    def missing(self, grid: Grid) -> int:
        """Count those of a grid's points that are not measured."""
        return len(grid.new.keys() - self.rows.keys())

    def finest(self, stages: Stages) -> Surface | None:
        """Return the finest of the grids that is whole, as a surface."""
        whole = list(itertools.takewhile(lambda grid: not self.missing(grid), stages))
        if not whole:
            return None
        grid = whole[-1]
        if self._last is None or self._last[0] is not grid:
            table = torch.tensor([self.rows[key] for key in grid.points()], dtype=torch.float64)
            table = table.view(len(grid.alphas), len(grid.betas), len(COLUMNS))
            status = torch.where(table[..., 0].isfinite(), COMPUTED, FAILED).to(torch.int8)
            columns: dict[str, Any] = dict(zip(COLUMNS, table.unbind(-1), strict=True))
            about = self.about | {"evaluated": status.numel()}
            self._last = grid, Surface(about, grid.alphas, grid.betas, status=status, **columns)
        return self._last[1]


class Study:
    """Networks, data, and all that was measured of them, by the settings that decide the numbers.

    Args:
        models: name → network; not touched.
        data: ``(x, y)`` or batches; default the probe that all networks carry.
        loss, objective: see `Objective`.

    Attributes:
        errors: name → what went wrong with a network in the last work.
        version: a count that increases whenever there is something new to show.
        doing: what it is at, in words.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        data: Any = None,
        *,
        loss: Loss | None = None,
        objective: BatchObjective | None = None,
    ) -> None:
        groups = {name: [model] for name, model in models.items()}
        check_models(groups)
        self.models = dict(models)
        self.settings: dict[str, Any] = {"loss": loss, "objective": objective}
        self.data = common_probe(groups) if data is None else probe_of(data)
        self.own_data = data is not None
        parts = self.data if isinstance(self.data, tuple | list) else ()
        tensors = bool(parts) and all(isinstance(part, Tensor) for part in parts)
        self.rows = len(parts[0]) if tensors and objective is None else None
        self.rounded = {name: self._is_rounded(model) for name, model in models.items()}
        self.errors: dict[str, str] = {}
        self.version, self.doing = 0, ""
        self._known: dict[Any, Any] = {}  # functions, planes, eigenvectors and numbers; see `_key`
        self._underway: dict[Any, Generator[None, None, Any]] = {}
        self.look()

    def look(self) -> None:
        """Tell one state of the networks' weights from another, also one written through ``.data``."""
        self._states: dict[str, str] = {}
        for name, model in self.models.items():
            with translated("a look at the weights", model):
                self._states[name] = fingerprint(dict(model.named_parameters()) | dict(model.named_buffers()))

    def _is_rounded(self, model: nn.Module) -> bool:
        if is_plain(model) or quantized_layers(model):
            return not is_plain(model)
        with contextlib.suppress(Exception):  # which are shown where its panel is measured
            return bool(Objective(model, self._data(8), **self.settings, validate=False).rounded)
        return False

    def shown(self, view: View) -> dict[str, Surface]:
        """Return the finest whole grid of each panel that is measured; computes nothing."""
        surfaces = {}
        for panel, name in zip(view.panels(), view.names, strict=False):
            plane = self._known.get(self._key(name, view, "plane"))
            if plane and (surface := plane.finest(view.stages())) is not None:
                surfaces[panel] = surface
        return surfaces

    def note(self, view: View) -> str:
        """Say what a reader must know of the view beside what the surfaces say of themselves."""
        if view.directions != "between":
            return ""
        first, other, *more = view.names
        text = f"at 1: {other}"
        if self.rounded[first] or self.rounded[other]:
            latent = self.rounded[first] and view.space == "latent"
            kind = ("latent " if latent else "rounded ") * self.rounded[other]
            text = f"at 1 stand the {kind}weights of {other} inside {first}" + ", rounded as its own" * latent
        return f"{text}, not shown: {', '.join(more)}" if more else text

    def numbers(self, view: View) -> dict[str, dict[str, Measured]]:
        """Return name → quantity → number, as far as they are known; computes nothing."""
        numbers: dict[str, dict[str, Measured]] = {}
        for name in view.names:
            if known := self._known.get(self._key(name, view, "function")):
                numbers[name] = fit(known[1]) | self._known.get(self._key(name, view, "numbers"), {})
        return numbers

    def comparison(self, view: View, lines: Mapping[str, Line] | None = None) -> Comparison:
        """Put what there is together, to draw or to save.

        Raises:
            ValueError: there is nothing yet.
        """
        surfaces, numbers = self.shown(view), self.numbers(view)
        if not surfaces:
            raise ValueError("nothing is computed yet: let the explorer work for a moment")
        seeds = {name: [{q: asdict(one) for q, one in row.items()}] for name, row in numbers.items()}
        about = merge_about([surface.about for surface in surfaces.values()]) | {"seed": view.seed}
        return Comparison(about, seeds, dict(lines or {}), surfaces)

    def work(self, view: View) -> int:
        """Count the steps that are left, in forward passes, about."""
        per_point, left = 2 if view.batchnorm == "recomputed" else 1, 0
        for name in view.names[: len(view.panels())]:
            plane = self._known.get(self._key(name, view, "plane"))
            left += per_point * sum(plane.missing(grid) if plane else len(grid.new) for grid in view.stages())
        if view.directions == "eigenvectors":
            left += 15 * _PRODUCT * sum(self._key(name, view, "eigen") not in self._known for name in view.names)
        waiting = [name for name in view.names if self._key(name, view, "numbers") not in self._known]
        return left + _PRODUCT * _PRODUCTS * len(waiting) * view.numbers

    def steps(self, view: View) -> Iterator[int]:
        """Compute what is missing, all networks in turn; pause after each step, giving its cost in forward passes.

        What goes wrong with one network lands in ``errors``, and the others go on.
        """
        self.errors.clear()
        filled = not view.numbers
        for grid in view.stages():
            self.look()
            for name in view.names[: len(view.panels())]:
                yield from self._guarded(name, self._points(name, view, grid))
            done = min(len(grid.alphas), len(grid.betas)) >= min(_NUMBERS_AFTER, view.points)
            if done and not filled:
                filled = True
                for name in view.names:
                    yield from self._guarded(name, self._curvature(name, view))

    def _guarded(self, name: str, steps: Iterator[int]) -> Iterator[int]:
        if name in self.errors:
            return
        try:
            yield from steps
        except Exception as error:
            self.errors[name] = f"{error}" or type(error).__name__
            self.version += 1

    def _points(self, name: str, view: View, grid: Grid) -> Iterator[int]:
        key, cost = self._key(name, view, "plane"), 2 if view.batchnorm == "recomputed" else 1
        if key not in self._known:
            yield from self._new_plane(name, view)
        plane, self.doing = self._known[key], f"{len(grid.alphas)} × {len(grid.betas)} points"
        for point in grid.new:
            if point not in plane.rows:
                plane.measure(point, grid.new[point])
                yield cost
        is_last = len(grid.alphas) == len(grid.betas) == view.points
        if is_last and not plane.replay.is_confirmed():
            plane.replay = Replay(plane.replay.objective, plane.replay.steps, torch.empty(0, 2))
            for known in view.stages():
                for point in known.new.keys() & plane.rows.keys() - {(0.0, 0.0)}:
                    plane.measure(point, known.new[point])
                    yield cost
        self.version += 1

    def _new_plane(self, name: str, view: View) -> Iterator[int]:
        function, centre = self._function(name, view)
        yield 0
        given: list[Any] = ["random", "random"]
        if view.directions == "between":
            given[0] = self.models[view.names[1]]
        eigen = None
        if view.directions == "eigenvectors":
            self.doing = "top eigenvectors"
            yield from self._eigenvectors(name, view)
            given, eigen = ["eigenvectors"] * 2, self._known[self._key(name, view, "eigen")]
        steps, axes = resolve_directions(function, given, "filter", view.seed, eigen)
        about = function.about(**describe(axes), seed=view.seed)
        finest = view.stages()[-1]
        replay = Replay(function, steps, torch.cartesian_prod(finest.alphas, finest.betas))
        # the model itself is known, and is the same point in every plane
        here = torch.stack([centre.loss, centre.accuracy, centre.stderr(centre)])
        self._known[self._key(name, view, "plane")] = Plane(replay, about, {(0.0, 0.0): here.tolist()})

    def _function(self, name: str, view: View) -> tuple[Objective, Evaluation]:
        key = self._key(name, view, "function")
        if key not in self._known:
            self._forget(key)
            settings = self.settings | {"space": view.space, "batchnorm": view.batchnorm}
            function = Objective(self.models[name], self._data(view.samples), **settings)
            self._known[key] = function, function.centre
        return self._known[key]  # type: ignore[no-any-return]

    def _forget(self, key: Any) -> None:
        """Drop what was measured of a network that has changed since."""
        for store in (self._known, self._underway):
            for old in [old for old in store if old[:1] == key[:1] and old[1] != key[1]]:
                del store[old]

    def _hessian(self, name: str, view: View) -> Hessian:
        settings: dict[str, Any] = self.settings | {"space": view.space}
        model, data = self.models[name], self._data(view.samples)
        if self.rows is not None:  # in parts, whose scatter is the error over the data, where the loss allows for it
            with contextlib.suppress(ValueError):
                return Hessian(Objective(model, data, batch_size=max(8, -(-len(data[0]) // _FOLDS)), **settings))
        return Hessian(model, data, **settings)

    def _eigenvectors(self, name: str, view: View) -> Iterator[int]:
        key = self._key(name, view, "eigen")
        if key not in self._known:
            hessian = self._hessian(name, view)
            pairs = yield from self._resumed(key, lambda: lanczos.steps(hessian, 2, seed=view.seed))
            top = eigenvalues_of(hessian, pairs, 1e-3)
            self._known[key] = replace(top, about=hessian.about() | top.about)

    def _curvature(self, name: str, view: View) -> Iterator[int]:
        self._function(name, view)
        key, self.doing = self._key(name, view, "numbers"), f"curvature of {name}"
        if key not in self._known:
            self._known[key] = yield from self._resumed(
                key, lambda: trace_and_top.steps(self._hessian(name, view).filter_relative(), "filter", 0.05, view.seed)
            )
        self.version += 1

    def _resumed(self, key: Any, begin: Callable[[], Generator[None, None, Any]]) -> Generator[int, None, Any]:
        """Run what pauses after each product; after a stop it goes on where it was."""
        if key not in self._underway:
            self._underway[key] = begin()
        while True:
            try:
                next(self._underway[key])
            except BaseException as end:  # whatever it raised, it is at its end, after Ctrl-C as well
                del self._underway[key]
                if isinstance(end, StopIteration):
                    return end.value
                raise
            yield _PRODUCT  # a generator closed here leaves the one under way as it is

    def _data(self, samples: int | None) -> Any:
        if samples is None or self.rows is None or samples >= self.rows:
            return self.data
        chosen = rows(self.rows, samples)
        return tuple(part[chosen] for part in self.data)

    def _key(self, name: str, view: View, kind: str) -> tuple[Any, ...]:
        """Return what decides a number: the network as it stands, and the settings that matter for it."""
        key = (name, self._states[name], kind, view.samples, view.space if self.rounded[name] else "float")
        if kind == "function":
            return (*key, view.batchnorm)
        if kind == "plane":
            towards = view.names[1:2] if view.directions == "between" else ()
            states = [self._states[other] for other in towards]
            return (*key, view.batchnorm, view.directions, *towards, *states, view.seed)
        return (*key, view.seed)  # products know fixed statistics alone
