"""The curvature that a network shows at a finite step, by forward passes, beside the one that derivatives give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import check_draws
from ..linalg import Eigenvalues, inner
from ..model import (
    BatchObjective,
    Coordinates,
    Evaluation,
    Loss,
    Objective,
    Point,
    Space,
    checked_direction,
    gaussian,
    objective_of,
    stderr_of_mean,
)
from ..progress import progress, stopwatch
from ..results import Result, with_errors
from .estimates import Units
from .hessian import Hessian

if TYPE_CHECKING:
    import pandas as pd

RADII = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
ALONG, RANDOM = 2e-3, 2e-2  # relative radii: finer ones drown in the stairs of 4-bit activations
_SURE = 3  # errors that a curvature must be away from zero: the stairs of one centre are common to all radii
_COLUMNS = ("radii", "curvature", "stderr_data", "stderr_draws", "rounding", "rounding_ratio")
_SHAKES = 6  # evaluations that tell the rounding error of the loss


@dataclass(frozen=True, eq=False)
class ScaleCurvature(Result):
    """Second differences [f(w+εd) − 2f(w) + f(w−εd)]/ε² at several radii.

    Attributes:
        radius: the one that `value` states.
        numel: the number of coordinates n that the directions move; n times the mean over random ones is the trace.
        radii: (radii,) r in ‖εd‖ = r·‖w‖, increasing.
        curvature: (radii,) the second difference along a unit vector: a given one, or the mean over random ones.
        stderr_data: (radii,) its standard error over the data, paired by sample; NaN where the data cannot tell.
        stderr_draws: (radii,) its standard error over random directions; NaN along a given one.
        rounding: (radii,) the error that floating-point arithmetic leaves in it, as measured on the loss.
        rounding_ratio: (radii,) ‖Q(w+εd) − Q(w) − εd‖/‖εd‖ over the weights that are rounded on the way, in latent
            space; else 0. ≥ 1: rounding error exceeds the step.
        samples: (radii, num_samples) the single second differences.
        derivatives: (draws,) dᵀHd along the same vectors; empty where it was not asked for.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> found = landscape.curvature_at_scale(model, data, radius=0.02, radii=[0.05])
        >>> found.radii.tolist(), found.value == float(found.curvature[0])
        ([0.02, 0.05], True)
    """

    radius: float
    numel: int
    radii: Tensor
    curvature: Tensor
    stderr_data: Tensor
    stderr_draws: Tensor
    rounding: Tensor
    rounding_ratio: Tensor
    samples: Tensor
    derivatives: Tensor
    dims: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(_COLUMNS, ("radius",)) | {"samples": ("radius", "draw")}
    columns: ClassVar[tuple[str, ...]] = ("radii", "curvature", "error", *_COLUMNS[2:], "trusted")
    picture: ClassVar[str] = "radii.curvature"

    @property
    def error(self) -> Tensor:
        """(radii,) all that is known of the error: over data, over draws, and of rounding, in quadrature."""
        parts = (self.stderr_data, self.stderr_draws, self.rounding)
        return torch.stack([part.nan_to_num(nan=0.0) for part in parts]).norm(dim=0)

    @property
    def trusted(self) -> Tensor:
        """(radii,) whether the value is more than three errors away from zero, and no staircase."""
        return (self.curvature.abs() > _SURE * self.error) & (self.rounding_ratio < 1)

    @property
    def finest(self) -> float:
        """The finest radius from which on every radius up to the coarsest trusted one is trusted; NaN without any."""
        indices = self.trusted.nonzero().flatten().tolist()
        unbroken = [i for i in indices if self.trusted[i : indices[-1] + 1].all()]
        return float(self.radii[unbroken[0]]) if indices else math.nan

    @property
    def value(self) -> float:
        """The curvature at `radius`."""
        return float(self.curvature[self._index])

    @property
    def stderr(self) -> float:
        """The error of `value`."""
        return float(self.error[self._index])

    @property
    def derivative(self) -> float:
        """Return dᵀHd, the mean over the draws; NaN where it was not asked for."""
        return float(self.derivatives.mean())

    @property
    def trace(self) -> tuple[float, float]:
        """The trace that random directions imply at `radius`, with its error; NaN along a given direction."""
        n = self.numel if self.is_random else math.nan
        return n * self.value, n * self.stderr

    @property
    def is_random(self) -> bool:
        """Whether the directions are random draws."""
        return self.samples.shape[1] > 1

    @property
    def frame(self) -> pd.DataFrame:
        """The numbers as a pandas DataFrame, a row per radius."""
        return super().frame.assign(derivative=self.derivative)

    def _cells(self) -> dict[str, list[str]]:
        radii = [f"{radius:g}" for radius in self.radii.tolist()]
        trusted = ["yes" if sure else "no" for sure in self.trusted.tolist()]
        return {"radius": radii, "curvature": with_errors(self.curvature, self.error), "to be trusted": trusted}

    @property
    def _index(self) -> int:
        return self.radii.tolist().index(self.radius)

    def __repr__(self) -> str:
        reason = "a staircase" if self.rounding_ratio[self._index] >= 1 else "not distinguishable from zero"
        doubt = "" if self.trusted[self._index] else f" ({reason})"
        parts = [f"{self.value:.4g} ± {self.stderr:.1g} at {self.radius:g}·‖w‖{doubt}"]
        if self.is_random:
            parts.append("trace {:.4g} ± {:.1g}".format(*self.trace))
        if len(self.derivatives):
            parts.append(f"{self.about['derivative']} {self.derivative:.4g}")
        parts.append("no radius is trustworthy" if math.isnan(self.finest) else f"trustworthy from {self.finest:g}")
        return f"ScaleCurvature({', '.join(parts)}; {self.about['directions']}; {self._kind()})"


def curvature_at_scale(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    directions: str | Point | Eigenvalues = "random",
    radius: float | None = None,
    radii: bool | Sequence[float] = True,
    num_samples: int = 10,
    units: Units | None = None,
    space: Space | None = None,
    derivatives: bool = True,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> ScaleCurvature:
    """Measure the curvature [f(w+εd) − 2f(w) + f(w−εd)]/ε² at ‖εd‖ = radius·‖w‖, and dᵀHd beside it.

    Choose it where something is rounded: a derivative there is that of the straight-through surrogate, while this is
    the loss itself. Too fine a radius sees the stairs of rounded activations and the float's last digits, too coarse a
    one more than curvature; the other radii show where the number can be trusted.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        directions: ``"random"``, a direction, or what `top_eigenvalues` gave, whose first vector is taken.
        radius: r in ‖εd‖ = r·‖w‖, ‖w‖ over the weights of two or more dimensions; default 2e-3 along a given
            direction, 2e-2 along random ones.
        radii: further ones: True for ten from 1e-4 to 1e-1, False for none, or a list.
        num_samples: random directions, uniform on the sphere; the same at every radius.
        units: ``"raw"``: d is a unit vector over all that varies; ``"filter"``: d = D·z for a unit vector z, as in
            D·H·D, biases and norm parameters fixed. Default: as the eigenvectors, else raw.
        space: ``"quantized"`` (default) or ``"latent"``, where the weights' rounding makes the loss a staircase.
        derivatives: whether to take dᵀHd, straight-through or exact, along the same directions.
        seed: of the draws.
        loss, objective: see `Objective`.

    Raises:
        ValueError: a radius that is not > 0, num_samples < 2, unknown settings, a direction of zero, bad data.

    Cost: 2·radii·num_samples + 7 forward passes, and num_samples Hessian-vector products.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> found = landscape.curvature_at_scale(model, data, radius=0.02)
        >>> found.radius, found.is_random
        (0.02, True)
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    units = _units(units, directions)
    check_draws(num_samples, seed)
    radius, all_radii = _all_radii(radius, radii, directions)
    settings: dict[str, Any] = {"space": space, "loss": loss, "objective": objective}
    hessian = Hessian(model, data, **settings) if derivatives else None
    function = hessian.objective if hessian else objective_of(model, data, **settings)
    vectors = _Vectors(function.coordinates, directions, units, num_samples, seed)
    with function.measurement_mode():
        columns = _measured(function, vectors, all_radii, seed)
        products = [_form(hessian, d) for d in vectors] if hessian else []
    forms = torch.stack(products).cpu() if products else torch.empty(0, dtype=torch.float64)
    about = function.about(units=units, directions=vectors.name, seed=seed, seconds=elapsed())
    about |= {"derivative": about["derivatives"], "derivatives": "at a scale"}
    tensors = [torch.tensor(all_radii, dtype=torch.float64), *columns, forms]
    return ScaleCurvature(about, radius, vectors.numel, *tensors)


