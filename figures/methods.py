"""Which way of training a quantized network wins on CIFAR-10, and does flatness follow? SGD, SAQ, cheaper SAQ, and FPQ.

ResNet-20, 10,000 images, 20 epochs, paired seeds; run from the top folder:

    python -m figures.methods train --root DIR --seeds 0 1 2      (hours; goes on where it stopped)
    python -m figures.methods measure                             (a minute or two per network)
    python -m figures.methods features                            (SGD and FPQ only: two minutes per network)
    python -m figures.methods table                               (or summary)

Networks are kept in build/runs; one row per recipe and seed in methods.jsonl and in feature_traces.jsonl beside this
file: `table` needs only these, and `train` leaves out what is measured, on whatever machine. Another machine repeats a
training only roughly, so a row tells by its test loss which float network it started from, and only rows of one start
are paired: a new method needs LSQ trained beside it (`python -m saq_core train`), which `measure` then adds.
"""

import argparse
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import landscape
import saq_core

from .drawing import METHODS
from .study import RUNS, append, markdown, mean_and_error, number, read, visible

ROWS = Path(__file__).with_suffix(".jsonl")
FEATURES = Path(__file__).with_name("feature_traces.jsonl")
BASE = "cifar10-resnet20"
NAMES = [name for name in saq_core.EXPERIMENTS if name.startswith(f"{BASE}-")]
OF_FPQ = [name for name in NAMES if saq_core.EXPERIMENTS[name].recipe.fpq]
WITH_FEATURES = [name for name in NAMES if name in OF_FPQ or name.endswith("-sgd")]
KEYS = ("recipe", "seed", "start_loss")
SAMPLES, FEATURE_SAMPLES = 256, 64
RHO = 0.05  # of the flip rate, as in training
COLUMNS = {
    "accuracy": "test accuracy, %",
    "trace": "trace",
    "top": "λ₁",
    "worst_case": "worst-case rise at 1 %",
    "flip_rate": "flip rate, ‰",
    "feature_trace": "Σ s²·Tr ∇²ₓL",
}


def train(root: str, names: list[str], seeds: list[int], compiled: bool) -> None:
    """Train every network that is not measured yet; seeds outside, so that early results are paired."""
    done = read(ROWS, "recipe", "seed")
    for seed in seeds:
        for name in names:
            if (name, seed) not in done:
                saq_core.reproduce(name, root, seed=seed, out=RUNS, **({"compile": True} if compiled else {}))


def measure(names: list[str], seeds: list[int]) -> None:
    """Measure every trained network on the first images of its probe, and add a row for each."""
    for keys, stem in _trained(names, seeds, ROWS):
        append(ROWS, keys | _measured(stem))


def features(names: list[str], seeds: list[int]) -> None:
    """Add Σ s²·Tr(∇²ₓL) over the inputs of the quantized convolutions: what FPQ's noise penalises."""
    for keys, stem in _trained([name for name in names if name in WITH_FEATURES], seeds, FEATURES):
        model = saq_core.load(f"{stem}.pt")
        probe = tuple(part[:FEATURE_SAMPLES] for part in model.probe)
        rise = saq_core.feature_noise_penalty(model, probe, num_samples=0)
        append(FEATURES, keys | {"feature_trace": rise.trace, "samples": FEATURE_SAMPLES})


def _trained(names: list[str], seeds: list[int], file: Path) -> list[tuple[dict[str, Any], str]]:
    """Return what names a row of `file`, and the files' stem, of every trained network that has no row there yet."""
    done, found = read(file, *KEYS), []
    for name, seed in product(names, seeds):
        stem = f"{RUNS}/{name}-{seed}"
        if Path(f"{stem}.pt").exists():
            start = json.loads((RUNS / f"{BASE}-{seed}.json").read_text())["test"]["loss"]
            keys = dict(zip(KEYS, (name, seed, start), strict=True))
            found += [] if tuple(keys.values()) in done else [(keys, stem)]
    return found


def _measured(stem: str) -> dict:
    record = json.loads(Path(f"{stem}.json").read_text())
    model = saq_core.load(f"{stem}.pt")
    x, y = (part[:SAMPLES] for part in model.probe)
    top = landscape.top_eigenvalues(model, (x, y), k=1, units="filter", tol=1e-2)
    trace = landscape.trace(model, (x, y), units="filter", eigenvalues=top, rtol=0.03, num_probes=30)
    rise = landscape.worst_case_sharpness(model, (x, y), radii=[0.01], steps=5)
    return {
        "accuracy": 100 * record["test"]["accuracy"],
        "trace": trace.value,
        "trace_stderr": trace.stderr,
        "top": float(top.values[0]),
        "worst_case": float(rise.delta_loss[0]),
        "flip_rate": 1e3 * _flip_rate(model, x, y),
        "seconds": record["seconds"],
        "settings": {key: record[key] for key in ("data", "network", "bits", "quantizer", "start", "limit", "recipe")},
        "samples": SAMPLES,
    }


