"""How much the loss increases within, or at, a given distance of the weights.

Three metrics say what a distance is; a radius r is relative in all of them by default:

* ``"filter"``: ‖ε_f‖ ≤ r·‖w_f‖ in every filter f; biases and norm parameters stay;
* ``"plain"``: ‖ε‖ ≤ r·‖w‖ over all that varies;
* ``"adaptive"``: ‖ε/|w|‖ ≤ r·√n over all that varies: r is the relative change of a weight, root mean square.

``relative=False`` takes the radius as it is: ‖ε‖ ≤ ρ in SAM, ‖ε/|w|‖ ≤ ρ in ASAM.

None of these numbers predicts by itself how well a network generalises: over many networks the correlation is often
absent and sometimes negative (Andriushchenko et al. 2023, arXiv 2302.07011). Compare networks that were trained alike.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import check_draws, numbers
from ..model import (
    BatchObjective,
    Loss,
    Objective,
    Point,
    Space,
    gaussian,
    objective_of,
    random_direction,
    samples_of,
    stderr_of_mean,
)
from ..progress import progress, stopwatch
from ..results import Result, with_errors
from .balls import FIRST_ROUND, ball_of, largest_increases, mean_increases
from .rounding import RoundingSharpness, bits_label, rounding_sharpness

if TYPE_CHECKING:
    import pandas as pd

RADII = (0.01, 0.05, 0.1)
WORST_RADII = (0.001, 0.002, 0.005)  # at 1 % of every filter a deep network's loss is far above that of guessing


@dataclass(frozen=True, eq=False)
class Sharpness(Result):
    """The loss increase at each radius.

    Attributes:
        radii: (radii,) r, or ρ where it is not relative.
        delta_loss: (radii,) loss at the perturbed weights minus loss of the model.
        stderr: (radii,) standard error over the draws; NaN for the worst case, which has none.
        samples: (radii, num_samples) the single increases; of the worst case (radii, groups).
        data_delta_loss: (radii, n) those of the n samples (means over the draws), or of the groups where there are
            several; n = 0 where the data come in no fixed order. data_weights: (n,) their shares.
        gain: (radii,) of the worst case, how much of delta_loss the ascent's last round added: about as much, or the
            tolerance where that is more, is missing to the maximum. Empty for an average.
        converged: (radii,) whether that is within the tolerance; what is not is marked †.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> sharpness = landscape.average_sharpness(model, data, radii=(0.1, 0.2), num_samples=4)
        >>> sharpness.delta_loss.shape, sharpness.samples.shape, sharpness.stderr_data.shape
        (torch.Size([2]), torch.Size([2, 4]), torch.Size([2]))
    """

    radii: Tensor
    delta_loss: Tensor
    stderr: Tensor
    samples: Tensor
    data_delta_loss: Tensor
    data_weights: Tensor
    gain: Tensor = field(default_factory=lambda: torch.empty(0))
    columns: ClassVar[tuple[str, ...]] = ("radii", "delta_loss", "stderr", "stderr_data")
    picture: ClassVar[str] = "radii.increases"

    @property
    def converged(self) -> Tensor:
        """(radii,) whether the ascent got up, and its last round added no more than its tolerance; True of averages."""
        if not len(self.gain):
            return torch.full((len(self.radii),), "steps" not in self.about)  # a file of 0.2 does not tell
        return (self.delta_loss > 0) & (self.gain <= self.about["rtol"] * self.delta_loss)

    @property
    def stderr_data(self) -> Tensor:
        """(radii,) standard error over the data, the perturbations held fixed; NaN where the data cannot tell."""
        return torch.stack([stderr_of_mean(row, self.data_weights) for row in self.data_delta_loss])

    def _cells(self) -> dict[str, list[str]]:
        radii = [f"{radius:g}" for radius in self.radii.tolist()]
        increases = with_errors(self.delta_loss, self.stderr, self.stderr_data)
        marked = [text + mark for text, mark in zip(increases, self._marks(), strict=True)]
        gains = {"last round added": [f"{gain:.2g}" for gain in self.gain.tolist()]} if len(self.gain) else {}
        return {"radius": radii, "loss increase": marked} | gains

    def _marks(self) -> list[str]:
        return ["" if done else " †" for done in self.converged.tolist()]

    def __repr__(self) -> str:
        parts = []
        columns = (self.radii, self.delta_loss, self.stderr, self.stderr_data)
        rows = zip(*(column.tolist() for column in columns), self._marks(), strict=True)
        for radius, increase, draws, data, mark in rows:
            errors = ((draws, ""), (data, " over data"))
            known = "".join(f" ± {error:.1g}{what}" for error, what in errors if not math.isnan(error))
            parts.append(f"{increase:.3g}{known}{mark} at {radius:g}")
        return f"Sharpness({self.about['measure']}: {', '.join(parts)})"


def average_sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    radii: Sequence[float] = RADII,
    num_samples: int = 10,
    metric: str = "filter",
    relative: bool = True,
    space: Space | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Sharpness:
    """Measure the mean loss increase over random perturbations, each taken with both signs.

    [f(w + ε) + f(w − ε)]/2 − f(w) has the mean of f(w + ε) − f(w), without the scatter of the gradient.
    With the filter metric ‖ε_f‖ = r·‖w_f‖ in every filter; with the others ε = T·z is Gaussian, T = r·‖w‖/√n (plain)
    or r·|w| (adaptive), so that the mean square of its distance is that of the radius. The draws depend on names,
    shapes and the seed alone, so networks of one architecture are perturbed alike.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        radii: r, relative; ρ with ``relative=False``.
        num_samples: pairs ±ε per radius, along the same directions at every radius.
        metric: ``"filter"``, ``"plain"`` or ``"adaptive"``, see `landscape.flatness.sharpness_table`.
        relative: whether the radius is relative to the weights (the filter metric knows no other).
        space: ``"quantized"`` (default) or ``"latent"``.
        seed: of the draws.
        loss, objective: see `Objective`.

    Raises:
        ValueError: a radius that is not > 0, num_samples < 2, unknown metric, bad data.

    Cost: 2·num_samples·radii forward passes over the data.

    Source: average-case sharpness, Andriushchenko et al. 2023, §2.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> landscape.average_sharpness(model, data, radii=(0.1,)).samples.shape
        torch.Size([1, 10])
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    check_draws(num_samples, seed)
    function = objective_of(model, data, loss=loss, objective=objective, space=space)
    ball = ball_of(function.coordinates, radii, metric, relative)

    def displacements(draw: int) -> Iterable[Point]:
        if metric == "filter":
            direction = random_direction(function.coordinates, seed * 1_000_003 + draw)
        else:
            centre = function.coordinates
            parts = gaussian(centre.centre, seed * 1_000_003 + draw, centre.layouts)
            direction = {n: centre.masked(n, ball.scale[n] * z / centre.numel**0.5) for n, z in parts}
        return ({n: radius * d for n, d in direction.items()} for radius in radii)

    increases = mean_increases(function, len(radii), num_samples, displacements)
    about = function.about(measure=f"average of {num_samples} pairs", metric=metric, seed=seed, seconds=elapsed())
    return Sharpness(about, torch.tensor(radii, dtype=torch.float64), *increases)


