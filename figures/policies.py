"""Bits per layer that searches find, and the networks tuned at them, for the figures.

A policy is searched on the float network of a seed, with that seed, and that seed's network is tuned at its bits: an
error bar over seeds holds the luck of the search too. Policies lie beside the networks, in build/runs/PROFILE.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from torch import nn

import landscape
import saq_core

from . import mixed_precision
from .profiles import Profile

BUDGET = "W3A3"  # whose bit operations a policy may cost
TESTED = ("accuracy", "loss", "bops")
# What the searches of a family change in the sources' settings; ours, taken by how the bits moved and before any
# network was tuned: at this λ ASGA's mixture ends near the bit operations of W3A3.
ALIGNED: dict[str, dict[str, Any]] = {
    "digits-resnet8": {"epochs": 6, "batch_size": 64, "lr": 0.02, "lr_alpha": 1.0, "lam": 1e-3, "case": 2},
    "cifar10-resnet20": mixed_precision.ASGA,
}
TAUGHT: dict[str, dict[str, Any]] = {
    "digits-resnet8": {"epochs": 6, "warmup": 1, "candidates": 8, "generator_lr": 5e-3},
    "cifar10-resnet20": mixed_precision.SAMQ,
}
CHANGES: dict[str, dict[str, Any]] = {
    "asga": {},
    "asga-fixed": {"rho_range": None},
    "asga-cap": {"rho": 0.1, "rho_range": None},
    "asga-plain": {"rho": 0.0, "beta": 0.0, "rho_range": None},
}


def settings_of(profile: Profile, label: str, source: str = "target", longer: float = 1.0) -> Any:
    """Return how a search goes about it: as short as the profile's trainings are, in so many times the epochs.

    An untrained network learns half as long again, at ASGA's own learning rate.
    """
    if label in CHANGES:
        found: Any = saq_core.ASGA(**ALIGNED[profile.family] | CHANGES[label])
        if source == "untrained":
            found, longer = replace(found, lr=saq_core.ASGA.lr), 1.5
    elif label == "samq":
        found = saq_core.SAMQ(**TAUGHT[profile.family])
    else:
        return None
    short = min(found.epochs, dict(profile.changes).get("epochs", found.epochs))
    return replace(found, epochs=round(short * longer))


def proxy(data: saq_core.Data, source: str, most: int | None = None) -> saq_core.Data:
    """Return the data with other training images: the first `most`, of these a "tenth", "half" of the classes, or all.

    The images come in an order of which every beginning holds the classes in almost equal numbers.
    """
    x, y = (part[:most] for part in data.train)
    kept = y >= 0
    if source == "tenth":
        kept = kept.cumsum(0) <= len(y) // 10
    elif source == "half":
        kept = y < data.num_classes // 2
    return replace(data, train=(x[kept], y[kept]))


def images_of(profile: Profile, source: str) -> tuple[saq_core.Data, float]:
    """Return what a search sees, and how many epochs of it are one of the target's: in a test one, of fewer images."""
    most = profile.effort(None, 4 * profile.samples)
    whole, part = (proxy(profile.data, name, most) for name in ("target", source))
    return part, profile.effort(len(whole.train[1]) / len(part.train[1]), 1.0)


def start_of(profile: Profile, source: str, seed: int) -> nn.Module:
    """Return the float network that a search starts from: trained on its proxy alone, or untrained."""
    if source == "target":
        return profile.network("base", seed=seed)
    (data, longer), base = images_of(profile, source), profile.experiment("base")
    file = profile.runs / f"{profile.family}-on-{source}-{seed}.pt"
    if file.exists():
        return saq_core.load(file)
    model = saq_core.build_model(base.network, data, seed=seed)
    if source != "untrained":
        recipe = profile.recipe(base, seed)
        saq_core.train(model, data, replace(recipe, epochs=round(recipe.epochs * longer)))
        saq_core.save(model, file)
    return model


def budget_of(model: nn.Module, bits: str) -> float:
    """Return the bit operations of these bits everywhere; of "W2A2-W3A3" the mean of both."""
    return float(np.mean([saq_core.cost(model, bits=part).bops for part in bits.split("-")]))


def policy(
    profile: Profile, label: str, seed: int, *, budget: str = BUDGET, source: str = "target", draw: int = 0
) -> saq_core.Policy:
    """Search bits, or read those that were found with the same settings; another `draw` is another search.

    Ours: the Hessian is that of as many images as are measured elsewhere.
    """
    data, longer = images_of(profile, source)
    settings = settings_of(profile, label, source, longer)
    asked = {"images": profile.samples, "settings": settings and json.loads(json.dumps(asdict(settings)))}
    file = profile.runs / f"policy-{profile.family}-{label}-{budget}-{source}-{seed}-{draw}.json".lower()
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("asked") == asked:
        return saq_core.Policy(**known["policy"])
    if label == "hessian":
        data = proxy(data, "target", profile.samples)
    model, method = start_of(profile, source, seed), label.partition("-")[0]
    own: dict[str, Any] = {"budget": budget_of(model, budget), "seed": seed + 1000 * draw}
    if method == "sensitivity":
        own["sensitivity"] = sensitivity_of(profile, model)
    found = saq_core.search(model, data, method=method, settings=settings, **own)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"asked": asked, "policy": asdict(found)}) + "\n")
    return found


def sensitivity_of(profile: Profile, model: nn.Module) -> landscape.Sensitivity:
    """Measure what each layer with a choice costs at each candidate: weights and inputs, calibrated and not trained.

    In a test, of weights alone.
    """
    layers = saq_core.search(model, profile.data, method="uniform", budget=budget_of(model, BUDGET)).bits

    def quantized(model: nn.Module, bits: dict[str, str]) -> nn.Module:
        return saq_core.calibrate(saq_core.quantize(model, bits, first_last_bits=None), profile.data)

    formats = profile.effort(("W2A2", "W3A3", "W4A4", "W5A5"), ("W2", "W3", "W4", "W5"))
    measured = {"quantize": profile.effort(quantized, None), "formats": formats, "layers": list(layers)}
    return landscape.sensitivity(model, profile.measured(model), predictions=(), **measured)


def weight_bits(bits: Mapping[str, str]) -> list[int]:
    """Return the bits of each layer, which its weights and inputs share here."""
    return [int(label[1 : label.index("A")]) for label in bits.values()]


def tuned(profile: Profile, bits: str | Mapping[str, str], seed: int, variant: str = "sgd") -> nn.Module:
    """Return the network tuned at these bits; policies that are alike share one, which is named by its bits.

    SAQ's radius is its experiment's at all bits: none was chosen for mixed ones.
    """
    if not isinstance(bits, str) and len(set(bits.values())) == 1:
        bits = next(iter(bits.values()))
    if isinstance(bits, str):
        return profile.trained(profile.experiment(variant, bits), seed)
    name = f"{profile.family}-mixed{''.join(map(str, weight_bits(bits)))}-{variant}"
    chosen = replace(profile.experiment(variant), name=name, bits=dict(bits))
    return profile.trained(chosen, seed)


def tested(profile: Profile, bits: str | Mapping[str, str], seed: int, variant: str = "sgd") -> tuple[float, ...]:
    """Return accuracy in %, loss on the test images, and M BOPs of the network tuned at these bits."""
    model = tuned(profile, bits, seed, variant)
    found = saq_core.evaluate(model, profile.data.test)
    return 100 * found.accuracy, found.loss, saq_core.cost(model).bops / 1e6