def _measured(function: Objective, vectors: _Vectors, radii: Sequence[float], seed: int) -> list[Tensor]:
    """Return curvature, its errors over data, draws and of rounding, the rounding ratio and the samples, by radius."""
    here = function.centre
    noise = _loss_noise(function, here, seed)
    rows = [_differences(function, here, d, radii) for d in progress(vectors, "curvature at scale")]
    samples, by_sample, inverse, rounding_ratio = (torch.stack(parts) for parts in zip(*rows, strict=True))
    draws = len(rows)
    over_data = torch.stack([stderr_of_mean(row, here.weights) for row in by_sample.mean(0)])
    over_draws = samples.std(0) / draws**0.5 if draws > 1 else torch.full_like(over_data, math.nan)
    rounding = noise * inverse.mean(0) * (4 + 2 / draws) ** 0.5  # the centre's share is common to all draws
    columns = (samples.mean(0), over_data, over_draws, rounding, rounding_ratio.amax(0), samples.T)
    return [column.cpu() for column in columns]


class _Vectors:
    """The directions d, one after the other, made anew each time: they are as large as the network."""

    def __init__(self, centre: Coordinates, directions: Any, units: str, num_samples: int, seed: int) -> None:
        moved = {name: w for name, w in centre.centre.items() if w.ndim > 1 or units == "raw"}
        if not centre.norm() > 0:
            raise ValueError("radius is relative to ‖w‖, the weights of two or more dimensions: here that is zero")
        self._centre, self._moved, self._num_samples, self._seed = centre, moved, num_samples, seed
        self._scale = centre.filter_scale() if units == "filter" else None
        self._given: Point | None = None
        self.name = f"{num_samples} random directions"
        self.numel = sum(math.prod(centre.shape(name)) for name in moved)
        if isinstance(directions, str):
            return
        is_eigenvector = isinstance(directions, Eigenvalues)
        self.name = "the first eigenvector" if is_eigenvector else "a given direction"
        point = checked_direction(centre, directions.vector(0) if is_eigenvector else directions)
        self._given = {name: step for name, step in point.items() if name in moved}
        if not float(centre.length(self._step(self._given))) > 0:
            raise ValueError("directions must move the network: the direction given is zero on all that may vary")

    def __iter__(self) -> Iterator[Point]:
        if self._given is not None:
            yield self._step(self._given)
            return
        for draw in range(self._num_samples):
            draws = gaussian(self._moved, self._seed * 1_000_003 + draw, self._centre.layouts)
            yield self._step({name: self._centre.masked(name, z) for name, z in draws})

    def _step(self, vector: Point) -> Point:
        length = self._centre.length(vector)
        return {n: v / length * (self._scale[n] if self._scale else 1) for n, v in vector.items()}


