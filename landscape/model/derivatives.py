"""Whether derivatives are what they are called: measured on a few samples, in float64, by central differences.

The directional derivative of the loss is compared with what the gradient says, along two directions, and that of the
gradient with a product. Agreement at any step is agreement: nothing fakes it. Disagreement has to be the same at two
steps, because a kink (ReLU) between two points disagrees as well, but goes away with the step. What the network rounds
is seen in one forward pass that follows everything computed from the varied tensors.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .batches import some_rows
from .coordinates import Coordinates
from .watching import Watch

Label = Literal["exact", "straight-through", "unverified", "not measured"]
Point = list[Tensor]
_ROWS = 8
_MOST = 2**22  # weights that differences are taken by; of more, one tensor of each kind
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_STEPS = {1: (1e-6, 1e-7, 1e-5, 1e-8), 2: (1e-7, 1e-8, 1e-9, 1e-6)}  # relative to the weights, in this order
_TOLERANCE = 1e-5


class Verdict(NamedTuple):
    """What differences say.

    Attributes:
        label: what a result calls its derivatives.
        reason: what was seen, in words.
        wrong: the order of the derivative that is none, 0 where both are.
    """

    label: Label
    reason: str = ""
    wrong: int = 0

    def check(self, order: int) -> None:
        """Raise if a derivative up to this order is wrong.

        Raises:
            ValueError: with what differences say instead.
        """
        if 0 < self.wrong <= order:
            way = ", take differences of gradients, landscape.Hessian(…, products='difference')," * (self.wrong == 2)
            raise ValueError(
                f"{self.reason}. The backward pass of some operation is not its derivative (a hand-written "
                f"autograd.Function, a hook, detach); replace it{way} or measure what needs no such derivative"
            )


class _Test(NamedTuple):
    outcome: Literal["ok", "fails", "weak", "unknown"]
    measured: float = 0.0
    claimed: float = 0.0


def verify(objective: Any) -> Verdict:
    """Compare gradient and product of an `Objective` with differences, on a few samples of its first batch.

    Cost: seven forward passes, gradients of three and a product, of eight samples in float64; up to six passes more
    where many kinks are near a point of small derivatives, and more again where both disagree. Of more than four
    million weights one tensor of each kind of module is differentiated by; roundings are looked for in all.
    """
    whole = next(iter(objective.batches()))
    few = some_rows(whole, _ROWS)
    if few is not None:
        try:
            verdict = _verified(objective, few)
            if verdict.label != "unverified" or verdict.wrong:
                return verdict
        except Exception:  # the network takes no eight samples
            pass
    return _verified(objective, whole)


def _verified(objective: Any, batch: Any) -> Verdict:
    function, reason = _Function(objective, batch, True), ""
    try:
        watched = function.watched()
    except Exception as error:
        reason = f"not in float64: {error}"
    if reason:
        function = _Function(objective, batch, False)
        watched = function.watched()
    verdict = _judged(function, *watched, reason)
    if verdict.wrong:  # the network itself may stand on a kink: units at exactly zero
        function.step_aside()
        verdict = _judged(function, *function.watched(), reason)
    return verdict


def _judged(function: _Function, watch: Watch, loss: Tensor, leaves: Point, gradient: Point, reason: str) -> Verdict:
    """Turn the differences into a label."""
    rounded = dict(watch.rounded)
    through = f"rounds what varies ({_counted(rounded)}): derivatives are those of the straight-through estimator"
    if not function.is_wide:  # differences in float32 tell too little: roundings can be seen all the same
        return Verdict("straight-through", through) if rounded else Verdict("unverified", reason)
    random, along = function.directions(gradient)
    steps = 1 if rounded else len(_STEPS[1])  # a staircase is not worth more
    first = _worst([_first(function, float(loss), gradient, d, steps) for d in (random, along) if d is not None])
    if first.outcome == "fails" and not rounded and watch.steps:
        through = f"decides by what varies ({_counted(watch.steps)}): derivatives know nothing of the steps"
        rounded = dict(watch.steps)
    if rounded and first.outcome != "ok":
        return Verdict("straight-through", through)
    if first.outcome == "fails":
        return Verdict("unverified", _gap("the gradient of the loss is not its derivative", first), 1)
    try:
        product = function.product(gradient, leaves, random)
    except (RuntimeError, NotImplementedError):
        return Verdict("exact", "of the first order; a second derivative is missing")
    central = partial(function.gradient_difference, random)
    second = _compared(_STEPS[2][:steps], central, product, function.norm(gradient), function.norm)
    if rounded:
        if second.outcome in ("ok", "weak"):
            return Verdict("exact", f"rounds on the way ({_counted(rounded)})")
        return Verdict("straight-through", through)
    if second.outcome == "fails":
        return Verdict("unverified", _gap("the derivative of the gradient is not what a product says", second), 2)
    if "unknown" in (first.outcome, second.outcome):
        return Verdict("unverified", _gap("differences could not decide (many kinks?)", second))
    return Verdict("exact")


class _Function:
    """The loss of a batch as a function of a list of tensors, in float64 where it is wide."""

    def __init__(self, objective: Any, batch: Any, is_wide: bool) -> None:
        self.objective, self.is_wide = copy.copy(objective), is_wide
        self.objective.criterion = objective.criterion.alone()
        self.network = self.objective.network = objective.network.plain()
        self.coordinates = objective.coordinates
        base, self.chosen = objective.tensors(), _of_each_kind(objective.model, objective.coordinates)
        moves = self.coordinates.tensors
        self.names, self.batch = [moves[n] for n in self.chosen], tree_map(self._cast, batch) if is_wide else batch
        whole = self.network.frozen | base
        self.rest = {name: self._cast(tensor) for name, tensor in whole.items() if name not in self.names}
        self.also_varies = [self.rest[name] for name in base if name in self.rest]
        self.point = [self._cast(base[name]) for name in self.names]
        self.masks = objective.coordinates.masks

    def __call__(self, point: Sequence[Tensor]) -> Tensor:
        tensors = self.rest | dict(zip(self.names, point, strict=True))
        with self._width():
            return self.objective.loss(tensors, self.batch).mean

    def step_aside(self) -> None:
        """Move the point a little, at random: the check is of the code, not of a place."""
        random, _ = self.directions([torch.zeros_like(tensor) for tensor in self.point])
        self.point = self._moved(random, 1e-3)

    def watched(self) -> tuple[Watch, Tensor, Point, Point]:
        """Return what is rounded on the way, the loss, the leaves and the gradient with its graph."""
        leaves = [tensor.detach().clone().requires_grad_() for tensor in self.point]
        with torch.enable_grad():
            with Watch([*leaves, *self.also_varies]) as watch:
                loss = self(leaves)
            return watch, loss.detach(), leaves, self._derivative(loss, leaves)

    def difference(self, direction: Point, step: float) -> Point:
        """Return (f(step) - f(-step)) / 2 step along a direction."""
        with torch.set_grad_enabled(self.objective.needs_grad):
            ahead, behind = (self(self._moved(direction, way)).detach().double() for way in (step, -step))
        return [(ahead - behind) / (2 * step)]

    def gradient_difference(self, direction: Point, step: float) -> Point:
        """Return the same of the gradient."""
        ends = []
        for way in (step, -step):
            leaves = [tensor.detach().requires_grad_() for tensor in self._moved(direction, way)]
            with torch.enable_grad():
                ends.append(self._derivative(self(leaves), leaves, graph=False))
        return [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]

    def product(self, gradient: Point, leaves: Point, direction: Point) -> Point:
        """Return the Hessian times a direction."""
        self.network.swap_in(self.rest | dict(zip(self.names, leaves, strict=True)))
        with self._width():
            return list(pulled_back(gradient, leaves, direction, retain_graph=False))

    def directions(self, gradient: Point) -> tuple[Point, Point | None]:
        """Return a random direction, of each tensor's own size, and one along the gradient, of the same length."""
        generator = torch.Generator().manual_seed(0)
        centre, sizes, draws = self.coordinates, [], []
        for name, tensor in zip(self.chosen, self.point, strict=True):
            draw = torch.randn(centre.shape(name), generator=generator, dtype=torch.float64)
            sizes.append((centre.length({name: tensor}) / draw.numel() ** 0.5).clamp_min(1e-2).to(tensor))
            draws.append(centre.cut(name, draw).to(tensor))
        random = [size * draw * self.masks.get(n, 1) for size, draw, n in zip(sizes, draws, self.names, strict=True)]
        along = [g.detach() * size**2 for g, size in zip(gradient, sizes, strict=True)]
        length = self.norm(along)
        return random, [part * (self.norm(random) / length) for part in along] if length > 0 else None

    def dot(self, a: Point, b: Point) -> float:
        """Return the inner product of two points."""
        one, other = (dict(zip(self.chosen, part, strict=True)) for part in (a, b))
        return float(self.coordinates.inner(one, other))

    def norm(self, point: Point) -> float:
        """Return the norm of a point."""
        return math.sqrt(self.dot(point, point))

    def _moved(self, direction: Point, step: float) -> Point:
        return [tensor + step * part for tensor, part in zip(self.point, direction, strict=True)]

    def _derivative(self, loss: Tensor, leaves: Point, graph: bool = True) -> Point:
        with self._width(), self.network.noting():  # a checkpointed network runs again
            return list(torch.autograd.grad(loss, leaves, create_graph=graph, materialize_grads=True))

    def _width(self) -> contextlib.AbstractContextManager[Any]:
        return _Wide() if self.is_wide else contextlib.nullcontext()

    def _cast(self, value: Any) -> Any:
        return _widened(value) if self.is_wide else value


