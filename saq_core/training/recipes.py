"""The recipe: how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from landscape.checking import numbers

from ..fpq import FPQ
from ..results import Settings
from ..sharpness import SAQ

FPQ_THEN = {"placement": "post", "statistics": "batch"}  # settings of 0.1 that have only this value now


@dataclass(frozen=True, repr=False)
class Recipe(Settings):
    """Configure how a network is trained: see `train`.

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
        fpq: Noise on features and their distillation from the float network, or None.
        label_smoothing: Share of the label that is spread over all classes.
        mix: "mixup", "cutmix" or "both" blends pairs of images and their labels; None leaves them.
        clip_norm: Longest gradient, over all parameters together; ε comes from the gradient before.
        micro_batch: Samples per forward pass, where a batch does not fit in memory; BatchNorm then sees so many.
        amp: Forward passes in bfloat16; it swallows most of a small SAM perturbation (see `received_cosine`).
        compile: Compile the forward pass; None = on a GPU only.
        seed: Of shuffling, augmentation and dropout.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> import saq_core
        >>> recipe = saq_core.Recipe(epochs=10, lr=0.1, sam=saq_core.SAQ())
        >>> recipe
        Recipe(epochs=10, lr=0.1, sam=SAQ())
        >>> [round(recipe.lr_at(step, 1), 3) for step in (0, 5, 9)]
        [0.1, 0.05, 0.002]
    """

    epochs: int
    lr: float
    batch_size: int = 128
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    warmup: int = 0
    sam: SAQ | None = None
    fpq: FPQ | None = None
    label_smoothing: float = 0.0
    mix: Literal[None, "mixup", "cutmix", "both"] = None
    clip_norm: float | None = None
    micro_batch: int | None = None
    amp: bool = False
    compile: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._check(epochs=1, batch_size=1, warmup=0, micro_batch=1, seed=0, clip_norm="> 0")
        self._check(**dict.fromkeys(("lr", "momentum", "weight_decay"), ">= 0"))
        self._check(label_smoothing="from 0 to below 1")

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from `dataclasses.asdict`, also one of 0.1."""
        made: dict[str, Any] = {"sam": SAQ(**stored["sam"])} if stored.get("sam") else {}
        if fpq := stored.get("fpq"):
            made["fpq"] = FPQ(**{name: value for name, value in fpq.items() if FPQ_THEN.get(name) != value})
        return cls(**{**stored, **made})

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs."""
        numbers(whole=True, at_least=0, step=step)
        numbers(whole=True, at_least=1, steps_per_epoch=steps_per_epoch)
        done = step / (self.epochs * steps_per_epoch)
        shape = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "steps": 1.0 if done < 0.4 else 0.1 if done < 0.6 else 0.01,
        }[self.schedule]
        return self.lr * shape * min(1.0, (step + 1) / max(1, self.warmup * steps_per_epoch))
