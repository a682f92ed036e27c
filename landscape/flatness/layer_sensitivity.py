"""Which layer can take how few bits: the loss increase of each layer at each format, measured and predicted."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import one_of, seed_of
from ..curvature import GGN, Hessian, trace
from ..linalg import fold_stderr
from ..model import BatchObjective, Evaluation, Loss, Objective, Point, copied, objective_of, stderr_of_mean
from ..progress import announce, progress, stopwatch
from ..results import Result, with_error
from .rounding import at_levels, best_step

Quantize = Callable[[nn.Module, dict[str, str]], nn.Module]
Prediction = Literal["hessian", "ggn", "trace"]
Interactions = Literal["whole", "pairs"]
_DRAWS, _AGAIN = 1000, 200  # of the bootstrap, and of other data
_FEWEST = 5  # layers that a bootstrap says something of
_BLOCK = 4  # products at once: graphs that are not kept are built for all of them
_SAME = 1e-4  # of a sample's loss: two networks that differ by less compute the same
_NO_SCORES = "the loss is no cross-entropy of scores, known sample by sample in one order"
_PROBES = 40  # of the trace, about: what a prediction of the time counts


@dataclass(frozen=True, eq=False)
class Sensitivity(Result):
    """How much the loss increases when one layer alone is quantized, for each layer and each format.

    Attributes:
        rows: one record per layer and format: ``increase``, the measured increase of the loss, and ``stderr``, its
            standard error over the data, paired; ``kl``, KL(p ‖ p_quantized) of the classes' probabilities, mean over
            the samples (tokens count whether their targets do or not), and ``kl_stderr`` (NaN where the loss is not the
            cross-entropy of scores: ``about["kl"]``); and of each prediction, "hessian", "ggn" and "trace", its value
            and ``…_stderr``: of the first two over the data (by t with folds − 1 degrees of freedom), of the trace over
            its probes.
        correlations: one record for each of "increase" and "kl" (``measured``), each prediction, overall (``format``
            "all") and within each format: Kendall's ``tau`` of the two, the ends ``low`` and ``high`` of its 95 %
            interval (NaN with fewer than five layers, and rather too short with ten: where all agree, no width), the
            number of ``cells``, and ``repeat``, the mean τ of what was measured with what other data would give.
        interactions: one record for each format ("whole"), or for each two layers at each format ("pairs"): the
            increase ``together``, the sum of the single ones, ``alone``, and their difference, ``interaction``, each
            with ``…_stderr``, paired.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> sensitivity = landscape.sensitivity(model, data, formats=("W2", "W8"))
        >>> sensitivity.layers, sensitivity.formats, sensitivity.array("increase").shape
        (['0', '2'], ['W2', 'W8'], torch.Size([2, 2]))
        >>> list(sensitivity.frame.columns[:4])
        ['layer', 'format', 'increase', 'stderr']
    """

    rows: list[dict[str, Any]]
    correlations: list[dict[str, Any]]
    interactions: list[dict[str, Any]]
    picture: ClassVar[str] = "sensitivities.sensitivity"
    how: ClassVar[str] = "increase of the loss with one layer quantized, all others kept, paired over the samples"

    @property
    def layers(self) -> list[str]:
        """The layers, in the order of the network's weights."""
        return list(dict.fromkeys(row["layer"] for row in self.rows))

    @property
    def formats(self) -> list[str]:
        """The formats, in the order that was asked for."""
        return list(dict.fromkeys(row["format"] for row in self.rows))

    def array(self, column: str) -> Tensor:
        """Return a column of the rows as (layers, formats), float64.

        Raises:
            ValueError: there is no such column.
        """
        one_of("column", column, list(self.rows[0])[2:])
        return torch.tensor([row[column] for row in self.rows], dtype=torch.float64).view(len(self.layers), -1)

    def _cells(self) -> dict[str, list[str]]:
        texts = [with_error(row["increase"], row["stderr"]) for row in self.rows]
        columns = {form: texts[k :: len(self.formats)] for k, form in enumerate(self.formats)}
        return {"loss increase": self.layers} | columns

    def __repr__(self) -> str:
        found = [record for record in self.correlations if record["format"] == "all"]
        taus = [f"{r['prediction']} {r['tau']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in found]
        told = f"; Kendall's τ with {', '.join(taus[: len(taus) // 2])}".replace(" [nan, nan]", "") if taus else ""
        most = max(self.rows, key=lambda row: row["increase"] if row["increase"] == row["increase"] else -math.inf)
        largest = f"{with_error(most['increase'], most['stderr'])} of {most['layer']} at {most['format']}"
        return f"Sensitivity({len(self.layers)} layers × {len(self.formats)} formats, largest {largest}{told})"


def sensitivity(
    model: nn.Module | Objective,
    data: Any = None,
    *,
    formats: Sequence[str] = ("W2", "W3", "W4", "W8"),
    layers: Sequence[str] | None = None,
    quantize: Quantize | None = None,
    predictions: Sequence[Prediction] | None = None,
    interactions: Interactions | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Sensitivity:
    """Measure how much the loss increases when one layer is quantized and all others are left, and predict it.

    For a layer whose weights move by Δ: f(w + Δ) − f(w), measured, with its standard error over the samples, paired;
    beside it ½ΔᵀHΔ with the Hessian, the same with the Gauss-Newton matrix, and what HAWQ-V2 goes by, the mean of the
    Hessian's diagonal times ‖Δ‖² (here with ½, to be an increase of the loss as well). The term gᵀΔ is left out, as all
    of them do; it is zero at a minimum only, and where Δ is small it can be the larger one. KL has no such term. Of one
    layer of a ReLU network, the Hessian and the Gauss-Newton matrix are the same.

    Predictions are judged by Kendall's τ-b, the share of pairs of cells in the same order less that of pairs in the
    opposite one: it needs no scale, and few layers suffice. Its interval is a bootstrap over the layers, each with all
    its formats. The measured order has errors itself, beyond which no prediction can be judged: see ``repeat``.

    Args:
        model: a float network; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        formats: "W2" to "W16"; with ``quantize`` whatever that takes.
        layers: names of modules or weights; default all. A layer is a module with all weights of its own that vary and
            have two or more dimensions. Weights as large that do not vary are listed in ``about["left_out"]``.
        quantize: ``quantize(model, {layer: format})`` → the network with these layers quantized; it is handed a copy in
            eval mode. Default: each weight tensor is rounded to the grid of least squared error, with one step per
            tensor (see `rounding_sharpness`). There are no predictions for a network that moving its weights alone does
            not give, say one with rounded activations.
        predictions: out of "hessian", "ggn" and "trace"; default all that can be made, () for none.
        interactions: ``"whole"``: all layers at one format at once, against the sum of the single increases;
            ``"pairs"``: f(a, b) − f(a) − f(b) + f(0) for every two layers.
        seed: of the trace's probes, of the bootstrap, and of whatever ``quantize`` draws by torch.
        loss, objective: see `Objective`.

    Raises:
        ValueError: unknown formats, layers that cannot be quantized or are already, a network in shards, bad data; no
            second derivative (then ``predictions=()``).
        TypeError: ``quantize`` returns no network.

    Cost: a forward pass over the data for each layer and format (about three with ``quantize``), and as many for each
    pair; as many products with each matrix, 30 to 60 for the trace. Several processes share the passes, but not those
    of ``quantize``. Memory: the weights once for each format, and twice the network's outputs over the data.

    Source: Dong et al., HAWQ-V2 (2020), eq. 8; Kendall 1945.

    Example:
        >>> import torch, landscape
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> data = torch.randn(32, 3), torch.randint(2, (32,))
        >>> result = landscape.sensitivity(model, data, formats=("W2", "W4"), interactions="whole")
        >>> len(result.rows), len(result.interactions)
        (4, 2)
    """
    parallel.check_agreement(**locals())
    elapsed, seed = stopwatch(), seed_of(seed)
    function = objective_of(model, data, loss=loss, objective=objective, layers=layers)
    made = predictions if predictions is not None else ["hessian", *["ggn"] * function.criterion.has_output, "trace"]
    weights, left_out = _weights(function, layers)
    rounding = _rounding(function.coordinates.centre, weights, formats, quantize)
    single = [{layer: form} for layer in weights for form in formats]
    groups = itertools.combinations(weights, 2) if interactions == "pairs" else [tuple(weights)] * bool(interactions)
    together = [dict.fromkeys(group, form) for group in groups for form in formats]
    operators: dict[str, Hessian] = {"hessian": Hessian(function)} if {"hessian", "trace"} & {*made} else {}
    operators |= {"ggn": GGN(function)} if "ggn" in made else {}
    products = {"hessian": len(single) * ("hessian" in made) + _PROBES * ("trace" in made), "ggn": len(single)}
    costs = [operator.estimate(products[name], _BLOCK) for name, operator in operators.items()]
    start, here = elapsed(), _evaluated(function)
    shares = here[0].weights.cpu()  # which waits for the device
    weights_of = {"increase": shares, "kl": torch.full_like(shares, 1 / max(1, len(shares)))}
    passes = (len(single) + len(together)) * (1 if quantize is None else 3)
    expected = passes * (elapsed() - start) + sum(cost["seconds"] for cost in costs)
    graphs, vectors = (max((cost[key] for cost in costs), default=0.0) for key in ("bytes", "vectors"))
    announce(sum(products[name] for name in operators), expected, graphs, vectors, passes=passes)
    measured, moves = _measured(function, here, [*single, *together], rounding, quantize, seed)
    moves = moves[: len(single)]
    rows: list[dict[str, Any]] = [{"layer": layer, "format": form} for cell in single for layer, form in cell.items()]
    for k, row in enumerate(rows):
        for name, error in (("increase", "stderr"), ("kl", "kl_stderr")):
            own = measured[name][k]
            row |= {name: float(own[0]), error: float(stderr_of_mean(own[1:], weights_of[name]))}
    for name in dict.fromkeys(made):
        found = _predicted(name, operators["ggn" if name == "ggn" else "hessian"], moves, seed)
        rows = [row | {name: value, f"{name}_stderr": error} for row, (value, error) in zip(rows, found, strict=True)]
    more = "more changes than the weights" if len(shares) else "not known sample by sample what changes"
    unknown = dict.fromkeys(row["format"] for row, move in zip(rows, moves, strict=True) if move is None and made)
    notes = {"left_out": left_out, "kl": "" if here[1] is not None else _NO_SCORES}
    notes["no_prediction"] = f"{more}: {', '.join(unknown)}" if unknown else ""
    about = function.about(quantize="grid of least squared error, per tensor" if quantize is None else "a function")
    about |= {key: note for key, note in notes.items() if note}
    about |= {"seed": seed, "seconds_expected": round(expected, 3), "seconds": elapsed()}
    correlations = list(_correlations(rows, measured, weights_of, seed))
    return Sensitivity(about, rows, correlations, list(_interactions(measured["increase"], single, together, shares)))


def _weights(function: Objective, layers: Sequence[str] | None) -> tuple[dict[str, list[str]], list[str]]:
    """Return layer → names of its weights, and the weights that stay as they are although they are as large."""
    found: dict[str, list[str]] = {}
    names = [name for name, weight in function.coordinates.centre.items() if weight.ndim > 1]
    for name in names:
        found.setdefault(name.rpartition(".")[0] or name, []).append(name)
    without = [layer for layer in layers or () if not any(f"{name}.".startswith(f"{layer}.") for name in names)]
    if without or not found:
        what = f"layers must name some, got {without[0]!r}, which has none" if without else "model must have some"
        raise ValueError(f"weights of two or more dimensions that vary can be quantized: {what}")
    if function.coordinates.layouts:
        raise ValueError("model must have whole weights for sensitivity, got a network in shards")
    if rounded := [name for name in names if name in function.rounded]:
        raise ValueError(
            f"model must be a float network, got one whose {rounded[0]} is quantized already: pass the network before "
            "it was, or name what is float in it, layers=[…]"
        )
    large = [name for name, p in function.model.named_parameters() if p.ndim > 1 and p.is_floating_point()]
    return found, [name for name in large if layers is None and name not in names]


def _rounding(
    centre: Point, weights: Mapping[str, list[str]], formats: Sequence[str], quantize: Quantize | None
) -> dict[tuple[str, str], Point]:
    """Return (layer, format) → how rounding to the grid of least squared error moves the weights; {} for a function."""
    odd = [form for form in formats if quantize is None and not re.fullmatch(r"W([2-9]|1[0-6])", form)]
    if odd or not formats or len({*formats}) < len(formats):
        raise ValueError(
            f'formats must be different ones of "W2" to "W16", got {odd[0] if odd else list(formats)!r}: '
            "quantize=(model, {layer: format}) → model does anything else"
        )
    cells = itertools.product(weights, formats if quantize is None else ())
    return {
        (layer, form): {n: _moved_to_grid(centre[n], int(form[1:])) for n in weights[layer]} for layer, form in cells
    }


def _moved_to_grid(w: Tensor, bits: int) -> Tensor:
    return at_levels(w, best_step(w, bits), bits) - w


def _evaluated(function: Objective, move: Point | None = None) -> tuple[Evaluation, Tensor | None]:
    """Return the function at a displacement, and the logarithms of the classes' probabilities, if samples have such."""
    scores: list[Any] = []
    watched = copy.copy(function)
    watched.criterion = copy.copy(function.criterion)
    watched.criterion.watch = lambda output: scores.append(function.criterion.log_probabilities(output))
    there = watched.evaluate(move)
    known = bool(scores) and None not in scores and sum(map(len, scores)) == len(there.losses)
    return there, torch.cat(scores) if known else None


def _measured(
    function: Objective,
    here: tuple[Evaluation, Tensor | None],
    choices: Sequence[dict[str, str]],
    rounding: Mapping[tuple[str, str], Point],
    quantize: Quantize | None,
    seed: int,
) -> tuple[dict[str, Tensor], list[Point | None]]:
    """Measure the network at each choice, layer → format.

    Returns:
        "increase", "kl" → (choices, 1 + n), the mean and the samples' values; how the weights moved, None where that
        alone does not make the quantized network.
    """
    (centre, before), moves = here, list[Point | None]()
    table = torch.zeros(len(choices), 2, 1 + len(centre.losses), dtype=torch.float64, device=function.device)
    # all processes make the networks of a function, and see that they are the same
    dealt, own = quantize is None, slice(parallel.rank(), None, parallel.size())
    for k in progress(range(len(choices))[own] if dealt else range(len(choices)), "sensitivity"):
        if quantize is None:
            move = {n: d for item in choices[k].items() for n, d in rounding[item].items()}
            there, after = _evaluated(function, move)
        else:
            quantized = _quantized(function, quantize, choices[k], seed)
            there, after = _evaluated(quantized)
            moves.append(_moved(function, quantized, there.losses))
        kl = torch.full_like(centre.losses, math.nan)
        if before is not None and after is not None:
            p = before.exp()
            kl = torch.where(p > 0, p * (before - after), 0.0).sum(1).reshape(len(before), -1).mean(1)
        table[k, :, 0] = torch.stack([there.loss - centre.loss, kl.mean()])
        table[k, :, 1:] = torch.stack([there.losses - centre.losses, kl])
    increase, kl = (parallel.sum_(table) if dealt else table).cpu().unbind(1)
    return {"increase": increase, "kl": kl}, list(rounding.values()) or moves


def _quantized(function: Objective, quantize: Quantize, choice: dict[str, str], seed: int) -> Objective:
    with function.measurement_mode():  # which puts the random state back
        torch.manual_seed(seed)
        network = quantize(copied(function.model), dict(choice))
    if not isinstance(network, nn.Module):
        raise TypeError(f"quantize must return a network (nn.Module), got {type(network).__name__} for {choice}")
    return function.of(network)


def _moved(function: Objective, quantized: Objective, losses: Tensor) -> Point | None:
    ours, theirs = function.coordinates.centre, quantized.coordinates.centre
    if any(name not in theirs or theirs[name].shape != w.shape for name, w in ours.items()):
        return None
    move = {name: theirs[name] - w for name, w in ours.items() if not torch.equal(theirs[name], w)}
    found = function.evaluate(move).losses
    return move if len(found) and torch.allclose(found, losses, rtol=_SAME, atol=_SAME) else None


def _interactions(
    increase: Tensor, single: Sequence[dict[str, str]], together: Sequence[dict[str, str]], shares: Tensor
) -> Iterator[dict[str, Any]]:
    """Yield a record for each group of layers that were quantized at once."""
    rows = {item: row for cell, row in zip(single, increase, strict=False) for item in cell.items()}
    for choice, row in zip(together, increase[len(single) :], strict=True):
        alone = torch.stack([rows[item] for item in choice.items()]).sum(0)
        layers = " + ".join(choice) if len(choice) == 2 else f"all {len(choice)}"
        record: dict[str, Any] = {"layers": layers, "format": next(iter(choice.values()))}
        for name, part in {"together": row, "alone": alone, "interaction": row - alone}.items():
            record |= {name: float(part[0]), f"{name}_stderr": float(stderr_of_mean(part[1:], shares))}
        yield record


def _predicted(name: str, operator: Hessian, moves: Sequence[Point | None], seed: int) -> list[tuple[float, float]]:
    """Return what is predicted for each displacement, and its standard error; NaN where none is known."""
    found, centre, shares = [], operator.coordinates, operator.fold_weights.cpu()
    means = trace(operator, per_layer=True, rtol=0.05, seed=seed).layers if name == "trace" else {}
    zeros = {key: torch.zeros_like(w) for key, w in centre.centre.items()}
    for start in progress(range(0, len(moves), _BLOCK), f"sensitivity, {name}"):
        block = moves[start : start + _BLOCK]
        if name == "trace":
            for move in block:
                parts = [(*means[key], float(d.double().square().mean()) / 2) for key, d in (move or {}).items()]
                error = math.hypot(*(e * scale for _, e, scale in parts))
                found.append((sum(v * scale for v, _, scale in parts), error))
            continue
        vectors = torch.stack([centre.flatten(zeros | (move or {})).to(operator.device) for move in block], 1)
        forms = (operator.by_fold(vectors).double() * vectors.double()).sum(1).cpu() / 2
        found += [(float(shares @ column), fold_stderr(column, shares)) for column in forms.T]
    return [(math.nan, math.nan) if move is None else pair for pair, move in zip(found, moves, strict=True)]


def _correlations(
    rows: Sequence[dict[str, Any]], measured: Mapping[str, Tensor], weights_of: Mapping[str, Tensor], seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a record for each thing measured and each prediction, overall and within each format.

    Other data of this size would give what was measured, but for Σ shares·(values of the samples − mean)·z, z of
    independent standard normal numbers: errors that the cells have in common stay in common.
    """
    generator = torch.Generator().manual_seed(seed)
    layers, formats = (list(dict.fromkeys(row[key] for row in rows)) for key in ("layer", "format"))
    chosen = torch.randint(len(layers), (_DRAWS, len(layers)), generator=generator)
    counts = torch.nn.functional.one_hot(chosen, len(layers)).sum(1).double()
    samples = len(weights_of["increase"])
    normal = torch.randn(samples, _AGAIN, generator=generator, dtype=torch.float64)
    normal *= (samples / (samples - 1)) ** 0.5 if samples > 1 else math.nan
    predictions = [key for key in get_args(Prediction) if key in rows[0]]
    for name, prediction, form in itertools.product(measured, predictions, ["all", *formats]):
        values, predicted = measured[name], torch.tensor([row[prediction] for row in rows], dtype=torch.float64)
        cells = [k for k, row in enumerate(rows) if form in ("all", row["format"])]
        cells = [k for k in cells if values[k, 0].isfinite() and predicted[k].isfinite()]
        x, y, once = values[cells, 0], predicted[cells], torch.ones(1, len(cells), dtype=torch.float64)
        again = x[:, None] + (weights_of[name] * (values[cells, 1:] - x[:, None])) @ normal
        spread = _kendall(x, y, counts[:, [layers.index(rows[k]["layer"]) for k in cells]])
        ends = spread.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        low, high = ends.tolist() if len(layers) >= _FEWEST else (math.nan, math.nan)
        repeat = float(torch.cat([_kendall(x, other, once) for other in again.T]).mean())
        record = {"measured": name, "prediction": prediction, "format": form, "tau": float(_kendall(x, y, once))}
        yield record | {"low": low, "high": high, "cells": len(cells), "repeat": repeat}


def _kendall(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Return Kendall's τ-b of cells that count so often, (draws, cells) → (draws,); NaN where all are tied."""
    one, other = ((part[:, None] - part).sign() for part in (x, y))
    same, ones, others = (((counts @ signs) * counts).sum(1) for signs in (one * other, one.square(), other.square()))
    return same / (ones * others).sqrt()
