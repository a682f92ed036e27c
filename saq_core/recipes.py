"""How networks are trained: recipes, and the experiments that are run here, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from .perturbation import FPQ
from .sam import SAQ

SCHEDULES = ("cosine", "steps", "constant")
OPTIMIZERS = ("sgd", "adamw")
MIXES = (None, "mixup", "cutmix", "both")


@dataclass(frozen=True)
class Recipe:
    """Say how a network is trained.

    Args:
        epochs: Passes over the training split.
        lr: Learning rate at the start.
        batch_size: Samples per step, in all processes together.
        momentum: Of "sgd".
        nesterov: Of "sgd"; without effect where momentum is 0.
        weight_decay: On every parameter except the steps and clips of quantizers (a decayed clip keeps shrinking).
        optimizer: "sgd" or "adamw".
        schedule: "cosine" (to 0 over all steps), "steps" (a tenth from 40 % of the steps on, a hundredth from 60 %)
            or "constant".
        warmup: Epochs in which the learning rate rises linearly to the schedule's.
        sam: Sharpness-aware, or None for the plain optimizer at the price of one pass per step.
        fpq: Features with noise, distilled from the float network, or None.
        label_smoothing: Share of the label that is spread over all classes.
        mix: "mixup", "cutmix" or "both" blends pairs of images and their labels; None leaves them.
        clip_norm: Longest gradient, over all parameters together; ε comes from the gradient before.
        micro_batch: Samples per forward pass, where a batch does not fit in memory; BatchNorm then sees so many.
        amp: Forward passes in bfloat16; it swallows most of a small SAM perturbation (see `received_cosine`).
        compile: Compile the forward pass; None = on a GPU only.
        seed: Of shuffling, augmentation and dropout.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    optimizer: str = "sgd"
    schedule: str = "cosine"
    warmup: int = 0
    sam: SAQ | None = None
    fpq: FPQ | None = None
    label_smoothing: float = 0.0
    mix: str | None = None
    clip_norm: float | None = None
    micro_batch: int | None = None
    amp: bool = False
    compile: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("warmup", 0), ("micro_batch", 1)):
            value = getattr(self, name)
            if not (name == "micro_batch" and value is None) and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be >= 0 and finite, got {value!r}")
        for name, known in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS), ("mix", MIXES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {list(known)}, got {getattr(self, name)!r}")
        for name, kind in (("sam", SAQ), ("fpq", FPQ)):
            if not isinstance(getattr(self, name), kind | None):
                raise ValueError(f"{name} must be a saq_core.{kind.__name__} or None, got {getattr(self, name)!r}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be from 0 to below 1, got {self.label_smoothing!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0 or None, got {self.clip_norm!r}")
        for name in ("lr", "momentum", "weight_decay", "label_smoothing", "clip_norm"):
            if getattr(self, name) is not None:  # numpy's numbers would not come back from a checkpoint
                object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from `dataclasses.asdict`."""
        made = {name: kind(**stored[name]) for name, kind in (("sam", SAQ), ("fpq", FPQ)) if stored.get(name)}
        return cls(**{**stored, **made})

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs."""
        done = step / (self.epochs * steps_per_epoch)
        shape = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "steps": 1.0 if done < 0.4 else 0.1 if done < 0.6 else 0.01,
        }[self.schedule]
        return self.lr * shape * min(1.0, (step + 1) / max(1, self.warmup * steps_per_epoch))


@dataclass(frozen=True)
class Experiment:
    """Name everything that makes one trained network: data, network, bits, and the recipe.

    Write one in a module of your own and run it by ``python -m saq_core train my_package.my_module:NAME``.

    Args:
        name: Of its files.
        data: See `load_data`.
        network: See `build_model`.
        recipe: Its seed is replaced by the run's.
        bits: See `quantize`; None = full precision.
        quantizer: See `quantize`.
        per_channel: See `quantize`.
        start: Experiment whose trained network this one starts from, with the same seed; None = random weights.
        limit: Training images; None = all.
        source: Where the settings come from.
    """

    name: str
    data: str
    network: str
    recipe: Recipe
    bits: str | dict[str, str] | None = None
    quantizer: str = "lsq"
    per_channel: bool = False
    start: str | None = None
    limit: int | None = None
    source: str = ""


