"""An objective over a plane, measured by replaying a recording of its loss: the same numbers, in less time.

The kernels that the loss of one batch calls are written down (`landscape.model.recording`), and called again at every
point, without the network's Python around them. A replay is compared with the objective at two points before it is
used, and at the last one; a network that cannot be recorded is measured by the objective.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import cuda_graphs
from .batches import KEPT, bytes_of, mapped
from .coordinates import Point
from .evaluation import Evaluation, merged
from .measuring import measurement_mode
from .objective import Objective
from .recording import Recording, UnrecordableError
from .walking import LARGE, Along

_PAYS = 100  # points, from which a recording pays: it takes as long as 30 to 80
_ALIGNED = 64  # bytes: where PyTorch's own tensors begin; elsewhere kernels may add up in another order


def columns(here: Evaluation, centre: Evaluation) -> Tensor:
    """Return loss, accuracy, the standard error of the loss's difference to the centre, and metrics."""
    return torch.stack([here.loss, here.accuracy, here.stderr(centre), *here.metrics])


class Replay:
    """The columns of an objective at many points of the plane of some directions.

    Args:
        objective: the function.
        steps: the directions.
        points: (points, axes) all that are to be measured; two of them are compared.

    Cost: at the first call, where it pays, about six passes over the data; memory for what moves, a copy for each
    direction and three more, and for what depends on the data alone. Large networks take no time in Python, and are
    not recorded.
    """

    def __init__(self, objective: Objective, steps: Sequence[Point], points: Tensor) -> None:
        self.objective, self.steps = objective, steps
        self._no_network = nn.Module()  # none runs in a replay: the switches of the process are all that matters
        self._no_network.register_buffer("device", torch.zeros((), device=objective.device))
        size = len(points)  # neither the first nor the last, and on both sides of the middle: one is the centre
        self._compared = points[[2 * size // 7, 6 * size // 7]].tolist() if size >= _PAYS else []
        self._recorded: _Recorded | None = None
        self._last: tuple[Sequence[float], Tensor] | None = None

    def __call__(self, coefficients: Sequence[Sequence[float]]) -> Tensor | None:
        """Return (points, columns), None where the objective itself has to be asked."""
        compared, self._compared = self._compared, []
        if compared:
            with self.objective.measurement_mode():
                self._recorded = self._trusted(compared)
        if self._recorded is None:
            return None
        with measurement_mode(self._no_network):  # a caught interrupt is raised at its end
            try:
                rows = self._recorded(coefficients)
            except Exception:  # the objective itself says what is wrong
                return None
        self._last = coefficients[-1], rows[-1]
        return rows

    def _trusted(self, compared: Sequence[Sequence[float]]) -> _Recorded | None:
        """Return a recording that gives what the objective gives; None where there is none."""
        try:
            recorded = _Recorded(self.objective, self.steps)
            pairs = zip(recorded(compared), map(self.row, compared), strict=True)
            return recorded if all(self._agree(*pair) for pair in pairs) else None
        except Exception:  # a network that cannot be recorded, or one that raises here
            return None

    def row(self, coefficients: Sequence[float]) -> Tensor:
        """Return the columns at one point, measured by the objective itself."""
        return columns(self.objective.evaluate(Along(self.steps, coefficients)), self.objective.centre)

    def is_confirmed(self) -> bool:
        """Return whether the objective itself gives the same at the last point that was replayed since last asked."""
        last, self._last = self._last, None
        return last is None or self._agree(last[1], self.row(last[0]))

    def _agree(self, replayed: Tensor, measured: Tensor) -> bool:
        """Return whether two rows are the same but for rounding errors, which activations that are rounded enlarge."""
        slack = 1e-4 if self.objective.coordinates.straight_through else 8 * torch.finfo(self.objective.dtype).eps
        near = (replayed - measured).abs() <= slack * torch.maximum(measured.abs(), measured[0].abs())
        return bool((near | (replayed.isnan() & measured.isnan())).all())


class _Recorded:
    """The batches of an objective, each with the recording of its kind; on a GPU a point is one CUDA graph."""

    def __init__(self, objective: Objective, steps: Sequence[Point]) -> None:
        network = objective.network
        is_sharded = bool(objective.coordinates.layouts)
        if objective.needs_grad or network.batchnorm != "fixed" or is_sharded or not objective.same_order:
            raise UnrecordableError
        if any(hasattr(module, "_orig_mod") for module in network.model.modules()):
            raise UnrecordableError("what is compiled would be compiled anew")
        self._weights, self._centre = _Weights(objective, steps), objective.centre
        kinds: dict[Any, Recording] = {}
        self._batches: list[tuple[Recording, list[Tensor], list[Any]]] = []
        self._columns: dict[int, Recording] = {}  # by the number of points
        room, held = float(KEPT), {tensor.untyped_storage().data_ptr() for tensor in self._weights.moving}
        for batch in objective.value_batches():
            leaves: list[Tensor] = []
            mapped(batch, lambda leaf: leaves.append(leaf) or leaf)  # type: ignore[func-returns-value] # noqa: B023
            ids = [*map(id, leaves)]  # two that are one tensor stay so
            kind = tuple((leaf.shape, leaf.stride(), leaf.dtype, ids.index(id(leaf))) for leaf in leaves)
            if (recording := kinds.get(kind)) is None:
                network.forget_folded()
                loss = partial(objective.loss, self._weights.tensors, batch)
                recording = Recording(loss, leaves, self._weights.moving)
                network.forget_folded()
            if recording.is_shared:
                kinds[kind] = recording
            fixed, result = recording.on(leaves)
            self._batches.append((recording, fixed, result))
            held |= {leaf.untyped_storage().data_ptr() for leaf in leaves}  # a slice of all data, say
            storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in fixed)}
            room -= bytes_of(batch) + sum(size for at, size in storages.items() if at not in held)  # views take none
            held |= storages.keys()
            if room < 0:
                raise UnrecordableError
        self._recordings = {recording for recording, _, _ in self._batches}
        self._captured: cuda_graphs.Captured | None = None
        if cuda_graphs.should_capture(objective.device, objective.coordinates.total) and objective.dtype.itemsize >= 4:
            self._place = torch.zeros(len(steps), dtype=objective.dtype, device=objective.device)
            with torch.no_grad(), cuda_graphs.side_stream(objective.device), contextlib.suppress(RuntimeError):
                self._captured = cuda_graphs.Captured(lambda: self._merged(*self._point(self._place)), objective.device)

    @torch.no_grad()
    def __call__(self, coefficients: Sequence[Sequence[float]]) -> Tensor:
        if self._captured is not None:
            return self._by_captured(self._captured, torch.tensor(coefficients, dtype=torch.float64).to(self._place))
        points = [*map(self._point, coefficients)]
        moving = [torch.stack(values) for values in zip(*points, strict=True)]
        if len(points) not in self._columns:
            self._columns[len(points)] = Recording(lambda: torch.vmap(self._merged)(*moving), moving, ())
        return self._columns[len(points)].on(moving)[1][0]

    def _by_captured(self, captured: cuda_graphs.Captured, coefficients: Tensor) -> Tensor:
        rows = []
        with cuda_graphs.side_stream(self._place.device):
            for row in coefficients:
                self._place.copy_(row)
                rows.append(captured().clone())
            return torch.stack(rows)

    def _point(self, coefficients: Sequence[float] | Tensor) -> list[Tensor]:
        self._weights.move(coefficients)
        shared = {each: each.by_weights(*each.constants) for each in self._recordings}
        batches = (each.by_both(*shared[each], *fixed) for each, fixed, _ in self._batches)
        return [value for batch in batches for value in batch]

    def _merged(self, *moving: Tensor) -> Tensor:
        rest = iter(moving)
        return columns(merged([each.result(known, rest) for each, _, known in self._batches], True), self._centre)


