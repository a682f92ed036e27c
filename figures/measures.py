"""What the studies of flatness share: what they measure of one network, in both units, and their command line."""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
import saq_core

from .study import pack_hits

FAMILIES = {"digits-resnet8": 128, "cifar10-resnet20": 256}  # images of the probe that are measured
TEST_IMAGES = {"digits": 360, "cifar10": 10_000}
UNITS = ("raw", "filter")
# measure -> title; each in raw and in filter-relative units. Raw radii are distances ‖ε‖, the same for all networks.
MEASURES = {
    "trace": "Trace",
    "top": "λ₁",
    "negative": "Negative share",
    "worst": "Worst case",
    "average": "Average",
}
WORST: dict[str, dict[str, Any]] = {
    "raw": {"metric": "plain", "relative": False, "radii": (0.05,), "steps": 315},
    "filter": {"radii": (0.005,), "steps": 315},
}
AVERAGE: dict[str, dict[str, Any]] = {
    "raw": {"metric": "plain", "relative": False, "radii": (1.0,)},
    "filter": {"radii": (0.05,)},
}


def objective_of(model: nn.Module, data: saq_core.Data, family: str) -> landscape.Objective:
    """Return the loss of a family's network on the images that are measured: the same for all seeds and methods."""
    return landscape.Objective(model, tuple(part[: FAMILIES[family]] for part in data.probe))


def curvature(hessian: Any) -> dict[str, Any]:
    """Return trace and λ₁, with what tells how sure they are."""
    top = landscape.top_eigenvalues(hessian, k=1, tol=1e-2)
    trace = landscape.trace(hessian, eigenvalues=top, rtol=0.05, num_probes=10)
    return {
        "trace": trace.value,
        "trace_stderr": trace.stderr,
        "top": float(top.values[0]),
        "top_converged": bool(top.converged[0]),
    }


def worst_case(function: landscape.Objective, units: str) -> dict[str, Any]:
    """Return the largest increase of the loss, what the ascent's last round added, and whether it converged."""
    found: Any = landscape.worst_case_sharpness(function, **WORST[units])
    return {"worst": float(found.delta_loss), "worst_gain": float(found.gain), "converged": bool(found.converged)}


def all_measures(function: landscape.Objective) -> dict[str, Any]:
    """Return every measure in both units, "trace_raw" and so on."""
    hessian, found = landscape.Hessian(function), {"loss": float(function.centre.loss)}
    for units, operator in zip(UNITS, (hessian, hessian.filter_relative()), strict=True):
        density = landscape.density(operator, k=0, num_probes=2, steps=12)
        average = landscape.average_sharpness(function, num_samples=5, **AVERAGE[units])
        own = curvature(operator) | worst_case(function, units)
        own |= {"negative": density.negative_share()[0], "average": float(average.delta_loss)}
        found |= {f"{name}_{units}": value for name, value in own.items()}
    return found | {"space": function.about()["space"], "weight_norm": function.coordinates.norm()}


def corrupted(x: Tensor) -> dict[str, Tensor]:
    """Return normalised images under noise (σ = 0.5), blur (3×3 means), and with 0.4 of their contrast: made here."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    mean = x.mean((1, 2, 3), keepdim=True)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return {"noise": x + 0.5 * noise, "blur": blurred, "contrast": mean + 0.4 * (x - mean)}


@torch.no_grad()
def hits_of(model: nn.Module, x: Tensor, labels: Tensor) -> np.ndarray:
    """Return which images a network classifies rightly."""
    parts = zip(x.split(500), labels.split(500), strict=True)
    return torch.cat([model.eval()(part).argmax(1) == y for part, y in parts]).cpu().numpy()


def tested(model: nn.Module, data: saq_core.Data) -> dict[str, Any]:
    """Return test accuracy and hits, and the mean accuracy under `corrupted`, in percent."""
    x, labels = data.test
    clean, others = hits_of(model, x, labels), [hits_of(model, bad, labels) for bad in corrupted(x).values()]
    return {"accuracy": 100 * clean.mean(), "corrupted": 100 * np.mean(others), "hits": pack_hits(clean)}


def settings_of(stem: str) -> dict[str, Any]:
    """Return what the record of a trained network says of how it was made."""
    with open(f"{stem}.json") as file:
        record = json.load(file)
    return {key: record[key] for key in ("data", "network", "bits", "quantizer", "start", "limit", "recipe")}


def command_line(document: str | None, run: Callable[..., None], table: Callable[[str], str]) -> None:
    """Run a study, or print its tables: `run(family, root, seeds, **recipe)` and `table(family)`."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--family", choices=list(FAMILIES), default="digits-resnet8")
    parser.add_argument("--root", help="folder that holds the data set's files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--compile", action="store_true", help="compile the training steps")
    given = parser.parse_args()
    if given.command == "run":
        run(given.family, given.root, given.seeds, **({"compile": True} if given.compile else {}))
    else:
        print(table(given.family))
