"""How large the figures' networks and measurements are: a test of a minute, a laptop's half hour, or a GPU's day."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray
from torch import Tensor, nn

import landscape
import saq_core

from .dose import chosen_radius, rows_of
from .study import RUNS

SMALL = replace(saq_core.EXPERIMENTS["digits-resnet8"], limit=200)  # where a profile with that limit starts from


@dataclass(frozen=True)
class Profile:
    """Say on which networks, and how finely, a figure is computed.

    Args:
        name: Of the folder of its networks.
        family: Of `saq_core.EXPERIMENTS`, whose float network and variants are trained.
        seeds: Of the networks.
        samples: Images of the probe that are measured.
        points: Along each axis of a surface.
        changes: Of every recipe.
        limit: Training images at most, the families' own where it is None; 200 is that of `SMALL`.
        rtol: Relative standard error of traces, the figures' own where it is None.
        root: Folder of the data set.
        download: Fetch it where it is missing.
    """

    name: str
    family: str
    seeds: tuple[int, ...]
    samples: int
    points: int
    changes: tuple[tuple[str, Any], ...] = ()
    limit: int | None = None
    rtol: float | None = None
    root: str | None = None
    download: bool = False

    def experiment(self, variant: str, bits: str | None = None) -> saq_core.Experiment:
        """Return "base" or "fp32", or a variant ("sgd", "saq3", "fpq" …) at these bits."""
        name = {"base": self.family, "fp32": f"{self.family}-fp32"}.get(variant, f"{self.family}-w4a4-{variant}")
        found = saq_core.EXPERIMENTS[name]
        if self.limit:
            found = replace(found, limit=self.limit, start=found.start and "figures.profiles:SMALL")
        return found if bits is None else replace(found, name=f"{self.family}-{bits.lower()}-{variant}", bits=bits)

    def network(self, variant: str, bits: str | None = None, seed: int = 0) -> nn.Module:
        """Return the trained network; what was trained before is read from its file.

        SAQ takes the radius that the validation split chose, where all of them were tried (`figures.dose`).
        """
        found = self.experiment(variant, bits)
        sam = found.recipe.sam
        rho = sam and chosen_radius(rows_of(self.family), found.bits, sam.case)
        if rho and rho != sam.rho:
            recipe = replace(found.recipe, sam=replace(sam, rho=rho))
            found = replace(found, name=f"{found.name}-rho{rho:g}", recipe=recipe)
        return self.trained(found, seed)

    def trained(self, experiment: saq_core.Experiment, seed: int) -> nn.Module:
        """Return the network of any experiment, likewise."""
        own: dict[str, Any] = {"out": self.runs, "download": self.download, **dict(self.changes)}
        return saq_core.reproduce(experiment, self.root, seed=seed, **own)

    def recipe(self, experiment: saq_core.Experiment, seed: int) -> saq_core.Recipe:
        """Return the recipe that an experiment has here."""
        return replace(experiment.recipe, seed=seed, **dict(self.changes))

    def measured(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the images of the network's probe that are measured, on its device."""
        device = next(model.parameters()).device
        x, y = (part[: self.samples].to(device) for part in model.probe)
        return x, y

    def dataset(self, columns: dict[str, Any], **where: Any) -> xarray.Dataset:
        """Return arrays over (the first of) these dimensions, with what a note under a figure says of the profile."""
        arrays = {name: (tuple(where)[: np.ndim(own)], np.asarray(own)) for name, own in columns.items()}
        return xarray.Dataset(arrays, {name: list(values) for name, values in where.items()}, self.about)

    def effort(self, full: Any, least: Any) -> Any:
        """Return how much of something a figure takes; in a test, whose networks are hardly trained, the `least`."""
        return least if self.changes else full

    def compared(self, models: dict[str, list[nn.Module]]) -> landscape.Comparison:
        """Compare networks on the images that are measured, a test's within one radius."""
        settings = {"points": self.points, "rtol": self.rtol or 0.05} | self.effort({}, {"radii": (0.01,)})
        return landscape.compare(models, self.measured(next(iter(models.values()))[0]), **settings)

    @property
    def about(self) -> dict[str, Any]:
        """What a note under a figure says of the profile."""
        return {"family": self.family, "samples": self.samples, "seeds": len(self.seeds)}

    @property
    def runs(self) -> Path:
        """Folder of the trained networks."""
        return RUNS / self.name

    @cached_property
    def data(self) -> saq_core.Data:
        """The data that the networks are trained on."""
        experiment = self.experiment("base")
        return saq_core.load_data(experiment.data, self.root, limit=experiment.limit, download=self.download)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", "digits-resnet8", (0, 1), 8, 3, (("epochs", 2),), SMALL.limit, 0.5),
        Profile("cpu", "digits-resnet8", (0, 1, 2), 512, 25),
        Profile("cifar", "cifar10-resnet20", (0,), 1000, 25),
        Profile("gpu", "cifar10-resnet20", (0, 1, 2, 3, 4), 1024, 51),
    )
}
