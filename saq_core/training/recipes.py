"""The recipe: how a network is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from landscape.checking import numbers

from ..fpq import FPQ
from ..results import Settings
from ..sharpness import SAQ
from .weights import WinQ

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "steps", "constant"]
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
        optimizer: "sgd", "adamw", or a function of the parameter groups that returns an optimizer, whose learning rates
            are its own: ``lambda groups: torch.optim.Adam(groups, lr=1e-3)``. Groups have their "weight_decay".
        schedule: "cosine" (to 0 over all steps), "steps" (a tenth from 40 % of the steps on, a hundredth from 60 %)
            or "constant", under which a callback may set other rates; or a function of the optimizer and the number of
            all steps that returns a scheduler of torch, which is stepped after every step:
            ``lambda o, n: OneCycleLR(o, 0.1, n)``. No warm-up then.
        warmup: Epochs in which the learning rate rises linearly to the schedule's.
        sam: Sharpness-aware, or None for the plain optimizer at the price of one pass per step.
        fpq: Noise on features and their distillation from the float network, or None.
        winq: Noise on the weights and their reset towards the quantized ones, or None.
        ema: d of the average ``m ← d·m + (1 - d)·w`` after every step, from the weights at the start, of all that is
            trained, quantizers' steps too, and of BatchNorm's statistics, which are not taken anew from the data.
            Validation, snapshots and `on_epoch` see the average, and at the end the network is it.
        label_smoothing: Share of the label that is spread over all classes.
        mix: "mixup", "cutmix" or "both" blends pairs of images and their labels; None leaves them.
        clip_norm: Longest gradient, over all parameters together; ε comes from the gradient before.
        micro_batch: Samples per forward pass, where a batch does not fit in memory; BatchNorm then sees so many.
        amp: Forward passes in bfloat16; it swallows most of a small SAM perturbation (see `received_cosine`).
        compile: Compile the forward pass; None = on a GPU only.
        seed: Of shuffling, augmentation and dropout.

    Raises:
        ValueError: If a setting is out of range.

    A file keeps the names of functions: `load` and `train(checkpoint=)` know a recipe by them, and cannot call them.

    Example:
        >>> import saq_core
        >>> recipe = saq_core.Recipe(epochs=10, lr=0.1, sam=saq_core.SAQ())
        >>> recipe
        Recipe(epochs=10, lr=0.1, sam=SAQ())
        >>> [round(recipe.lr_at(step, 1), 3) for step in (0, 5, 9)]
        [0.1, 0.05, 0.002]
        >>> saq_core.Recipe(epochs=10, lr=0.1, winq=saq_core.WinQ(every=100), ema=0.999)
        Recipe(epochs=10, lr=0.1, winq=WinQ(every=100), ema=0.999)
    """

    epochs: int
    lr: float
    batch_size: int = 128
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    optimizer: OptimizerName | Callable[[list[dict[str, Any]]], Optimizer] = "sgd"
    schedule: ScheduleName | Callable[[Optimizer, int], LRScheduler] = "cosine"
    warmup: int = 0
    sam: SAQ | None = None
    fpq: FPQ | None = None
    winq: WinQ | None = None
    ema: float | None = None
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
        self._check(label_smoothing="from 0 to below 1", ema="from 0 to below 1")
        for name in ("optimizer", "schedule"):
            if isinstance(given := getattr(self, name), nn.Module):
                raise TypeError(f"{name} must be a name or a function, got a network ({type(given).__name__})")
        if callable(self.schedule) and self.warmup:
            raise ValueError(f"warmup must be 0 where schedule is a function, got {self.warmup}: warm up in it")

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from `dataclasses.asdict`, also one of 0.1."""
        made: dict[str, Any] = {k: c(**stored[k]) for k, c in (("sam", SAQ), ("winq", WinQ)) if stored.get(k)}
        if fpq := stored.get("fpq"):
            made["fpq"] = FPQ(**{name: value for name, value in fpq.items() if FPQ_THEN.get(name) != value})
        for name, names in (("optimizer", OptimizerName), ("schedule", ScheduleName)):
            if stored.get(name) not in (None, *get_args(names)):
                made[name] = _Absent(name, stored[name])
        return cls(**{**stored, **made})

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0 over all epochs."""
        numbers(whole=True, at_least=0, step=step)
        numbers(whole=True, at_least=1, steps_per_epoch=steps_per_epoch)
        return self._lr_at(step, steps_per_epoch, self.lr)

    def _lr_at(self, step: int, steps_per_epoch: int, start: float) -> float:
        done = step / (self.epochs * steps_per_epoch)
        steps = 1.0 if done < 0.4 else 0.1 if done < 0.6 else 0.01
        shapes = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "steps": steps}
        shape = shapes.get(str(self.schedule), 1.0)  # a function sets the rate itself
        return start * shape * min(1.0, (step + 1) / max(1, self.warmup * steps_per_epoch))


class _Absent:
    """Stand in for a function of which a file has the name."""

    def __init__(self, setting: str, name: str) -> None:
        self.setting, self.name = setting, name

    def __call__(self, *_: Any) -> Any:
        rule = f"recipe must have its {self.setting} to train, got the name {self.name!r} from a file"
        raise ValueError(f"{rule}: pass the function, dataclasses.replace(recipe, {self.setting}=…)")

    def __repr__(self) -> str:
        return self.name
