"""How often error bars hold the truth: ``python tests/covering.py [RUNS]`` prints a table (13 minutes for 60 runs).

A small network, float and W4A4, is measured on disjoint sets of 256 from a population of 16,000 samples, each with new
draws and probes; the truth is the same number on the population, or that of the dense Hessian. An honest standard error
has a scatter of 1 and holds the truth in 68 % of the runs; two of them in 95 % where many samples or draws tell it, in
82 to 93 % where three to eight do. The interval should hold it in 95 %: a share over 60 runs is sure to ± 3 points.
"""

import math
import os
import sys
import time
from typing import NamedTuple

import torch
from torch import nn

import landscape
from landscape.linalg import lanczos, slq
from saq_core import calibrate, quantize

CLASSES, SIDE, RADIUS = 4, 6, 0.05
COLUMNS = ("runs", "bias", "scatter", "1 se", "2 se", "95 %")


class Size(NamedTuple):
    """How much is measured: runs, samples of the population and of a set, draws that tell a truth, training steps."""

    runs: int = 60
    population: int = 16_000
    rows: int = 256
    draws: int = 300
    steps: int = 300


def flat(part):
    """Return a number or several as a vector."""
    return torch.as_tensor(part, dtype=torch.float64).reshape(-1)


class Row:
    """The errors of one quantity, run by run."""

    def __init__(self) -> None:
        self.errors, self.stderrs, self.inside = [], [], []

    def add(self, value, stderr, truth, interval=None, shrink=1.0) -> None:
        """Add what a run says, a number or several; shrink: what a finite population takes off the scatter."""
        value, stderr, truth = (flat(part) for part in (value, stderr, truth))
        self.errors.append((value - truth) / shrink)
        self.stderrs.append(stderr)
        if interval is not None:
            low, high = (flat(end) for end in interval)
            self.inside.append(((low <= truth) & (truth <= high)).double())

    def summary(self) -> dict[str, float]:
        """Return runs, bias and scatter in stated errors (root mean square), and the shares of runs that are held."""
        errors, stderrs = torch.stack(self.errors), torch.stack(self.stderrs)
        stated = float(stderrs.square().mean()) ** 0.5
        numbers = [len(errors), float(errors.mean()) / stated, float(errors.std(0).square().mean()) ** 0.5 / stated]
        shares = [float((errors.abs() <= times * stderrs).double().mean()) for times in (1, 2)]
        shares = shares if stated > 0 else [stated] * 2
        held = float(torch.stack(self.inside).mean()) if self.inside else math.nan
        return dict(zip(COLUMNS, [*numbers, *shares, held], strict=True))


class Rows(dict):
    """Name → `Row`, made when it is first asked for."""

    def __missing__(self, name: str) -> Row:
        self[name] = Row()
        return self[name]