def pulled_back(
    of: Sequence[Tensor], by: Sequence[Tensor], vectors: Sequence[Tensor], retain_graph: bool = True
) -> tuple[Tensor, ...]:
    """Return d(Σ of·vectors)/d(by); what has no graph (a loss linear in a weight) gives zero."""
    curved = [(g, v) for g, v in zip(of, vectors, strict=True) if g.requires_grad]
    if not curved:
        return tuple(torch.zeros_like(leaf) for leaf in by)
    outputs, directions = zip(*curved, strict=True)
    return torch.autograd.grad(outputs, by, directions, retain_graph=retain_graph, materialize_grads=True)


def _of_each_kind(model: nn.Module, centre: Coordinates) -> list[str]:
    """Return the names of what varies; of a large network, that of the first tensor of each kind, or of a small one.

    From the first ones derivatives go through all that follows.
    """
    if centre.numel <= _MOST:
        return centre.names
    kinds: dict[Any, list[tuple[bool, str]]] = {}
    for name in centre.names:
        owner, _, leaf = name.rpartition(".")
        is_large = math.prod(centre.shape(name)) > _MOST // 4
        kinds.setdefault((type(model.get_submodule(owner)), leaf), []).append((is_large, name))
    return [min(group, key=lambda entry: entry[0])[1] for group in kinds.values()]


