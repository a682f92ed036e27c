"""Several networks measured alike: one table with error bars, one set of curves and surfaces."""

from __future__ import annotations

import math
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from . import parallel
from .curvature import Hessian, Scaled, eigenvalues_of
from .flatness import RADII, WORST_RADII, average_sharpness, worst_case_sharpness
from .linalg import fold_stderr, hutchinson, lanczos, mean_and_stderr, t_interval
from .model import BatchObjective, Evaluation, Loss, Objective, Space, objective_of, probe_of
from .plotting import draw_together, plot_together
from .progress import progress, resumable, stopwatch
from .results import Result, join, with_error
from .surfaces import Line, Surface, grid, line, surface

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Model = nn.Module | Objective

_LABELS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "trace_filter": "trace, filter-relative",
    "lambda1_filter": "λ₁, filter-relative",
    "lambda1_over_lambda5": "λ₁/λ₅, filter-relative",
    "trace_raw": "trace, raw *",
    "lambda1_raw": "λ₁, raw *",
    "weight_norm": "‖w‖",
}
_NOTE = "* raw curvature: compare only at equal weight norm ‖w‖"
_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_<>[]"})
_PROBES = 40  # of a trace: trained networks took 13 to 22 for 2 %, and untrained ones would not get there with hundreds


@dataclass(frozen=True)
class Measured:
    """One number of one network.

    Attributes:
        value: the number.
        stderr: its standard error, over samples, draws, probes and folds of the data; NaN where there is none to state.
        parts: its draws, which pair up with those of another network measured alike, or None.
        folds: (values, shares) of the samples, or of folds of the data, which pair up as well, or None.
        converged: False where Lanczos, or the ascent to the worst case, stopped before its tolerance.
    """

    value: float
    stderr: float = float("nan")
    parts: list[float] | None = None
    converged: bool = True
    folds: list[list[float]] | None = None


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """What `compare` measured.

    Attributes:
        seeds: network → for each of its seeds, quantity → the fields of `Measured`.
        lines, surfaces: network → `Line`, `Surface` of its first seed, along the same draw.

    Example:
        >>> import torch, landscape
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> comparison = landscape.compare({name: torch.nn.Linear(3, 2) for name in 'abc'}, data, points=0)
        >>> list(comparison.select('a', 'c').table.columns)
        ['a', 'c', 'c − a']
    """

    seeds: dict[Any, list[dict[str, Any]]]
    lines: dict[Any, Line]
    surfaces: dict[Any, Surface]
    picture: ClassVar[str] = "surfaces.surfaces"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One record per network and quantity: seeds, value, stderr, and the difference to the first network.

        That is delta, delta_stderr, and delta_df, the error's degrees of freedom (see `interval`).
        """
        first = next(iter(self.seeds))
        return [
            {"network": network, "quantity": quantity, "seeds": len(group)}
            | {"converged": all(seed.converged for seed in self._measured(network, quantity))}
            | dict(zip(("value", "stderr"), self.value(network, quantity), strict=True))
            | dict(zip(("delta", "delta_stderr", "delta_df"), self._compared(network, first, quantity), strict=True))
            for network, group in self.seeds.items()
            for quantity in group[0]
        ]

    def difference(self, network: Hashable, other: Hashable, quantity: str) -> tuple[float, float]:
        """Return network − other and its standard error, paired by seed, or by draw where both have one seed.

        An accuracy's error counts one image more than have changed, √(stderr² + 1/n²), as Agresti and Min (2005) do:
        that none of n has changed does not say that none would. Judge by `interval`: with few seeds or folds two
        standard errors are no 95 %.

        Raises:
            KeyError: no such network or quantity.
        """
        return self._compared(network, other, quantity)[:2]

    def interval(self, network: Hashable, other: Hashable, quantity: str, level: float = 0.95) -> tuple[float, float]:
        """Return the confidence interval of network − other; where it holds zero, the two are not told apart.

        By Student's t with seeds − 1 degrees of freedom, or folds − 1 (of curvatures), samples − 1, draws − 1, the
        fewest where several errors add up. One interval misses the truth with probability 1 − level; of a table of
        twenty one does.

        Raises:
            KeyError: no such network or quantity.
            ValueError: level outside (0, 1).
        """
        return t_interval(*self._compared(network, other, quantity), level)

    def verdict(self, network: Hashable, other: Hashable, quantity: str = "trace_filter", level: float = 0.95) -> str:
        """Say in a Markdown sentence whether network is lower or higher than other, or not told apart, by `interval`.

        The numbers are other → network, the difference and its interval; † marks what stopped before its tolerance.

        Raises:
            KeyError: no such network or quantity.
            ValueError: level outside (0, 1).

        Example:
            >>> import landscape
            >>> losses = {'SGD': (3.0, 4.1, 4.9), 'SAQ': (1.0, 2.0, 3.0)}
            >>> seeds = {name: [{'loss': {'value': loss}} for loss in group] for name, group in losses.items()}
            >>> landscape.Comparison({}, seeds, {}, {}).verdict('SAQ', 'SGD', 'loss')
            'Loss: **SAQ is lower than SGD**, 4.000 → 2.000, −2.000 [−2.248, −1.752] (95 %)'
        """
        low, high = self.interval(network, other, quantity, level)
        change, stderr = self.difference(network, other, quantity)
        relation = "higher than" if low > 0 else "lower than" if high < 0 else "not told apart from"
        style = f".{max(0, 1 - math.floor(math.log10(stderr)))}f" if 1e-4 <= stderr < math.inf else ".4g"
        rows = [self._measured(name, quantity) for name in (other, network)]
        start, end = (f"{_mean(row)[0]:{style}}{'' if all(m.converged for m in row) else ' †'}" for row in rows)
        span = "without an error" if math.isnan(low) else f"[{low:{style}}, {high:{style}}] ({100 * level:.4g} %)"
        numbers = f"{start} → {end}, {change:+{style}} {span}".replace("-", "−")
        label, *names = (str(text).translate(_MARKDOWN) for text in (quantity_label(quantity), network, other))
        return f"{label.capitalize() if label.isascii() else label}: **{names[0]} is {relation} {names[1]}**, {numbers}"

    def _compared(self, network: Hashable, other: Hashable, quantity: str) -> tuple[float, float, float]:
        mine, theirs = (self._measured(name, quantity) for name in (network, other))
        if network == other:
            return 0.0, 0.0, math.inf
        value, stderr, df = _difference(mine, theirs)
        if quantity == "accuracy" and isinstance(samples := self.about.get("samples"), int):
            stderr = math.hypot(stderr, 1 / (samples * len(mine)))
        return value, stderr, df

    def select(self, *networks: str) -> Comparison:
        """Return the comparison of these networks alone; differences are to the first of them.

        Raises:
            KeyError: no such network.
        """
        seeds = {network: self._group(network) for network in networks}
        lines = {network: self.lines[network] for network in networks if network in self.lines}
        surfaces = {network: self.surfaces[network] for network in networks if network in self.surfaces}
        return replace(self, seeds=seeds, lines=lines, surfaces=surfaces)

    def _group(self, network: Hashable) -> list[dict[str, dict[str, Any]]]:
        if network not in self.seeds:
            raise KeyError(f"no network {network!r}; there are {list(self.seeds)}")
        return self.seeds[network]

    def _measured(self, network: Hashable, quantity: str) -> list[Measured]:
        group = self._group(network)
        if quantity not in group[0]:
            raise KeyError(f"no quantity {quantity!r} of {network!r}; there are {list(group[0])}")
        # files of version 0.1 hold the fields in their order
        return [Measured(**q) if isinstance(q := seed[quantity], dict) else Measured(*q) for seed in group]

    @property
    def table(self) -> pd.DataFrame:
        """The numbers for reading: a column per network, and the difference to the first beside each other one."""
        import pandas

        columns: dict[str, dict[str, str]] = {}
        first = next(iter(self.seeds))
        for row in self.rows:
            label = quantity_label(row["quantity"])
            mark = "" if row["converged"] else " †"
            columns.setdefault(row["network"], {})[label] = with_error(row["value"], row["stderr"]) + mark
            if row["network"] != first:
                difference = columns.setdefault(f"{row['network']} − {first}", {})
                few = f" ({row['delta_df']:.2g} df)" if row["delta_df"] < 30 and row["delta_stderr"] > 0 else ""
                difference[label] = with_error(row["delta"], row["delta_stderr"], sign=True) + few
        return pandas.DataFrame(columns)

    def value(self, network: Hashable, quantity: str) -> tuple[float, float]:
        """Return one number and its standard error.

        Raises:
            KeyError: no such network or quantity.
        """
        return _mean(self._measured(network, quantity))[:2]

    def _drawn(self) -> dict[str, Surface]:
        return {str(name): surface for name, surface in self.surfaces.items()}

    def plot_lines(self, **options: Any) -> go.Figure:
        """Draw all curves in one interactive plot (plotly); options as `Line.plot`."""
        return plot_together({str(name): line for name, line in self.lines.items()}, **options)

    def draw_lines(self, ax: Axes | None = None, **options: Any) -> Figure:
        """Draw all curves for print; options as `Line.draw`."""
        return draw_together({str(name): line for name, line in self.lines.items()}, ax, **options)

    def __repr__(self) -> str:
        quantities = len(next(iter(self.seeds.values()), [{}])[0])
        return f"Comparison({', '.join(map(str, self.seeds))}: {quantities} quantities; {self._short()})"

    def __str__(self) -> str:
        return f"{self.table.to_string()}\n{self._caption()}"

    def _short(self) -> str:
        return "{samples} samples, {space} space, {derivatives} derivatives".format(**self.about)

    def _caption(self) -> str:
        stopped = "" if all(row["converged"] for row in self.rows) else "; † stopped before its tolerance"
        return (
            f"{self._short()}; "
            "± is one standard error, over seeds where a network has several, else over samples, draws or probes; "
            "df: degrees of freedom where under 30, to judge by Student's t (`interval`), not by two standard errors; "
            f"{_NOTE}{stopped}"
        )


def compare(
    models: Mapping[Any, Model | Sequence[Model]],
    data: Any = None,
    *,
    space: Space | None = None,
    radii: Sequence[float] | None = None,
    span: float = 1.0,
    points: int = 25,
    rtol: float = 0.05,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Comparison:
    """Measure several networks alike: one probe, one draw of directions, one seed.

    First come curvatures in filter-relative units (D·H·D, D = ‖w_f‖/√(size of filter)), which do not change when
    weights are rescaled in front of a BatchNorm; λ₁ is the algebraically largest. Differences to the first network are
    paired by seed where both are lists of one length, by draw or probe and by sample or fold where both are single.

    Args:
        models: name → network, or a list of them: the same network over seeds.
        data: ``(x, y)`` or batches; default the probe that all models carry.
        space: ``"quantized"`` (default) or ``"latent"``.
        radii: of the average (10 pairs ±ε) and of the worst-case loss increase, relative to each filter's norm; default
            1, 5 and 10 % on average, and 0.1, 0.2 and 0.5 % in the worst case, which leaves a valley sooner.
        span, points: of the curves and surfaces (of each network's first seed); points=0 leaves them out.
        rtol: relative standard error at which a trace's probes stop; after 40 they do in any case.
        seed: of probes, draws and directions.
        loss, objective: see `Objective`.

    Raises:
        ValueError: no models, different probes, networks whose weights have different units.

    Cost per network: 50 to 60 Hessian-vector products, 45 to 225 gradients, 80 forward passes; points² + 2·points
    more for each network that is drawn.

    Example:
        >>> import torch, landscape
        >>> networks = {name: torch.nn.Linear(3, 2) for name in ('first', 'second')}
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> comparison = landscape.compare(networks, data, points=0)
        >>> value, stderr = comparison.value('first', 'trace_filter')
        >>> difference, its_stderr = comparison.difference('second', 'first', 'loss')
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    groups = {name: [m] if isinstance(m, nn.Module | Objective) else list(m) for name, m in models.items()}
    check_models(groups)
    if points:
        grid(span, points)  # refuses now, not after all networks have been measured
    data = common_probe(groups) if data is None else probe_of(data)
    arguments = {"space": space, "loss": loss, "objective": objective}
    functions = {name: [_looked_at(name, m, data, arguments) for m in group] for name, group in groups.items()}
    chosen = {kind: own if radii is None else radii for kind, own in (("worst", WORST_RADII), ("average", RADII))}
    measured: dict[str, list[dict[str, dict[str, Any]]]] = {name: [] for name in groups}
    for name, function in progress([(n, part) for n, group in functions.items() for part in group], "networks"):
        quantities = _measure(function, chosen, rtol, seed)
        if len(groups[name]) > 1:  # differences are then paired by seed: parts would only fill the file
            quantities = {name: replace(part, parts=None, folds=None) for name, part in quantities.items()}
        measured[name].append({quantity: asdict(part) for quantity, part in quantities.items()})
    picture: dict[str, Any] = {"span": span, "seed": seed}
    firsts = {name: group[0] for name, group in functions.items() if points}
    light = partial(replace, stored={})  # directions fill a file: the seed draws them again
    lines = {name: light(line(first, points=2 * points + 1, **picture)) for name, first in firsts.items()}
    surfaces = {name: light(surface(first, points=points, **picture)) for name, first in firsts.items()}
    about = merge_about([function.about() for group in functions.values() for function in group])
    return Comparison(about | {"seed": seed, "seconds": elapsed()}, measured, lines, surfaces)


def _looked_at(name: Any, model: nn.Module | Objective, data: Any, arguments: Mapping[str, Any]) -> Objective:
    """Return the objective of a network; what is wrong with one is said, with its name, before any is measured."""
    try:
        return objective_of(model, data, **arguments)
    except (ValueError, RuntimeError) as error:
        if type(error) not in (ValueError, RuntimeError):
            raise
        raise type(error)(f"network {name!r}: {error}") from error


def _measure(function: Objective, radii: Mapping[str, Sequence[float]], rtol: float, seed: int) -> dict[str, Measured]:
    hessian = Hessian(function)
    quantities = fit(function.centre)
    if not hessian.coordinates.norm() > 0:  # nothing has filters: no direction, no unit
        names = ["trace_filter", "lambda1_filter", "lambda1_over_lambda5"]
        names += [f"{kind}_{radius:g}" for kind, own in radii.items() for radius in own]
        quantities |= dict.fromkeys(names, Measured(math.nan))
    else:
        quantities |= trace_and_top(hessian.filter_relative(), "filter", rtol, seed)
        quantities |= _increases(function, radii, seed)
    quantities |= trace_and_top(hessian, "raw", rtol, seed)
    return quantities | {"weight_norm": Measured(hessian.coordinates.norm())}


def _increases(function: Objective, radii: Mapping[str, Sequence[float]], seed: int) -> dict[str, Measured]:
    quantities = {}
    worst = worst_case_sharpness(function, radii=radii["worst"])
    average = average_sharpness(function, radii=radii["average"], seed=seed)
    for name, result in (("worst", worst), ("average", average)):
        for index, radius in enumerate(result.radii.tolist()):
            draws = result.samples[index].tolist() if name == "average" else None
            folds = [result.data_delta_loss[index].tolist(), result.data_weights.tolist()]
            error = join(float(result.stderr[index]), float(result.stderr_data[index]))
            value, done = float(result.delta_loss[index]), bool(result.converged[index])
            quantities[f"{name}_{radius:g}"] = Measured(value, error, draws, done, folds)
    return quantities


def fit(here: Evaluation) -> dict[str, Measured]:
    """Return loss and accuracy (where there are classes), with the scatter over the samples where the loss tells it."""
    weights = here.weights.tolist()
    found = {"loss": Measured(float(here.loss), float(here.stderr()), folds=[here.losses.tolist(), weights])}
    if not here.accuracy.isnan():  # √(stderr² + 1/n²): where all are right, one more might be wrong
        error, hits = float(here.stderr(field="hits")), [here.hits.tolist(), here.hit_weights.tolist()]
        found["accuracy"] = Measured(float(here.accuracy), math.hypot(error, 1 / max(len(hits[0]), 1)), folds=hits)
    return found


@resumable("curvature")
def trace_and_top(
    operator: Scaled | Hessian, units: str, rtol: float, seed: int
) -> Generator[None, None, dict[str, Measured]]:
    """Measure the trace and the top eigenvalue."""
    krylov = yield from lanczos.steps(operator, min(5, operator.shape[0]), which="largest", seed=seed)
    top = eigenvalues_of(operator, krylov, 1e-3)
    yield
    known: Any = {"basis": krylov.basis, "basis_trace": krylov.basis_trace, "fold_traces": krylov.fold_traces}
    trace = yield from hutchinson.steps(operator, **known, rtol=rtol, num_probes=_PROBES, seed=seed)
    first, last, shares = float(top.values[0]), float(top.values[-1]), top.fold_weights.tolist()
    # every network's probes are the same draws, so the differences of two traces pair up
    whole, draws = [trace.fold_values.tolist(), shares], trace.samples.tolist()
    folds, converged = [top.fold_values[:, 0].tolist(), shares], bool(top.converged[0])
    quantities = {
        f"trace_{units}": Measured(trace.value, join(trace.stderr, trace.stderr_data), draws, folds=whole),
        f"lambda1_{units}": Measured(first, float(top.stderr_data[0]), converged=converged, folds=folds),
    }
    if units == "filter":
        ratio = first / last if len(top.values) == 5 and last else math.nan
        quantities["lambda1_over_lambda5"] = Measured(ratio, converged=bool(top.converged.all()))
    return quantities


def _mean(seeds: list[Measured]) -> tuple[float, float, float]:
    """Return the mean, its standard error and degrees of freedom: over seeds, or those of a single network."""
    if len(seeds) == 1:
        return seeds[0].value, seeds[0].stderr, min((df for _, df in _scatter(seeds[0])), default=math.inf)
    return *mean_and_stderr(torch.tensor([seed.value for seed in seeds], dtype=torch.float64)), len(seeds) - 1


def _difference(mine: list[Measured], theirs: list[Measured]) -> tuple[float, float, float]:
    """Return the difference, its error and df: over paired seeds, paired draws, or of two separate numbers."""
    if len(mine) == len(theirs) > 1:
        return _mean([Measured(a.value - b.value) for a, b in zip(mine, theirs, strict=True)])
    here, there = _mean(mine), _mean(theirs)
    paired = _scatter(_paired(mine[0], theirs[0])) if len(mine) == len(theirs) else []
    stderrs, dfs = zip(*(paired or [here[1:], there[1:]]), strict=True)
    return here[0] - there[0], math.hypot(*stderrs), min(dfs)


def _paired(mine: Measured, theirs: Measured) -> Measured:
    """Return the difference with what both have in parts, and in the same folds of the data."""
    # a trace's probes may stop at different counts: those that both have in common tell the scatter
    parts = [a - b for a, b in zip(mine.parts or [], theirs.parts or [], strict=False)]
    (values, shares), (others, their_shares) = mine.folds or [[], []], theirs.folds or [[], []]
    folds = [[a - b for a, b in zip(values, others, strict=False)], shares] if shares == their_shares else None
    return Measured(mine.value - theirs.value, parts=parts, folds=folds)


def _scatter(one: Measured) -> list[tuple[float, float]]:
    """Return the standard errors, each with its degrees of freedom, that parts and folds of the data tell."""
    parts = torch.tensor(one.parts or [], dtype=torch.float64)
    values, shares = torch.tensor(one.folds or [[], []], dtype=torch.float64)
    errors = [(mean_and_stderr(parts)[1], len(parts) - 1), (fold_stderr(values, shares), len(shares) - 1)]
    return [(error, df) for error, df in errors if df > 0]


def common_probe(groups: Mapping[str, Sequence[Model]]) -> Any:
    """Return the probe that all networks carry; None where all are objectives, which have their own data."""
    models = [(name, model) for name, group in groups.items() for model in group]
    if all(isinstance(model, Objective) for _, model in models):
        return None
    first: Any = None
    for name, probe in [(name, getattr(model, "probe", None)) for name, model in models]:
        first = first or probe
        if probe is None or not all(map(torch.equal, first, probe)):
            which = "no probe (saq_core.train leaves one)" if probe is None else "another probe than the first network"
            raise ValueError(f"{name!r} carries {which}: pass data=(x, y) to measure all on")
    return first


def check_models(groups: Mapping[str, Sequence[Any]]) -> None:
    """Raise if there is no network at all, or none by some name."""
    if not groups or not all(groups.values()):
        counts = {name: len(group) for name, group in groups.items()}
        raise ValueError(f"models must name at least one network each, got {counts}")


def merge_about(abouts: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe the networks together: the space and the kind of derivative of the most rounded one."""
    about = {key: value for key, value in abouts[0].items() if key != "weight_norm"}
    space = next((a["space"] for a in abouts if a["space"] != "float"), "float")
    labels = ("straight-through", "unverified", "not measured", "exact")
    return about | {"space": space, "derivatives": min((a["derivatives"] for a in abouts), key=labels.index)}


def quantity_label(quantity: str) -> str:
    """Name a quantity as tables do."""
    name, _, radius = quantity.rpartition("_")
    increase = {"worst": "worst-case loss increase", "average": "average loss increase"}.get(name)
    return f"{increase} at {100 * float(radius):g}%" if increase else _LABELS.get(quantity, quantity)
