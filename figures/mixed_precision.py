"""Bits per layer at one budget, found in five ways: which policy trains best, and does one carry over to CIFAR-100?

ResNet-20, 10,000 images, the bit operations of W3A3; run from the top folder:

    python -m figures.mixed_precision search --root DIR --policy samq     (half an hour; without a name: all of them)
    python -m figures.mixed_precision tune --root DIR                     (hours; goes on where it stopped)
    python -m figures.mixed_precision table

Policies are searched on the float network of seed 0, and tuned from those of three seeds; those of ASGA's ablation are
searched and tuned on CIFAR-100. Networks are kept in build/runs, policies in policies.jsonl and tuned networks in
mixed_precision.jsonl beside this file.
"""

import argparse
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import saq_core

from .methods import TEST_IMAGES
from .study import RUNS, Judged, append, images_unknown, judge, markdown, marked, mean_and_error, number, read

ROWS = Path(__file__).with_suffix(".jsonl")
POLICIES = Path(__file__).with_name("policies.jsonl")
BITS = "W3A3"  # whose cost is the budget
# The searches see a fifth of the images of the sources', so the logits learn ten times as fast, for ten epochs.
ASGA: dict[str, Any] = {"epochs": 10, "batch_size": 128, "lr": 0.05, "lr_alpha": 0.1, "case": 2}
SAMQ: dict[str, Any] = {"epochs": 20, "warmup": 2}
BASE = saq_core.EXPERIMENTS["cifar10-resnet20"]
CIFAR100 = replace(BASE, name="cifar100-resnet20", data="cifar100")
STARTS = {"cifar10": BASE.name, "cifar100": "figures.mixed_precision:CIFAR100"}
TUNED = replace(saq_core.EXPERIMENTS[f"{BASE.name}-w4a4-sgd"].recipe, epochs=10)
SEARCHES: dict[str, dict[str, Any]] = {
    "uniform": {"method": "uniform"},
    **{f"random {seed}": {"method": "random", "seed": seed} for seed in range(5)},
    "hessian": {"method": "hessian"},
    "samq": {"method": "samq", "settings": saq_core.SAMQ(**SAMQ)},
    **{
        f"asga{label}": {"method": "asga", "settings": saq_core.ASGA(**ASGA | changes)}
        for label, changes in {
            "": {},
            ", SGD": {"rho": 0.0, "rho_range": None, "beta": 0.0},
            ", SAM": {"rho_range": None, "beta": 0.0, "combine": "perturbed"},
            ", mean of both": {"rho_range": None, "beta": 0.0},
            ", fixed ρ": {"rho_range": None},
        }.items()
    },
}
TRANSFER = [("asga", "cifar10"), ("asga", "cifar100"), ("uniform", "cifar10")]  # policy, searched on; to CIFAR-100
ABLATION = [name for name in SEARCHES if "," in name]


def search(label: str, on: str, root: str, **changes: Any) -> None:
    """Find one policy and keep it, unless that was done; the peak of memory is the whole process's, on Linux."""
    if (label, on) in read(POLICIES, "policy", "searched_on"):
        return
    data = saq_core.load_data(on, root, limit=BASE.limit)
    model = saq_core.reproduce(STARTS[on], root, out=RUNS, **changes)
    budget = saq_core.cost(model, data.input_shape, bits=BITS).bops
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: loading had one of its own
    before = resident_mib("VmRSS")
    policy = saq_core.search(model, data, budget=budget, **SEARCHES[label])
    own = {"policy": label, "searched_on": on, "resident_mib": resident_mib("VmHWM"), "resident_before_mib": before}
    append(POLICIES, own | asdict(policy))


def resident_mib(field: str) -> float:
    """Return the memory of this process: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def tune(label: str, searched_on: str, on: str, seed: int, root: str, **changes: Any) -> None:
    """Train one policy's network from the float one of that seed, and keep its accuracy, unless that was done."""
    row = read(POLICIES, "policy", "searched_on").get((label, searched_on))
    if row is None or (label, searched_on, on, seed) in read(ROWS, "policy", "searched_on", "trained_on", "seed"):
        return
    name = f"{on}-resnet20-mixed-{label}-of-{searched_on}".replace(" ", "-").replace(",", "")
    experiment = replace(BASE, name=name, data=on, bits=row["bits"], recipe=TUNED, start=STARTS[on])
    model = saq_core.reproduce(experiment, root, seed=seed, out=RUNS, **changes)
    record = json.loads((RUNS / f"{name}-{seed}.json").read_text())
    own = {"policy": label, "searched_on": searched_on, "trained_on": on, "seed": seed}
    found = {"accuracy": 100 * record["test"]["accuracy"], "seconds": record["seconds"]}
    append(ROWS, own | {"bops": saq_core.cost(model).bops} | found)