def worst_case_sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    radii: Sequence[float] = WORST_RADII,
    steps: int = 75,
    rtol: float = 0.02,
    metric: str = "filter",
    relative: bool = True,
    m: int | None = None,
    space: Space | None = None,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Sharpness:
    """Measure the largest loss increase that projected gradient ascent finds within a ball around the weights.

    In v = ε/T, where the ball is round (with the filter metric each filter has a ball of its own), v moves along the
    gradient, with momentum, and is projected back. The first round has 5 steps as long as the radius; every further one
    starts from the highest point met, with twice as many steps of half the length, until what it adds is at most
    rtol of the increase. The result states what the last round added (``gain``), and † where that was more: the largest
    loss met is a lower bound of the true worst case.

    Its error over data holds the perturbation fixed, which is right to first order: where the increase is largest it
    does not depend on ε. The ascent fits the perturbation to the samples: over *others* the increase is smaller.

    With m it is the mean over groups of m samples of each group's own worst case: never less than that of all samples
    together, but for what ascent misses.

    Args:
        model: any network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        radii: r, relative; ρ with ``relative=False``. Choose them so that the loss stays below that of guessing:
            beyond it a valley has been left, and the increase says nothing about it; and where the loss falls again
            within the ball, steps as long as its radius leap over the maximum.
        steps: gradient steps per radius, at most; whole rounds are made of them, 5, 15, 35 and 75.
        rtol: share of the increase that a round has to add for another one to follow.
        metric: ``"filter"``, ``"plain"`` or ``"adaptive"``, see `landscape.flatness.sharpness_table`.
        relative: whether the radius is relative to the weights (the filter metric knows no other).
        m: samples per group, at most; default all in one.
        space: ``"quantized"`` (default) or ``"latent"``.
        loss, objective: see `Objective`.

    Raises:
        ValueError: a radius that is not > 0, steps or m < 1, rtol < 0, unknown metric, batches larger than m, bad data.

    Cost: per radius 15 gradients (where the loss is nearly quadratic) to 75, and three to five forward passes over the
    data; with m seven forward passes more.

    Source: plain, Foret et al. 2021 (SAM); adaptive, Kwon et al. 2021 (ASAM), whose ε of a zero weight is zero;
    filter, as ASAM's filter-wise operator, with a ball for each filter where they have one for all; m, Foret et al.
    2021, §4.1, and Andriushchenko and Flammarion 2022. Momentum and halving are those of APGD, Croce and Hein 2020,
    whose checkpoints are replaced by rounds.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> found = landscape.worst_case_sharpness(model, data, radii=(0.1,))
        >>> bool(found.delta_loss > 0), bool(found.converged)
        (True, True)
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    numbers(whole=True, at_least=1, steps=steps)
    numbers(whole=True, at_least=1, optional=True, m=m)
    numbers(at_least=0, rtol=rtol)
    batch_size = None if isinstance(model, Objective) else m
    function = objective_of(model, data, loss=loss, objective=objective, space=space, batch_size=batch_size)
    ball = ball_of(function.coordinates, radii, metric, relative)
    groups = [function] if m is None else list(_groups(function, m))
    ascents = [largest_increases(group, ball, radii, steps, rtol) for group in progress(groups, "worst-case sharpness")]
    shares = torch.tensor([sum(group.batch_weights) for group in groups], dtype=torch.float64)
    shares /= shares.sum()
    largest, gains, rounds = (torch.stack(parts, 1) for parts in list(zip(*ascents, strict=True))[:3])  # by group
    of = "" if m is None else f", mean over {len(groups)} groups"
    about = function.about(measure=f"worst of {steps} ascent steps{of}", metric=metric, steps=steps, rtol=rtol)
    about |= {"rounds": rounds.amax(1).tolist(), "seconds": elapsed()}
    unknown = torch.full((len(radii),), math.nan, dtype=torch.float64)
    by_sample = (ascents[0].by_sample, ascents[0].weights) if m is None else (largest, shares)
    chosen = torch.tensor(radii, dtype=torch.float64)
    return Sharpness(about, chosen, largest @ shares, unknown, largest, *by_sample, gains @ shares)


def _groups(function: Objective, m: int) -> Iterator[Objective]:
    """Yield the objective on each group of at most m samples."""
    with function.measurement_mode():  # a loader that shuffles draws from the RNG
        batches = list(function.batches())
    for batch in batches:
        rows = samples_of(batch)
        if rows is not None and rows <= m:
            yield function.on(batch)
        elif isinstance(batch, tuple | list) and all(isinstance(part, Tensor) for part in batch):
            yield from map(function.on, zip(*(part.split(m) for part in batch), strict=True))
        else:
            raise ValueError(
                f"m = {m}, but a batch has {rows or 'unknown'} rows and is no (x, y): pass smaller batches"
            )


@dataclass(frozen=True, eq=False)
class SharpnessTable(Result):
    """Several measures of one network.

    Attributes:
        rows: one record per measure and setting: measure, setting, value (a loss increase), stderr over draws,
            stderr_data over the data, converged (see `Sharpness`), gradients and forwards (its cost, in passes over
            the data), source.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> table = landscape.sharpness(model, data, measures={'average, filter': {'radii': (0.1, 0.2)}})
        >>> len(table.frame), list(table.frame.columns[:3])
        (2, ['measure', 'setting', 'value'])
    """

    rows: list[dict[str, Any]]
    picture: ClassVar[str] = "radii.increases"

    @property
    def table(self) -> pd.DataFrame:
        """The numbers for reading."""
        frame = self.frame.set_index(["measure", "setting"])
        for name in ("value", "stderr", "stderr_data"):
            frame[name] = [f"{value:.3g}".replace("nan", "–") for value in frame[name]]
        if "converged" in frame:  # which files of 0.2 do not say
            frame["value"] += [" †" * (not done) for done in frame.pop("converged")]
        return frame.rename(columns={"value": "loss increase", "stderr_data": "stderr over data"})

    def __repr__(self) -> str:
        measures = dict.fromkeys(row["measure"] for row in self.rows)
        return f"SharpnessTable({len(self.rows)} rows: {', '.join(measures)}; {self._caption()})"

    def __str__(self) -> str:
        return f"{self.table.to_string()}\n{self._caption()}"

    def _caption(self) -> str:
        stopped = "" if all(row.get("converged", True) for row in self.rows) else "† the ascent has not converged; "
        return (
            f"loss {self.about['loss']:.4g} on {self.about['samples']} samples, {self.about['space']} space; "
            f"{stopped}sharpness alone often fails to predict generalisation (arXiv 2302.07011)"
        )


class _Measure(NamedTuple):
    """One measure of the table, with the setting that its source uses."""

    function: Callable[..., Sharpness | RoundingSharpness]
    settings: dict[str, Any]
    source: str


_PLAIN = {"metric": "plain", "radii": (0.05,), "relative": False}
_ADAPTIVE = {"metric": "adaptive", "radii": (0.5,), "relative": False}
_PAIRS = {"radii": (0.05,), "num_samples": 10}
_BY_GROUPS = "Foret et al. 2021; Andriushchenko and Flammarion 2022"
MEASURES: dict[str, _Measure] = {
    "worst case, filter": _Measure(worst_case_sharpness, {"radii": (0.005,)}, "after Kwon et al. 2021, filter-wise"),
    "worst case, plain": _Measure(worst_case_sharpness, _PLAIN, "Foret et al. 2021"),
    "worst case, plain, m samples": _Measure(worst_case_sharpness, _PLAIN | {"m": 128}, _BY_GROUPS),
    "worst case, adaptive": _Measure(worst_case_sharpness, _ADAPTIVE, "Kwon et al. 2021"),
    "average, filter": _Measure(average_sharpness, _PAIRS, "Li et al. 2018; Andriushchenko et al. 2023"),
    "average, Gaussian": _Measure(average_sharpness, {"metric": "plain", **_PAIRS}, "Andriushchenko et al. 2023"),
    "rounding noise": _Measure(rounding_sharpness, {"num_samples": 10}, "Widrow and Kollár 2008"),
}


def sharpness(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    measures: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> SharpnessTable:
    """Measure sharpness in several ways and lay them out as one table.

    The radii are those of the sources: ρ = 0.05 for SAM (plain), 0.5 for ASAM (adaptive); elsewhere small enough that
    the loss of a trained network does not explode: 0.5 % of each filter's norm in the worst case, 5 % of it or of ‖w‖
    on average, half a step for rounding. No measure is right for all purposes, and sharpness often fails to predict
    generalisation (arXiv 2302.07011).

    Args:
        model: any network; not touched. A quantized one is moved in quantized space.
        data: ``(x, y)`` or batches; default ``model.probe``.
        measures: names out of `landscape.flatness.MEASURES`, default all; or name → settings that replace the
            source's, for example ``{"worst case, plain": {"radii": (0.1, 0.2)}}``.
        seed: of all draws.
        loss, objective: see `Objective`.

    Raises:
        ValueError: an unknown measure, settings that a measure refuses, bad data.

    Cost: 60 gradients (where the loss is nearly quadratic) to 300, and about 100 forward passes over the data.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> table = landscape.sharpness(model, data, measures=['average, filter'])
        >>> table.frame[['measure', 'setting']].values.tolist()
        [['average, filter', 'r = 0.05']]
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    chosen = measures if isinstance(measures, Mapping) else {name: {} for name in measures or MEASURES}
    if set(chosen) - set(MEASURES):
        raise ValueError(f"measures must be a list of names out of {', '.join(MEASURES)}, got {measures!r}")
    function = objective_of(model, data, loss=loss, objective=objective)
    arguments = {"data": data, "loss": loss, "objective": objective}
    rows: list[dict[str, Any]] = []
    for name, more in progress(chosen.items(), "sharpness"):
        measure, settings, source = MEASURES[name]
        known = inspect.signature(measure).parameters
        if strange := [key for key in more if key not in known]:
            raise ValueError(f"measures must have settings of {measure.__name__}, got {strange[0]!r} for {name!r}")
        settings = settings | dict(more)
        seeded = {"seed": seed} if "seed" in known else {}
        anew = not isinstance(model, Objective) and {"m", "space"} & settings.keys()  # other batches, or coordinates
        result = measure(model, **arguments, **seeded | settings) if anew else measure(function, **seeded | settings)
        rows += [{"measure": name} | row | {"source": source} for row in _rows(result, settings)]
    about = function.about(loss=float(function.centre.loss), seed=seed, seconds=elapsed())
    return SharpnessTable(about, rows)