class _Wide(TorchFunctionMode):
    """Everything narrower than float64 that meets the network, or that it asks for, becomes float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func in (Tensor.float, Tensor.half, Tensor.bfloat16) else func
        args, kwargs = tree_map(_widened, (tuple(args), kwargs or {}))
        return func(*args, **kwargs)


def _first(function: _Function, loss: float, gradient: Point, direction: Point, steps: int) -> _Test:
    claimed = [torch.tensor(function.dot(gradient, direction), dtype=torch.float64)]
    return _compared(_STEPS[1][:steps], lambda step: function.difference(direction, step), claimed, abs(loss), _size)


def _compared(
    steps: Sequence[float],
    central: Callable[[float], Point],
    claimed: Point,
    scale: float,
    norm: Callable[[Point], float],
) -> _Test:
    """Compare central differences with what is claimed; a single step can only agree."""

    def distance(a: Point, b: Point) -> float:
        return norm([p.detach() - q.detach() for p, q in zip(a, b, strict=True)])

    noise = 20 * torch.finfo(torch.float64).eps * scale
    central = cache(central)
    if len(steps) > 1:  # nearly always enough; between the ends of the shorter one few kinks lie, but rounding tells
        is_clear = noise / (steps[0] / 100) <= _TOLERANCE / 2 * norm(claimed)
        for step in sorted((steps[0], steps[0] / 100), reverse=not is_clear):
            here = central(step)
            slack = _TOLERANCE * max(norm(here), norm(claimed))
            if max(distance(here, claimed), noise / step) <= slack:
                return _Test("ok")
    tries: list[tuple[Point, float, float, bool]] = []
    for step in steps:
        here = central(step)
        gap, size = distance(here, claimed), max(norm(here), norm(claimed))
        if gap <= _TOLERANCE * size + noise / step and size > 10 * noise / step:
            return _Test("ok")
        if len(steps) == 1:
            return _Test("unknown", norm(here), norm(claimed))
        error = distance(here, central(2 * step)) + noise / step
        if gap <= _TOLERANCE * size + 3 * error and size > 30 * error:
            return _Test("ok")
        is_far = gap > 10 * error + 5 * _TOLERANCE * size
        if is_far and tries and tries[-1][3] and distance(here, tries[-1][0]) < 0.2 * gap:
            return _Test("fails", norm(here), norm(claimed))
        tries.append((here, gap, error, is_far))
    here, gap, error, _ = min(tries, key=lambda attempt: attempt[2])
    return _Test("weak" if gap <= 3 * error else "unknown", norm(here), norm(claimed))


def _worst(tests: Sequence[_Test]) -> _Test:
    """Return the test that says most: a failure, then doubt; no signal only where no direction has one."""
    order = ("fails", "unknown", "ok", "weak")
    return min(tests, key=lambda test: order.index(test.outcome))


def _gap(what: str, test: _Test) -> str:
    return f"{what}: {test.measured:.4g} by differences, {test.claimed:.4g} by backward"


def _counted(names: Mapping[str, int]) -> str:
    return ", ".join(f"{name} × {count}" for name, count in names.items())


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _NARROW else value
    return value.double() if isinstance(value, Tensor) and value.dtype in _NARROW else value


def _size(numbers: Point) -> float:
    """Return the absolute value of a single number."""
    return abs(float(numbers[0]))
