"""The basin of a network: how far its loss stays low on the way to quantized copies, and which of them lie inside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import numbers
from ..model import (
    Along,
    BatchNorm,
    BatchObjective,
    Evaluation,
    Loss,
    Objective,
    Point,
    objective_of,
    stderr_of_mean,
    step_to,
)
from ..progress import progress, stopwatch
from ..results import Result, with_error
from .grids import Line, Surface, line, surface

MODEL = "model"
_MARGIN = 0.1
_AROUND = 0.5  # of a way: what is measured beyond both of its ends
_COARSE = (0.25, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0)  # of a layer's way: where its rim is looked for
_HALVINGS = 5
_POINTS_OF_BARRIER = 11
_OWN_PLACE = {"network": MODEL, "distance": 0.0, "increase": 0.0, "increase_stderr": 0.0, "width": math.nan}
_OWN_PLACE |= {"width_stderr": math.nan, "inside": True, "excess_in_stderr": math.nan}
_FLAT = 1e-3  # of a way's length: ways that differ in direction by less span no plane


@dataclass(frozen=True, eq=False)
class Basin(Result):
    """Where networks lie, seen from the one in the middle of the basin.

    The basin is where the loss of the model's weights exceeds the model's by no more than ``margin``. A way leads
    straight from the model's weights to another network's weights as its forward pass uses them (rounded).

    Attributes:
        margin: in units of the loss.
        rows: a record for the model and for each network. *network*; *distance*, ‖w − w_model‖; *increase* and
            *increase_stderr*, of the loss at the network's weights on the way; *width* and *width_stderr*, the share of
            the way at which the loss first exceeds the margin (inf: nowhere on the line); *inside*, whether that is
            behind the network; *excess_in_stderr*, (increase − margin)/stderr; and of the network itself, with its own
            activations and statistics, *loss*, *loss_stderr* (of the difference to the model's own), *accuracy*,
            and *loss_recomputed*, *accuracy_recomputed* with BatchNorm's statistics recomputed on the data.
        layers: a record for each weight and network: *network*, *layer*, *distance*, *ratio* and *ratio_stderr* of that
            to the width of the basin along it, all other layers kept: above 1 the layer alone steps over the rim; 0
            where no rim was found within eight times the way.
        barriers: a record for each pair of networks: *pair*, *barrier* and *barrier_stderr*, the largest
            L(t) − (1 − t)·L(0) − t·L(1) of 11 points between the two.
        lines: network → `Line` towards it, at 1.
        surfaces: ``{"": plane}`` through the model and two networks, empty for fewer or more. Its axes are at right
            angles and of one scale: the first network lies at (1, 0), the second at ``about["places"]``.

    Example:
        >>> import torch, landscape
        >>> data, names = (torch.randn(32, 3), torch.randint(2, (32,))), ('RTN', 'QAT')
        >>> others = {name: torch.nn.Linear(3, 2) for name in names}
        >>> basin = landscape.basin(torch.nn.Linear(3, 2), others, data, points=9)
        >>> [row['network'] for row in basin.rows], list(basin.frame.columns[:3])
        (['model', 'RTN', 'QAT'], ['network', 'distance', 'increase'])
    """

    margin: float
    rows: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    barriers: list[dict[str, Any]]
    lines: dict[str, Line]
    surfaces: dict[str, Surface]
    picture: ClassVar[str] = "basins.basin"
    how: ClassVar[str] = (
        "width: the share of the straight way to a network's rounded weights at which the loss first exceeds the "
        "model's by the margin, error by the delta method from the samples' losses; own loss: with the network's "
        "activations and statistics"
    )

    def _cells(self) -> dict[str, list[str]]:
        names, cells = ("", "inside", "width, in ways", "loss increase, weights alone", "own loss", "own accuracy"), []
        for row in self.rows:
            texts = ["–"] * 3
            if row["network"] != MODEL:
                texts = ["yes" if row["inside"] else "no", width_text(row["width"], row["width_stderr"])]
                texts.append(with_error(row["increase"], row["increase_stderr"], sign=True))
            cells.append([row["network"], *texts, f"{row['loss']:.4g}", f"{row['accuracy']:.2%}"])
        return dict(zip(names, map(list, zip(*cells, strict=True)), strict=True))

    def __repr__(self) -> str:
        parts = [
            f"{row['network']} {'inside' if row['inside'] else 'outside'} ({row['excess_in_stderr']:+.1f} stderr)"
            for row in self.rows[1:]
        ]
        return f"Basin(loss ≤ the model's + {self.margin:.3g}: {', '.join(parts)})"


def basin(
    model: nn.Module | Objective,
    networks: Mapping[str, nn.Module],
    data: Any = None,
    *,
    margin: float | None = None,
    points: int = 25,
    batchnorm: BatchNorm | None = None,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    batch_size: int | None = None,
) -> Basin:
    """Measure whether quantized copies of a network lie in its basin, and how wide that is on the way to each.

    Does rounding leave the basin, and does quantization-aware training come back? On the straight way from w to the
    weights w' = Q(·) that a copy computes with, loss(t) = L(w + t·(w' − w)); the width of the basin is the first t at
    which it exceeds L(w) + margin, and the copy lies inside if t > 1. The loss is that of ``model`` with those weights:
    quantized activations, and statistics that are the copy's own, count in its *own* loss, which stands beside it.

    Args:
        model: the network in whose basin the others are looked for, as a rule the float one, or its `Objective`; not
            touched.
        networks: name → network of the same architecture: one gives a line, two the plane through all three, more a
            fan of lines.
        data: ``(x, y)`` or batches; default ``model.probe``.
        margin: in units of the loss; default 0.1 of a cross-entropy (likelihoods lower by a tenth), of one that is
            summed 0.1 for each sample, and a tenth of the model's loss of any other.
        points: of each line, from −0.5 to 1.5 ways, and along each side of the plane; one more than a multiple of 4,
            so that both networks are measured.
        batchnorm: see `line`; default recomputed at every point where there is BatchNorm.
        loss, objective, batch_size: see `Objective`.

    Raises:
        ValueError: no network, one of another architecture or with the same weights, margin ≤ 0, points that miss the
            networks, bad data.

    Cost: of k networks with L weights of two or more dimensions k·(points + 12·L) + 11·k·(k + 1)/2 forward passes, and
        points² for the plane; twice that with recomputed statistics.
    Source: basins and rounding, Huang et al. 2510.06213, 2606.09012 (the question; width and margin are our choice);
        barriers, Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis".

    Example:
        >>> import torch, landscape
        >>> data, model = (torch.randn(32, 3), torch.randint(2, (32,))), torch.nn.Linear(3, 2)
        >>> basin = landscape.basin(model, {'other': torch.nn.Linear(3, 2)}, data, points=9)
        >>> basin.lines['other'].alphas.tolist()[::2]
        [-0.5, 0.0, 0.5, 1.0, 1.5]
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    numbers(above=0, optional=True, margin=margin)
    numbers(whole=True, at_least=5, points=points)
    if points % 4 != 1:
        raise ValueError(f"points must be one more than a multiple of 4, so that both ends are measured, got {points}")
    if not networks or MODEL in networks:
        raise ValueError(f"networks must hold at least one, and none named {MODEL!r}, got {list(networks)}")
    arguments: dict[str, Any] = {"loss": loss, "objective": objective, "batch_size": batch_size}
    function = objective_of(model, data, batchnorm=batchnorm or "fixed", **arguments)
    if batchnorm is None and function.network.norms:
        function = function.variant(batchnorm="recomputed")
    ways = {name: _way(function, name, other) for name, other in networks.items()}
    explorer = _Explorer(function, _margin(function) if margin is None else margin)
    rows, layers, lines = [_OWN_PLACE | explorer.own(function)], list[dict[str, Any]](), {}
    for name, way in progress(ways.items(), "ways to networks", len(ways)):
        given = line(function, directions=way, span=(-_AROUND, 1 + _AROUND), points=points)
        lines[name] = replace(given, about=given.about | {"axes": [{"kind": "network"}]})
        rows.append({"network": name} | explorer.way(way, lines[name]) | explorer.own(function.of(networks[name])))
        layers += explorer.layers(name, way)
    barriers = list(explorer.barriers({MODEL: {}} | ways))
    plane, places = _plane(function, ways, points) if len(ways) == 2 else ({}, [])
    about = function.about(loss=function.criterion.name, places=places, seconds=elapsed())
    return Basin(about, explorer.margin, rows, layers, barriers, lines, plane)