def _differences(function: Objective, here: Evaluation, direction: Point, radii: Sequence[float]) -> list[Tensor]:
    """Return second differences (radii,), those of the samples' losses (radii, n), 1/ε² and the ratios."""
    length = function.coordinates.norm() / function.coordinates.length(direction)
    rows = []
    for radius in radii:
        step = {name: radius * length * d for name, d in direction.items()}
        there, back = function.evaluate(step), function.evaluate({name: -s for name, s in step.items()})
        inverse = (radius * length).double() ** -2
        value = (there.loss - 2 * here.loss + back.loss) * inverse
        by_sample = (there.losses - 2 * here.losses + back.losses) * inverse
        rows.append((value, by_sample, inverse, _rounding_ratio(function, step)))
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def _loss_noise(function: Objective, here: Evaluation, seed: int) -> Tensor:
    """Return the scatter of the loss when every weight moves within its last digit, as any step makes it do.

    It holds the rounding of the weights, of every sum on the way, and of activations that were about to change level.
    """
    centre, losses = function.coordinates.centre, [here.loss]
    for shake in range(_SHAKES):
        draw = gaussian(centre, seed * 1_000_003 - 1 - shake, function.coordinates.layouts)
        last_digits = {name: torch.finfo(z.dtype).eps * centre[name] * z.clamp(-1, 1) for name, z in draw}
        losses.append(function.evaluate(last_digits).loss)
    return torch.stack(losses).std()


def _form(hessian: Hessian, direction: Point) -> Tensor:
    """Return dᵀHd."""
    zero = {name: torch.zeros_like(w) for name, w in hessian.coordinates.centre.items()}
    d = hessian.coordinates.flatten(zero | direction)
    return inner(hessian, d.double(), (hessian @ d).double())


@torch.no_grad()
def _rounding_ratio(function: Objective, step: Point) -> Tensor:
    """Return ‖Q(w+s) − Q(w) − s‖/‖s‖ over what is rounded in latent space; zero in the others, which see the step."""
    if function.coordinates.space != "latent":
        return torch.zeros((), dtype=torch.float64, device=function.device)
    before, after = (function.rounded_at(displacement) for displacement in (None, step))
    moved = {name: after[name].value - weight.value for name, weight in before.items() if name in step}
    masks = {name: before[name].step != 0 for name in moved}
    wrong = {name: (seen - step[name]) * masks[name] for name, seen in moved.items()}
    rounded = {name: step[name] * mask for name, mask in masks.items()}
    length = function.coordinates.length
    share = length(wrong) / length(rounded).clamp_min(torch.finfo(torch.float64).tiny)
    return share.to(function.device)


def _units(units: Units | None, directions: Any) -> Units:
    own_units: Any = directions.about.get("units", "raw") if isinstance(directions, Eigenvalues) else None
    units = units or own_units or "raw"
    if own_units not in (None, units):
        raise ValueError(f"units must be those of the eigenvectors, {own_units!r}, got {units!r}: leave units out")
    if isinstance(directions, str) and directions != "random" or not isinstance(directions, str | dict | Eigenvalues):
        raise ValueError(f'directions must be "random", a point or Eigenvalues, got {directions!r}')
    return units


def _all_radii(radius: float | None, radii: bool | Sequence[float], directions: Any) -> tuple[float, list[float]]:
    """Return the radius to state, and all radii in order."""
    radius = radius if radius is not None else RANDOM if isinstance(directions, str) else ALONG
    further = (RADII if radii else ()) if isinstance(radii, bool) else radii
    every = sorted({float(radius), *map(float, further)})
    if not all(0 < one < math.inf for one in every):
        raise ValueError(f"radius and radii must be finite numbers > 0, relative to ‖w‖, got {every}")
    return float(radius), every
