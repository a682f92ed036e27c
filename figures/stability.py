"""Progressive sharpening and the edge of stability: λ₁ and critical sharpness beside what an optimizer's steps bear.

Not a quantized network's figure: the known effect that `landscape.Monitor` has to show (Cohen et al. 2021, 2022).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray
from torch.nn import functional as F

import landscape

from .catalogue import Figure
from .drawing import note, panels
from .profiles import Profile

RUNS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "GD, lr 0.1": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "GD, lr 0.07": lambda weights: torch.optim.SGD(weights, lr=0.07),
    "Adam, lr 0.001": lambda weights: torch.optim.Adam(weights, lr=1e-3),
}
COLUMNS = ("threshold", "lambda1", "preconditioned_lambda1", "critical_sharpness", "probe_loss")


def squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return half the squared distance to the labels as unit vectors, one per sample."""
    return (output - F.one_hot(target, 10)).square().sum(1) / 2


def compute(profile: Profile) -> xarray.Dataset:
    """Train an MLP on the digits by full-batch steps, and measure as it goes."""
    x, y = (part[: profile.effort(1000, 40)] for part in profile.data.train)
    steps, every = profile.effort((2500, 25), (4, 2))
    found = {}
    for name, optimizer_of in RUNS.items():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(x[0].numel(), 100), torch.nn.Tanh(), torch.nn.Linear(100, 100), torch.nn.Tanh()]
        model = torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(100, 10)).to(x.device)
        optimizer = optimizer_of(model.parameters())
        monitor = landscape.Monitor(model, (x, y), optimizer=optimizer, loss=squared_error, every=every, budget=1.0)
        monitor.budget = math.inf  # every row whole
        for _ in range(steps):
            optimizer.zero_grad()
            squared_error(model(x), y).mean().backward()
            optimizer.step()
            monitor.step()
        found[name] = monitor.frame.reindex(columns=["step", *COLUMNS])
    first, *_ = found.values()
    stacked = np.stack([frame[list(COLUMNS)].to_numpy() for frame in found.values()])
    coordinates = {"run": list(found), "step": first["step"].to_numpy(), "column": list(COLUMNS)}
    return xarray.Dataset({"found": (("run", "step", "column"), stacked)}, coordinates, {"samples": len(x)})


def draw(data: xarray.Dataset) -> Any:
    """Draw a panel for each training."""
    figure, axes = panels(len(data.run), 2.1)
    for ax, run in zip(axes, data.run.values, strict=True):
        own = {name: data.found.sel(run=run, column=name).values for name in COLUMNS}
        preconditioned = np.isfinite(own["preconditioned_lambda1"]).any()
        top = own["preconditioned_lambda1" if preconditioned else "lambda1"]
        scale = 1000 if preconditioned else 1
        ax.plot(data.step, own["critical_sharpness"] / scale, color="#D55E00", lw=0.9, label="critical sharpness")
        ax.plot(data.step, top / scale, color="#0072B2", label="λ₁")
        ax.plot(data.step, own["threshold"] / scale, "--", color="#009E73", label="stability threshold")
        ax.set(xlabel="Step", ylim=(0, 1.35 * np.nanmax(own["threshold"]) / scale))
        ax.set_title(f"{run}{' (in thousands)' if preconditioned else ''}", fontsize=8)
    axes[0].set_ylabel("Sharpness")
    axes[0].legend(loc="lower right")
    note(figure, f"MLP 64-100-100-10, tanh, squared error, full batches of {data.attrs['samples']} digits")
    return figure


FIGURES = [
    Figure(
        "edge_of_stability",
        "ours, after Cohen et al. 2021 and 2022",
        "λ₁ rises to what the steps bear, 2/lr and with Adam 38/lr, and hovers there",
        compute,
        draw,
    ),
]