def _flip_rate(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of weights whose level changes at Q(w + ε), ε of norm RHO: Case 2's diminishment."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    sam = saq_core.SAQ(RHO, case=2).wrap(model, torch.optim.SGD(trainable, lr=0.0))

    def closure() -> torch.Tensor:
        sam.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    sam.step(closure, diagnose=torch.float32)
    return float(sam.diagnostics["flip_rate"])


def table() -> list[list[str]]:
    """Return every recipe's means over the seeds, and its differences to SGD at the same bits, paired by seed.

    In brackets the least difference that a paired t-test at 5 % on so many seeds would find four times out of five.
    Trace and λ₁ are filter-relative. The first row holds the titles.
    """
    rows, found = by_seed(), [["", "networks", *COLUMNS.values()]]
    for name in NAMES:
        seeds = [seed for other, seed in sorted(rows) if other == name]
        if seeds:
            means = [mean_and_error([rows[name, s][c] for s in seeds]) for c in COLUMNS]
            found.append([label(name), str(len(seeds)), *(number(*pair) for pair in means)])
        differences = paired(rows, name)
        if len(differences["accuracy"]) > 1:
            cells = [f"{number(*mean_and_error(d), sign='+')} ({visible(d):.2f})" for d in differences.values()]
            cells = ["–" if "nan" in cell else cell for cell in cells]
            found.append(["– SGD", str(len(differences["accuracy"])), *cells])
    return found


def summary() -> list[list[str]]:
    """Return accuracy and trace of SGD, and every method's differences to them, bold where visible; titles first."""
    rows, columns = by_seed(), list(product(("w4a4", "w2a2"), ("accuracy", "trace")))
    sgd = [[row[c] for (name, _), row in rows.items() if name == f"{BASE}-{bits}-sgd"] for bits, c in columns]
    found = [["", *(f"{bits.upper()}: {COLUMNS[c]}" for bits, c in columns)]]
    found.append([METHODS["sgd"][0], *(number(*mean_and_error(own)) for own in sgd)])
    for variant, (title, *_) in METHODS.items():
        differences = [paired(rows, f"{BASE}-{bits}-{variant}")[c] for bits, c in columns]
        if any(len(own) > 1 for own in differences):
            found.append([title, *map(_difference, differences)])
    return found


def _difference(own: list[float]) -> str:
    if len(own) < 2:
        return "–"
    told = number(*mean_and_error(own), sign="+")
    return f"**{told}**" if abs(mean_and_error(own)[0]) > visible(own) else told


def by_seed() -> dict[tuple, dict[str, float]]:
    """Return the measured columns of every (recipe, (seed, loss of its float network)); NaN for what is not measured.

    The loss is 0 where it was not kept, in the older rows.
    """
    traces, found = read(FEATURES, *KEYS), {}
    for key, row in read(ROWS, *KEYS).items():
        name, seed, start = key
        values = row | traces.get(key, {})
        found[name, (seed, start or 0.0)] = {column: values.get(column, math.nan) for column in COLUMNS}
    return found


def paired(rows: dict[tuple, dict[str, float]], name: str) -> dict[str, list[float]]:
    """Return a recipe's differences to SGD at the same bits, column -> over the seeds that both have; none for SGD."""
    sgd = f"{BASE}-{name.removeprefix(f'{BASE}-').split('-')[0]}-sgd"
    seeds = [seed for other, seed in sorted(rows) if other == name != sgd and (sgd, seed) in rows]
    return {c: [rows[name, s][c] - rows[sgd, s][c] for s in seeds] for c in COLUMNS}


def kept(rows: dict[tuple, dict[str, float]], cheaper: str, column: str) -> tuple[float, float]:
    """Return the share of Case 3's difference to SGD that a cheaper policy keeps, and the error of that ratio of means.

    Over the seeds that have all three, of which there must be one.
    """
    full = cheaper.rpartition("-")[0]
    shared = {key: row for key, row in rows.items() if {(cheaper, key[1]), (full, key[1])} <= rows.keys()}
    ours, whole = (np.array(paired(shared, name)[column]) for name in (cheaper, full))
    share = ours.mean() / whole.mean()
    return share, mean_and_error(ours - share * whole)[1] / abs(whole.mean())


def shares() -> list[str]:
    """Say what every cheaper policy keeps of Case 3's differences to SGD."""
    rows, found = by_seed(), []
    for name in [name for name in NAMES if "-saq3-" in name and len(paired(rows, name)["trace"]) > 1]:
        of = {COLUMNS[column]: kept(rows, name, column) for column in ("accuracy", "trace", "top", "worst_case")}
        told = ", ".join(
            f"{100 * share:.0f} ± {100 * error:.0f} % ({what.removesuffix(', %')})"
            for what, (share, error) in of.items()
        )
        found.append(f"{label(name)} keeps of Case 3's difference to SGD: {told}")
    return found


def label(name: str) -> str:
    """Return what a recipe is called in tables and figures."""
    bits, _, variant = name.removeprefix(f"{BASE}-").partition("-")
    return f"{METHODS[variant][0]}, {bits.upper()}" if variant else METHODS[bits][0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "measure", "features", "table", "summary"])
    parser.add_argument("--root", default="data", help="folder that holds the CIFAR-10 files")
    parser.add_argument("--names", nargs="+", default=NAMES, help="recipes; default all of the study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--compile", action="store_true", help="compile the training steps")
    given = parser.parse_args()
    commands = {
        "train": lambda: train(given.root, given.names, given.seeds, given.compile),
        "measure": lambda: measure(given.names, given.seeds),
        "features": lambda: features(given.names, given.seeds),
        "table": lambda: print(markdown(table()), *shares(), sep="\n"),
        "summary": lambda: print(markdown(summary()), end=""),
    }
    commands[given.command]()