def wanted(seeds: list[int]) -> list[tuple[str, str, str, int]]:
    """Return (policy, searched on, trained on, seed) of every network; five random policies share the seeds."""
    plain = [name for name in SEARCHES if "," not in name and not name.startswith("random")]
    found = [(label, "cifar10", "cifar10", seed) for seed in seeds for label in plain]
    found += [(f"random {k}", "cifar10", "cifar10", seeds[k % len(seeds)]) for k in range(5)]
    found += [(label, on, "cifar100", seed) for seed in seeds for label, on in TRANSFER]
    return found + [(name, "cifar100", "cifar100", seed) for seed in seeds for name in ABLATION]


def table() -> list[list[str]]:
    """Return accuracy, cost and what the search took; titles first.

    A policy that was searched once is one policy, however often it is tuned: the spread of its networks is an error of
    tuning, not of the search, so its means stand without one. Uniform bits are not searched, random ones were drawn
    five times; the difference of these is paired by seed (the mean of a seed's policies) and tested, as in `study`.
    """
    titles = ["policy", "searched on", "trained on", "searches", "networks", "accuracy, %", "− uniform"]
    found, policies = [titles + ["M BOPs", "bits", "search, s", "MiB"]], read(POLICIES, "policy", "searched_on")
    for (label, source, on), own in sorted(groups().items(), key=lambda pair: (pair[0][2], pair[0])):
        found_by = [policies[row["policy"], source] for row in own]
        bits = [fmean((int(b[1]) + int(b[3])) / 2 for b in policy["bits"].values()) for policy in found_by]
        memory = [policy["resident_mib"] - policy["resident_before_mib"] for policy in found_by]
        searches = len({row["policy"] for row in own})
        mean, error = mean_and_error([row["accuracy"] for row in own])
        less, cells = list(less_uniform(label, source, on).values()), ["–", f"{mean:.2f}", "–"]
        if label == "uniform":
            cells[1] = number(mean, error)
        elif searches == 1:
            cells = ["1", f"{mean:.2f}", number(fmean(less), math.nan, "+") if less else "–"]
        else:
            cells = [str(searches), number(mean, error), marked(against_uniform(label, source, on))]
        spent = [f"{fmean(row['bops'] for row in own) / 1e6:.1f}", f"{fmean(bits):.2f}"]
        spent += [f"{fmean(policy['seconds'] for policy in found_by):.0f}", f"+{fmean(memory):.0f}"]
        found.append([label, source, on, cells[0], str(len(own)), *cells[1:], *spent])
    return found


def groups() -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return the rows of every (policy, searched on, trained on), random policies as one."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for (label, source, on, _), row in read(ROWS, "policy", "searched_on", "trained_on", "seed").items():
        found.setdefault((label.split()[0] if label.startswith("random") else label, source, on), []).append(row)
    return found


def less_uniform(label: str, source: str, on: str) -> dict[int, float]:
    """Return seed -> accuracy, the mean of a seed's policies, less that of uniform bits from the same float network."""
    rows = groups()
    own: dict[int, list[float]] = {}
    alike = [row for (name, _, to), found in rows.items() if (name, to) == ("uniform", on) for row in found]
    uniform = {row["seed"]: row["accuracy"] for row in alike}
    for row in rows[label, source, on]:
        own.setdefault(row["seed"], []).append(row["accuracy"])
    return {seed: fmean(values) - uniform[seed] for seed, values in sorted(own.items()) if seed in uniform}


def against_uniform(label: str, source: str = "cifar10", on: str = "cifar10") -> Judged:
    """Test the difference to uniform bits over the seeds: the one test of this table."""
    less = list(less_uniform(label, source, on).values())
    return judge({label: less}, images={label: images_unknown(len(less), TEST_IMAGES)})[label]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["search", "tune", "table"])
    parser.add_argument("--root", default="data", help="folder that holds the CIFAR files")
    parser.add_argument("--policy", choices=list(SEARCHES), help="default: all, one after the other")
    parser.add_argument("--on", choices=list(STARTS), default="cifar10", help="what to search on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--compile", action="store_true", help="compile the training steps")
    given = parser.parse_args()
    changes = {"compile": True} if given.compile else {}
    if given.command == "table":
        print(markdown(table()), end="")
    elif given.command == "search":
        for name in [given.policy] if given.policy else SEARCHES:
            search(name, given.on, given.root, **changes)
    else:
        for job in wanted(given.seeds):
            tune(*job, given.root, **changes)