VARIANTS: dict[str, dict[str, Any]] = {  # what each changes in the recipe
    "sgd": {},
    "saq1": {"sam": SAQ(0.05, case=1)},
    "saq2": {"sam": SAQ(0.05, case=2)},
    "saq3": {"sam": SAQ(0.05, case=3)},
    "saq3-momentum": {"sam": SAQ(0.05, policy="momentum:0.6")},
    "saq3-subset": {"sam": SAQ(0.05, policy="subset:0.15")},
    "sfp": {"fpq": FPQ(distill=False)},
    "csd": {"fpq": FPQ(p=0)},
    "fpq": {"fpq": FPQ()},
    "sfp-p1": {"fpq": FPQ(p=1.0, distill=False)},
    "fpq-p0.5": {"fpq": FPQ(p=0.5)},  # with csd, p = 0, and fpq, p = 0.1: the scan of FPQ's table 3
    "fpq-p1": {"fpq": FPQ(p=1.0)},
}


def _family(data: str, network: str, limit: int | None, start: Recipe, tuned: Recipe, source: str) -> list[Experiment]:
    """Return a float network, the same tuned further, and its W4A4 and W2A2 twins with every variant."""
    base = f"{data}-{network}"
    shared: dict[str, Any] = {"data": data, "network": network, "limit": limit, "source": source}
    found = [Experiment(base, recipe=start, **shared), Experiment(f"{base}-fp32", recipe=tuned, start=base, **shared)]
    for bits in ("W4A4", "W2A2"):
        for label, changes in VARIANTS.items():
            name = f"{base}-{bits.lower()}-{label}"
            found.append(Experiment(name, recipe=replace(tuned, **changes), bits=bits, start=base, **shared))
    return found


def _fpq_paper() -> list[Experiment]:
    """Return ResNet-18 on CIFAR-10 in FPQ's own setting: plain LSQ and FPQ, and the float network they start from."""
    source = (
        "FPQ (Pang and Cai, 2025), section 4: asymmetric LSQ per channel, 200 epochs, batch 256, decay 5e-4, lr 0.01; "
        "the float recipe is ours; hours on a GPU, never run here"
    )
    tuned = Recipe(epochs=200, lr=0.01, batch_size=256, weight_decay=5e-4, nesterov=False)
    base = Experiment("fpq-resnet18", "cifar10", "resnet18", replace(tuned, lr=0.1), source=source)
    shared: dict[str, Any] = {"quantizer": "lsq-asymmetric", "per_channel": True, "start": base.name}
    return [base] + [
        replace(base, name=f"{base.name}-{bits.lower()}-{label}", recipe=replace(tuned, fpq=fpq), bits=bits, **shared)
        for bits in ("W4A4", "W2A4", "W2A2")
        for label, fpq in (("lsq", None), ("fpq", FPQ()))
    ]


_DIGITS = Recipe(epochs=15, lr=0.1, batch_size=64)
_CIFAR = Recipe(epochs=20, lr=0.1, warmup=1)

# What is run here, by name. Quantized networks: LSQ, first and last layer at 8 bits; rho = 0.05 in plain units.
EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        *_family("digits", "resnet8", None, _DIGITS, replace(_DIGITS, lr=0.02), "ours, a test of the whole in minutes"),
        *_family(
            "cifar10",
            "resnet20",
            10_000,
            _CIFAR,
            replace(_CIFAR, lr=0.02),
            "SAQ's scripts: Nesterov 0.9, decay 1e-4, batch 128, from a float network; 10,000 images, 20 epochs, "
            "lr 0.02 to 0 by cosine, 1 epoch of warm-up are ours; rho 0.05 from Foret et al. (2021)",
        ),
        *_fpq_paper(),
    )
}
