"""Which of SAQ's cases wins on CIFAR-10, and does flatness follow? ResNet-20, 10,000 images, 20 epochs, paired seeds.

    python figures/saq_cases.py train --root DIR --seeds 0 1 2      (hours; goes on where it stopped)
    python figures/saq_cases.py measure                             (a minute or two per network)
    python figures/saq_cases.py table

Networks are kept in build/runs, one row per recipe and seed in figures/saq_cases.jsonl: `table` needs only that file,
and `train` leaves out what it holds.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import landscape
import saq_core

RUNS, ROWS = Path("build/runs"), Path(__file__).with_suffix(".jsonl")
BASE = "cifar10-resnet20"
NAMES = [name for name in saq_core.EXPERIMENTS if name.startswith(f"{BASE}-")]
SAMPLES = 256
RHO = 0.05  # of the flip rate, as in training
COLUMNS = {
    "accuracy": "test accuracy, %",
    "trace": "trace, filter-relative",
    "top": "λ₁, filter-relative",
    "worst_case": "worst-case rise at 1 %",
    "flip_rate": "flip rate, ‰",
}


def rows() -> dict[tuple[str, int], dict]:
    """Return what was measured, by recipe and seed."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {(row["recipe"], row["seed"]): row for row in map(json.loads, lines)}


def train(root: str, names: list[str], seeds: list[int], compiled: bool) -> None:
    """Train every network that is not measured yet; seeds outside, so that early results are paired."""
    for seed in seeds:
        for name in names:
            if (name, seed) not in rows():
                saq_core.reproduce(name, root, seed=seed, out=RUNS, **({"compile": True} if compiled else {}))


def measure(names: list[str], seeds: list[int]) -> None:
    """Measure every trained network on the first images of its probe, and add a row for each."""
    for name in names:
        for seed in seeds:
            stem = RUNS / f"{name}-{seed}"
            if (name, seed) not in rows() and stem.with_name(f"{stem.name}.pt").exists():
                row = {"recipe": name, "seed": seed, **_measured(stem)}
                with ROWS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def _measured(stem: Path) -> dict:
    record = json.loads(stem.with_name(f"{stem.name}.json").read_text())
    model = saq_core.load(stem.with_name(f"{stem.name}.pt"))
    x, y = (part[:SAMPLES] for part in model.probe)
    top = landscape.top_eigenvalues(model, (x, y), k=1, units="filter", tol=1e-2)
    trace = landscape.trace(model, (x, y), units="filter", eigenvalues=top, rtol=0.03, max_samples=30)
    rise = landscape.worst_case_sharpness(model, (x, y), radii=[0.01], steps=5)
    return {
        "accuracy": 100 * record["test"]["accuracy"],
        "trace": trace.value,
        "trace_stderr": trace.stderr,
        "top": float(top.values[0]),
        "worst_case": float(rise.rise[0]),
        "flip_rate": 1e3 * _flip_rate(model, x, y),
        "seconds": record["seconds"],
        "settings": {key: record[key] for key in ("data", "network", "bits", "quantizer", "start", "limit", "recipe")},
        "samples": SAMPLES,
    }


def _flip_rate(model, x, y) -> float:
    """Return the share of weights whose level changes at Q(w + ε), ε of norm RHO: Case 2's diminishment."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    sam = saq_core.SAQ(RHO, case=2).wrap(model, torch.optim.SGD(trainable, lr=0.0))

    def closure():
        sam.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    sam.step(closure, diagnose=torch.float32)
    return float(sam.diagnostics["flip_rate"])


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean over seeds and its standard error (NaN for one)."""
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), spread


def table() -> None:
    """Print every recipe's means over the seeds, and its differences to SGD at the same bits, paired by seed."""
    found = rows()
    print(f"{'':26}{'seeds':>6}" + "".join(f"{title:>26}" for title in COLUMNS.values()))
    for name in NAMES:
        seeds = [seed for other, seed in sorted(found) if other == name]
        if not seeds:
            continue
        values = {c: mean_and_error([found[name, s][c] for s in seeds]) for c in COLUMNS}
        print(f"{_label(name):26}{len(seeds):6}" + "".join(f"{m:15.2f} ± {e:8.2f}" for m, e in values.values()))
        reference = f"{name[: name.index('-w') + 5]}-sgd" if "-w" in name else name
        both = [s for s in seeds if (reference, s) in found]
        if reference != name and both:
            paired = {c: [found[name, s][c] - found[reference, s][c] for s in both] for c in COLUMNS}
            deltas = [mean_and_error(differences) for differences in paired.values()]
            print(f"{'  Δ to SGD':26}{len(both):6}" + "".join(f"{m:+15.2f} ± {e:8.2f}" for m, e in deltas))
            seen = [visible(differences) for differences in paired.values()]
            print(f"{'  smallest visible Δ':26}{'':6}" + "".join(f"{v:26.2f}" for v in seen))


def visible(differences: list[float]) -> float:
    """Return the difference that a paired t-test at 5 % on so many seeds finds four times out of five."""
    from scipy.stats import nct, t

    n = len(differences)
    if n < 2:
        return math.nan
    limit, low, high = t.ppf(0.975, n - 1), 0.0, 50.0
    for _ in range(60):  # of the noncentrality at which the power is 0.8
        middle = (low + high) / 2
        low, high = (middle, high) if nct.sf(limit, n - 1, middle) < 0.8 else (low, middle)
    return high * statistics.stdev(differences) / math.sqrt(n)


def _label(name: str) -> str:
    return name.removeprefix(f"{BASE}-").replace("-", " ").upper().replace("SAQ", "SAQ case ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "measure", "table"])
    parser.add_argument("--root", default="data", help="folder that holds the CIFAR-10 files")
    parser.add_argument("--names", nargs="+", default=NAMES, help="recipes; default all of the study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--compile", action="store_true", help="compile the training steps")
    given = parser.parse_args()
    if given.command == "train":
        train(given.root, given.names, given.seeds, given.compile)
    elif given.command == "measure":
        measure(given.names, given.seeds)
    else:
        table()