class _Weights:
    """The tensors that move, as views of one buffer, so that few kernels move them.

    Attributes:
        tensors: all that vary, by their names in the model; those that no direction moves as they are.
    """

    def __init__(self, objective: Objective, steps: Sequence[Point]) -> None:
        coordinates = objective.coordinates
        base = coordinates.base
        names = [name for name in base if any(name in step and step[name].any() for step in steps)]
        moving = {name: base[name] for name in names}
        like = next(iter(moving.values()))
        unit = _ALIGNED // like.element_size()
        sizes = [-(-tensor.numel() // unit) * unit for tensor in moving.values()]
        if sum(sizes) > LARGE or any((t.dtype, t.device) != (like.dtype, like.device) for t in moving.values()):
            raise UnrecordableError

        def laid_out(values: Point) -> tuple[Tensor, Point]:
            flat = like.new_zeros(sum(sizes))
            parts = zip(names, flat.split(sizes), strict=True)
            views = {
                n: p[: base[n].numel()].as_strided(base[n].shape, torch.empty_like(base[n]).stride()) for n, p in parts
            }
            for name in views.keys() & values.keys():
                views[name].copy_(values[name])
            return flat, views

        self._base, _ = laid_out(moving)
        self._steps = [laid_out(step)[0] for step in steps]
        self._here, views = laid_out(moving)
        self._term = torch.empty_like(self._here)
        self.moving = list(views.values())
        self.tensors = {coordinates.tensors[name]: views.get(name, value) for name, value in base.items()}

    def move(self, coefficients: Sequence[float] | Tensor) -> None:
        """Move the weights, in the order of sums of `Along` and `Coordinates.displaced`."""
        torch.mul(self._steps[0], coefficients[0], out=self._here)
        for step, coefficient in zip(self._steps[1:], coefficients[1:], strict=True):
            self._here.add_(torch.mul(step, coefficient, out=self._term))
        self._here.add_(self._base)
