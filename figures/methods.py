"""Which way of training a quantized network wins on CIFAR-10, and does flatness follow? SGD, SAQ, cheaper SAQ, and FPQ.

ResNet-20, 10,000 images, 20 epochs, paired seeds; run from the top folder:

    python -m figures.methods train --root DIR --seeds 0 1 2      (hours; goes on where it stopped)
    python -m figures.methods measure --root DIR                  (minutes per network)
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
from .measures import TEST_IMAGES as TEST_IMAGES_OF
from .measures import hits_of, settings_of
from .study import (
    RUNS,
    Images,
    Judged,
    append,
    fieller,
    images_of,
    images_unknown,
    judge,
    markdown,
    marked,
    mean_and_error,
    number,
    pack_hits,
    read,
    unpack_hits,
)

ROWS = Path(__file__).with_suffix(".jsonl")
FEATURES = Path(__file__).with_name("feature_traces.jsonl")
BASE = "cifar10-resnet20"
NAMES = [name for name in saq_core.EXPERIMENTS if name.startswith(f"{BASE}-")]
OF_FPQ = [name for name in NAMES if saq_core.EXPERIMENTS[name].recipe.fpq]
WITH_FEATURES = [name for name in NAMES if name in OF_FPQ or name.endswith("-sgd")]
KEYS = ("recipe", "seed", "start_loss")
SAMPLES, FEATURE_SAMPLES = 256, 64
RHO = 0.05  # of the flip rate, as in training
TEST_IMAGES = TEST_IMAGES_OF["cifar10"]
COLUMNS = {
    "accuracy": "test accuracy, %",
    "probe_loss": "probe loss",
    "trace": "trace",
    "top": "λ₁",
    "worst_case": "worst-case loss increase at 0.2 %",
    "flip_rate": "flip rate, ‰",
    "feature_trace": "Σ s²·Tr ∇²ₓL",
}
TESTED = [column for column in COLUMNS if column != "flip_rate"]
UNCONVERGED = "worst_case_unconverged"
RADIUS = 0.002  # of the worst case; at 1 % of every filter, the older rows', the loss is far above that of guessing


def train(root: str, names: list[str], seeds: list[int], compiled: bool) -> None:
    """Train every network that is not measured yet; seeds outside, so that early results are paired."""
    done = read(ROWS, "recipe", "seed")
    for seed in seeds:
        for name in names:
            if (name, seed) not in done:
                saq_core.reproduce(name, root, seed=seed, out=RUNS, **({"compile": True} if compiled else {}))


def measure(root: str, names: list[str], seeds: list[int]) -> None:
    """Measure every trained network on the first images of its probe, and add a row for each."""
    for keys, stem in _trained(names, seeds, ROWS):
        append(ROWS, keys | _measured(stem, root))


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


def _measured(stem: str, root: str) -> dict[str, Any]:
    record = json.loads(Path(f"{stem}.json").read_text())
    model = saq_core.load(f"{stem}.pt")
    x, y = (part[:SAMPLES] for part in model.probe)
    top = landscape.top_eigenvalues(model, (x, y), k=1, units="filter", tol=1e-2)
    trace = landscape.trace(model, (x, y), units="filter", eigenvalues=top, rtol=0.03, num_probes=30)
    worst = landscape.worst_case_sharpness(model, (x, y), radii=[RADIUS])
    hits = hits_of(model, *saq_core.load_data(record["data"], root, limit=record["limit"]).test)
    return {
        "accuracy": 100 * float(hits.mean()),
        "hits": pack_hits(hits),
        "probe_loss": trace.about["centre_loss"],
        "space": trace.about["space"],
        "trace": trace.value,
        "trace_stderr": trace.stderr,
        "top": float(top.values[0]),
        "worst_case": float(worst.delta_loss[0]),
        "worst_case_gain": float(worst.gain[0]),
        "converged": bool(worst.converged[0]),
        "flip_rate": 1e3 * _flip_rate(model, x, y),
        "seconds": record["seconds"],
        "settings": settings_of(stem),
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


def by_seed() -> dict[tuple, dict[str, float]]:
    """Return the measured columns of every (recipe, (seed, loss of its float network)); NaN for what is not measured.

    The loss is 0 where it was not kept, in the older rows. Their worst cases are of five ascent steps, which reach 40
    to 90 % of what more steps reach: like all that did not converge they stand in the column UNCONVERGED.
    """
    traces, found = read(FEATURES, *KEYS), {}
    for key, row in read(ROWS, *KEYS).items():
        name, seed, start = key
        values = row | traces.get(key, {})
        if not row.get("converged", False):
            values = values | {"worst_case": math.nan, UNCONVERGED: row.get("worst_case", math.nan)}
        found[name, (seed, start or 0.0)] = {c: values.get(c, math.nan) for c in (*COLUMNS, UNCONVERGED)}
    return found


def baseline(name: str) -> str:
    """Return what a recipe is compared with: SGD at the same bits, and SGD with the float network tuned as long."""
    bits, _, variant = name.removeprefix(f"{BASE}-").partition("-")
    return f"{BASE}-fp32" if variant == "sgd" else f"{BASE}-{bits}-sgd"


def pairs(rows: dict[tuple, Any], name: str, base: str) -> list[tuple]:
    """Return the (seed, loss of the float network) that two recipes share."""
    return [seed for other, seed in sorted(rows) if other == name and (base, seed) in rows]


def paired(rows: dict[tuple, dict[str, float]], name: str, base: str | None = None) -> dict[str, list[float]]:
    """Return a recipe's differences to another (default: its `baseline`), column -> over the pairs measured in both."""
    base = base or baseline(name)
    both = [(rows[name, seed], rows[base, seed]) for seed in pairs(rows, name, base)]
    differences = {c: [ours[c] - theirs[c] for ours, theirs in both] for c in (*COLUMNS, UNCONVERGED)}
    return {c: [d for d in own if not math.isnan(d)] for c, own in differences.items()}