def _rows(result: Sharpness | RoundingSharpness, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a record per radius, or two per number of bits."""
    columns, draws = (result.delta_loss, result.stderr, result.stderr_data), 2 * result.samples.shape[1]
    if isinstance(result, RoundingSharpness):
        rounded = result.rounded, torch.full_like(result.rounded, math.nan), result.rounded_stderr_data
        for index, label in enumerate(map(bits_label, result.bits)):
            yield _row(f"noise {label}", columns, index, 0, draws)
            yield _row(f"rounded {label}", rounded, index, 0, 1)
        return
    rounds, name = result.about.get("rounds"), "r" if settings.get("relative", True) else "ρ"
    m = f", m = {settings['m']}" if settings.get("m") else ""
    for index, radius in enumerate(result.radii.tolist()):
        first = min(FIRST_ROUND, result.about["steps"]) if rounds else 0
        gradients, forwards = (first * (2 ** rounds[index] - 1), rounds[index] + 1) if rounds else (0, draws)
        yield _row(f"{name} = {radius:g}{m}", columns, index, gradients, forwards, bool(result.converged[index]))


def _row(
    setting: str, columns: Sequence[Tensor], index: int, gradients: int, forwards: int, converged: bool = True
) -> dict[str, Any]:
    named = zip(("value", "stderr", "stderr_data"), columns, strict=True)
    row = {"setting": setting} | {name: float(part[index]) for name, part in named}
    return row | {"converged": converged, "gradients": gradients, "forwards": forwards}