def population(size: Size):
    """Return samples of four classes that overlap, the last of them for training."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 1, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (size.population + 2048,), generator=generator)
    images = 0.5 * centres[labels] + torch.randn(len(labels), 1, SIDE, SIDE, generator=generator)
    cut = (size.population, 2048)
    return tuple(zip(images.split(cut), labels.split(cut), strict=True))


def trained(model, data, steps: int):
    """Train a network for some steps."""
    optimizer, generator = torch.optim.Adam(model.parameters(), 0.01), torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        index = torch.randint(len(data[1]), (128,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0][index]), data[1][index]).backward()
        optimizer.step()
    return model.eval()


def networks(data, steps: int):
    """Return a small network with BatchNorm, and its W4A4 copy, tuned."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()]
    model = trained(nn.Sequential(*layers, nn.Linear(24, CLASSES)), data, steps)
    copy = calibrate(quantize(model, "W4A4", first_last_bits=None), (data[0][:512], data[1][:512]))
    return {"FP32": model, "W4A4": trained(copy, data, steps // 2)}


def dense(operator):
    """Return an operator as a symmetric matrix, float64."""
    matrix = (operator @ torch.eye(operator.shape[0])).double()
    return (matrix + matrix.T) / 2


def joined(*errors):
    """Add standard errors up in quadrature."""
    return torch.stack([flat(error) for error in errors]).square().sum(0).sqrt()


SETTINGS = {
    "line": {"points": 9, "span": 0.5},
    "average": {"radii": (RADIUS,)},
    "worst": {"radii": (RADIUS,)},
    "curvature": {"radii": False, "derivatives": False},
}


def truths(model, everybody, draws: int):
    """Return what is measured on sets, on the population."""
    steps = None if hasattr(model[0], "delta") else (4,)
    function = landscape.Objective(model, everybody)
    here, top = function.centre, landscape.top_eigenvalues(function, k=1, which="largest", units="filter", tol=1e-4)
    found = {
        "loss": float(here.loss),
        "accuracy": float(here.accuracy),
        "trace_filter": landscape.trace(function, units="filter", rtol=0.01, num_probes=draws).value,
        "lambda1_filter": float(top.values),
        "line": landscape.line(function, **SETTINGS["line"]).loss,
        "average": landscape.average_sharpness(function, num_samples=draws, seed=999, **SETTINGS["average"]),
        "worst": landscape.worst_case_sharpness(function, **SETTINGS["worst"]),
        "rounding": landscape.rounding_sharpness(function, bits=steps, num_samples=draws, seed=999),
        "curvature": landscape.curvature_at_scale(function, num_samples=draws, seed=999, **SETTINGS["curvature"]).value,
    }
    increases = {name: part.delta_loss for name, part in found.items() if hasattr(part, "delta_loss")}
    worst, average = (float(increases[name]) for name in ("worst", "average"))
    return found | increases | {f"worst_{RADIUS:g}": worst, f"average_{RADIUS:g}": average}


def over_data(rows: Rows, name: str, model, data, seed: int, truth, shrink: float) -> None:
    """Measure one network on one set: each number against the population's."""
    steps = None if hasattr(model[0], "delta") else (4,)
    function = landscape.Objective(model, data)  # checked once
    trace = landscape.trace(function, units="filter", rtol=0.05, seed=seed)
    interval = trace.interval(over="data")
    rows[f"{name} trace (data)"].add(trace.value, trace.stderr_data, truth["trace_filter"], interval, shrink)
    top = landscape.top_eigenvalues(function, k=1, units="filter", which="largest", seed=seed)
    rows[f"{name} λ₁ (data)"].add(top.values, top.stderr_data, truth["lambda1_filter"], top.interval().T, shrink)
    line, middle = landscape.line(function, **SETTINGS["line"]), SETTINGS["line"]["points"] // 2
    off = torch.arange(len(line.loss)) != middle
    moved = (line.loss - line.loss[middle])[off], line.stderr[off]
    rows[f"{name} line"].add(*moved, (truth["line"] - truth["line"][middle])[off], None, shrink)
    average = landscape.average_sharpness(function, seed=seed, **SETTINGS["average"])
    error = joined(average.stderr, average.stderr_data)
    rows[f"{name} average sharpness"].add(average.delta_loss, error, truth["average"], None, shrink)
    noise = landscape.rounding_sharpness(function, bits=steps, seed=seed)
    error = joined(noise.stderr, noise.stderr_data)
    rows[f"{name} rounding noise"].add(noise.delta_loss, error, truth["rounding"], None, shrink)
    scale = landscape.curvature_at_scale(function, seed=seed, **SETTINGS["curvature"])
    rows[f"{name} curvature at scale"].add(scale.value, scale.stderr, truth["curvature"], None, shrink)
    worst = landscape.worst_case_sharpness(function, **SETTINGS["worst"])
    error = joined(worst.stderr_data, getattr(worst, "gain", torch.zeros(1)))
    rows[f"{name} worst case"].add(worst.delta_loss, error, truth["worst"], None, shrink)


def over_draws(rows: Rows, name: str, model, data, runs: int) -> None:
    """Measure one network's dense Hessian on one set with new probes and vectors: each against its eigenvalues."""
    matrix = dense(landscape.Hessian(model, data).filter_relative())
    values, pairs = torch.linalg.eigvalsh(matrix), lanczos(matrix, 10, tol=1e-9)
    bulk = values[values.abs().argsort(descending=True)][10:]
    share = float(-values.clamp_max(0).sum() / values.abs().sum())
    for seed in range(runs):
        trace = landscape.trace(matrix, rtol=0.05, seed=seed)
        rows[f"{name} trace (probes)"].add(trace.value, trace.stderr, values.sum(), trace.interval())
        found = slq(matrix, pairs=pairs, num_probes=8, steps=20, seed=seed)
        kernels = torch.exp(-((found.grid[:, None] - bulk) / found.width).square() / 2)
        exact = kernels.sum(1) * found.one_eigenvalue
        held = ((found.low <= exact) & (exact <= found.high))[exact > found.one_eigenvalue].double().mean()
        rows[f"{name} density band"].add(math.nan, math.nan, 0.0)
        rows[f"{name} density band"].inside.append(held[None])
        rows[f"{name} implied trace"].add(*found.implied_trace(), values.sum(), found.interval())
        negative = found.negative_share()
        rows[f"{name} negative mass"].add(*negative, share, found.interval(of=negative))


def paired(rows: Rows, models, data, seed: int, truth, shrink: float) -> None:
    """Compare two networks on one set: each difference against the population's."""
    comparison = landscape.compare(models, data, radii=(RADIUS,), points=0, seed=seed)
    first, other = models
    names = {"loss": "loss", "accuracy": "accuracy", "trace_filter": "trace", "lambda1_filter": "λ₁"}
    names |= {f"average_{RADIUS:g}": "average", f"worst_{RADIUS:g}": "worst case"}
    for quantity, name in names.items():
        difference = truth[other][quantity] - truth[first][quantity]
        held = comparison.interval(other, first, quantity)
        row = rows[f"{other} − {first}: {name}"]
        row.add(*comparison.difference(other, first, quantity), difference, held, shrink)


def measure(size: Size) -> dict[str, dict[str, float]]:
    """Return row → column → number."""
    everybody, training = population(size)
    models, rows = networks(training, size.steps), Rows()
    truth = {name: truths(model, everybody, size.draws) for name, model in models.items()}
    shrink = (1 - size.rows / size.population) ** 0.5
    sets = [tuple(part[run * size.rows :][: size.rows] for part in everybody) for run in range(size.runs)]
    for name, model in models.items():
        over_draws(rows, name, model, sets[0], size.runs)
        for seed, data in enumerate(sets):
            over_data(rows, name, model, data, seed, truth[name], shrink)
    for seed, data in enumerate(sets):
        paired(rows, models, data, seed, truth, shrink)
    return {name: row.summary() for name, row in rows.items()}


def text(table: dict[str, dict[str, float]]) -> str:
    """Lay the table out."""
    lines = [f"{'':28}" + "".join(f"{column:>9}" for column in COLUMNS)]
    for name, numbers in table.items():
        cells = ["–" if value != value else f"{value:.3g}" for value in numbers.values()]
        lines.append(f"{name:28}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    start = time.perf_counter()
    print(text(measure(Size(runs=int(sys.argv[1]) if len(sys.argv) > 1 else Size().runs))))
    print(f"{time.perf_counter() - start:.0f} s")