def images(rows: dict[tuple, Any], name: str, base: str) -> Images:
    """Return what the test images add to the variance of a paired accuracy difference."""
    hits = {(row[0], (row[1], row[2] or 0.0)): own["hits"] for row, own in read(ROWS, *KEYS).items() if "hits" in own}
    seeds = pairs(rows, name, base)
    if not {(own, seed) for own in (name, base) for seed in seeds} <= hits.keys():
        return images_unknown(len(seeds), TEST_IMAGES)
    return images_of(*([unpack_hits(hits[own, seed], TEST_IMAGES) for seed in seeds] for own in (name, base)))


def judged(rows: dict[tuple, dict[str, float]]) -> dict[tuple[str, str], Judged]:
    """Test every recipe's differences to its baseline as one table; (recipe, column) -> what came out.

    The variance of a quantity is borrowed over the recipes that share a baseline. Flip rates describe ε and are not
    tested, worst cases only where the ascent converged.
    """
    differences = {(n, c): own for n in NAMES for c, own in paired(rows, n).items() if c in TESTED and len(own) > 1}
    of_images = {key: images(rows, key[0], baseline(key[0])) for key in differences if key[1] == "accuracy"}
    return judge(differences, lambda key: (key[1], baseline(key[0])), of_images)


def table() -> list[list[str]]:
    """Return every recipe's means ± standard errors over the seeds and, below, its paired differences; titles first.

    Differences stand with their 95 % intervals, bold where they survive Holm's correction over the whole table at 5 %,
    in italics where only Benjamini and Hochberg's. Trace and λ₁ are filter-relative. †: the ascent did not converge
    (older rows: five steps, at 1 %), so the worst case is a lower bound of unknown quality and is not tested.
    """
    rows = by_seed()
    tests, found = judged(rows), [["", "networks", *COLUMNS.values()]]
    for name in NAMES:
        own = [row for (other, _), row in sorted(rows.items()) if other == name]
        if not own:
            continue
        means = {c: [row[c] for row in own if not math.isnan(row[c])] for c in (*COLUMNS, UNCONVERGED)}
        found.append([label(name), str(len(own)), *_cells(means, {})])
        differences = paired(rows, name)
        if len(differences["accuracy"]) > 1:
            judgments = {c: tests[name, c] for c in TESTED if (name, c) in tests}
            cells = _cells(differences, judgments, "+")
            found.append([f"− {label(baseline(name))}", str(len(differences["accuracy"])), *cells])
    return found


def _cells(values: dict[str, list[float]], tests: dict[str, Judged], sign: str = "") -> list[str]:
    """Show each column's test, else its mean and error; of the worst case what did not converge, if all did not."""
    cells = [
        marked(tests[c]) if c in tests else number(*mean_and_error(values[c]), sign) if values[c] else "–"
        for c in COLUMNS
    ]
    if not values["worst_case"] and values[UNCONVERGED]:
        cells[list(COLUMNS).index("worst_case")] = number(*mean_and_error(values[UNCONVERGED]), sign) + "†"
    return cells


def summary() -> list[list[str]]:
    """Return SGD's accuracy, loss and trace, and the methods' differences to them, marked as in `table`; titles first.

    Losses on the probe only where they were measured.
    """
    rows = by_seed()
    tests = judged(rows)
    shown = [c for c in ("accuracy", "probe_loss", "trace") if any(column == c for _, column in tests)]
    columns = list(product(("w4a4", "w2a2"), shown))
    found = [["", *(f"{bits.upper()}: {COLUMNS[c]}" for bits, c in columns)]]
    sgd = [[row[c] for (name, _), row in rows.items() if name == f"{BASE}-{bits}-sgd"] for bits, c in columns]
    measured = [[value for value in own if not math.isnan(value)] for own in sgd]
    found.append([METHODS["sgd"][0], *(number(*mean_and_error(own)) if own else "–" for own in measured)])
    for variant, (title, *_) in METHODS.items():
        keys = [(f"{BASE}-{bits}-{variant}", c) for bits, c in columns]
        if variant != "sgd" and any(key in tests for key in keys):
            found.append([title, *(marked(tests[key]) if key in tests else "–" for key in keys)])
    return found


def kept(rows: dict[tuple, dict[str, float]], cheaper: str, column: str) -> tuple[float, tuple[float, float]]:
    """Return the share of Case 3's difference to SGD that a cheaper policy keeps, and Fieller's 95 % interval of it.

    Over the seeds that have all three, of which there must be two.
    """
    full = cheaper.rpartition("-")[0]
    shared = {key: row for key, row in rows.items() if {(cheaper, key[1]), (full, key[1])} <= rows.keys()}
    ours, whole = (paired(shared, name)[column] for name in (cheaper, full))
    return float(np.mean(ours) / np.mean(whole)), fieller(ours, whole)


def about() -> tuple[str, str, str]:
    """Return what the rows' networks are, on how many images and for how many epochs they were tuned."""
    settings = [row["settings"] for row in read(ROWS, *KEYS).values()]
    found = [(own["network"], f"{own['limit']:,} images", f"{own['recipe']['epochs']} epochs") for own in settings]
    network, images, epochs = (" or ".join(sorted(set(column))) for column in zip(*found, strict=True))
    return network.replace("resnet", "ResNet-"), images, epochs


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
        "measure": lambda: measure(given.root, given.names, given.seeds),
        "features": lambda: features(given.names, given.seeds),
        "table": lambda: print(markdown(table()), end=""),
        "summary": lambda: print(markdown(summary()), end=""),
    }
    commands[given.command]()