class _Explorer:
    """Walks away from the model until the loss exceeds the margin."""

    def __init__(self, function: Objective, margin: float) -> None:
        self.function, self.margin, self.here = function, margin, function.centre
        self.fixed = function.variant(batchnorm="fixed").centre

    def own(self, other: Objective) -> dict[str, Any]:
        """Return what a network has by itself."""
        own = other.variant(batchnorm="fixed").centre
        row = {"loss": float(own.loss), "loss_stderr": float(own.stderr(self.fixed)), "accuracy": float(own.accuracy)}
        if other.network.norms:
            again = other.variant(batchnorm="recomputed").centre
            row |= {"loss_recomputed": float(again.loss), "accuracy_recomputed": float(again.accuracy)}
        return row

    def way(self, way: Point, measured: Line) -> dict[str, Any]:
        """Return where a network lies, and how wide the basin is on the way there."""
        there = self.function.evaluate(way)
        increase, stderr = float(there.loss - self.here.loss), float(there.stderr(self.here))
        outside = (measured.alphas > 0) & ~(measured.loss - self.here.loss.cpu() <= self.margin)
        first = int(outside.nonzero()[0]) if outside.any() else None
        width = (
            (math.inf, math.nan) if first is None else self._rim(way, *measured.alphas[first - 1 : first + 1].tolist())
        )
        return {
            "distance": float(self.function.coordinates.length(way)),
            "increase": increase,
            "increase_stderr": stderr,
            "width": width[0],
            "width_stderr": width[1],
            "inside": width[0] >= 1,
            "excess_in_stderr": (increase - self.margin) / stderr if stderr > 0 else math.nan,
        }

    def layers(self, name: str, way: Point) -> Iterator[dict[str, Any]]:
        """Yield the same of each weight's own way, all others kept."""
        for layer, step in way.items():
            if step.ndim < 2 or not step.any():
                continue
            inside, width = 0.0, (math.inf, math.nan)
            for share in _COARSE:
                if self._exceeds({layer: share * step}):
                    width = self._rim({layer: step}, inside, share)
                    break
                inside = share
            length, ratio = float(self.function.coordinates.length({layer: step})), 1 / width[0]
            row = {"network": name, "layer": layer, "distance": length, "ratio": ratio}
            yield row | {"ratio_stderr": width[1] * ratio**2}

    def barriers(self, places: Mapping[str, Point]) -> Iterator[dict[str, Any]]:
        """Yield the barrier between each two places."""
        for (a, start), (b, end) in combinations(places.items(), 2):
            shares = torch.linspace(0, 1, _POINTS_OF_BARRIER, dtype=torch.float64).tolist()
            seen = [self.function.evaluate(Along([start, end], [1 - share, share])) for share in shares]
            above = [_above(seen[0], seen[-1], part, share) for part, share in zip(seen, shares, strict=True)][1:-1]
            barrier, stderr = max(above, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
            yield {"pair": f"{a} – {b}", "barrier": barrier, "barrier_stderr": stderr}

    def _exceeds(self, displacement: Mapping[str, Tensor]) -> bool:
        return not float(self.function.evaluate(displacement).loss - self.here.loss) <= self.margin  # NaN does

    def _rim(self, way: Point, inside: float, outside: float) -> tuple[float, float]:
        """Return where the loss crosses the margin between two shares of a way, and its standard error over the data.

        That of the loss's difference over its slope.
        """
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if self._exceeds(Along([way], [middle])) else (middle, outside)
        low, high = (self.function.evaluate(Along([way], [share])) for share in (inside, outside))
        slope = float(high.loss - low.loss) / (outside - inside)
        short = self.margin - float(low.loss - self.here.loss)
        share = inside + short / slope if math.isfinite(slope) and slope > 0 else outside
        return share, float(high.stderr(self.here)) / slope if slope > 0 else math.nan


def width_text(share: float, stderr: float) -> str:
    """Write the width of a basin; lines end at one and a half ways."""
    return with_error(share, stderr) if math.isfinite(share) else f"> {1 + _AROUND:g}"


def _above(start: Evaluation, end: Evaluation, there: Evaluation, share: float) -> tuple[float, float]:
    """Return how far a point of a line lies above the chord between its ends, and the standard error of that."""
    height = there.loss - (1 - share) * start.loss - share * end.loss
    by_sample = there.losses - (1 - share) * start.losses - share * end.losses
    return float(height), float(stderr_of_mean(by_sample, there.weights))


def _margin(function: Objective) -> float:
    criterion = function.criterion
    has_own_loss = criterion.custom_loss is not None or not criterion.has_output or criterion.alignment == "unknown"
    scale = float(function.centre.loss) if has_own_loss else 1.0
    if not has_own_loss and function.reduction == "sum":
        scale = float(function.samples or math.nan)
    margin = _MARGIN * scale
    if not 0 < margin < math.inf:
        raise ValueError(f"the model's loss is {float(function.centre.loss):.4g}: no default margin, pass margin=")
    return margin


def _way(function: Objective, name: str, other: nn.Module) -> Point:
    try:
        way = step_to(function, other)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"networks[{name!r}] must be the model with other weights: {error}") from error
    if not 0 < float(function.coordinates.length(way)) < math.inf:
        raise ValueError(f"networks[{name!r}] has the model's weights, or none that are finite: no way leads there")
    return way


def _plane(function: Objective, ways: Mapping[str, Point], points: int) -> tuple[dict[str, Surface], list[list[float]]]:
    """Return the surface over the plane through three networks, and where the two others lie on it."""
    (name, first), (_, second) = ways.items()
    coordinates = function.coordinates
    length = float(coordinates.length(first))
    along = float(coordinates.inner(first, second)) / length**2
    across = dict(Along([second, first], [1.0, -along]))
    away = float(coordinates.length(across)) / length
    if away < _FLAT * max(1.0, abs(along)):
        return {}, []
    places = [[1.0, 0.0], [along, away]]
    farthest = max(1.0, away, abs(along - 0.5) + 0.5)  # one window for all planes of which that is 1: they can morph
    span = -_AROUND * farthest, (1 + _AROUND) * farthest
    directions = [first, {key: part / away for key, part in across.items()}]
    plane = surface(function, directions=directions, span=span, points=points)
    labels = [{"kind": "network", "name": name}, {"kind": "given", "name": "the direction across that"}]
    return {"": replace(plane, about=plane.about | {"axes": labels, "directions": "through three networks"})}, places
