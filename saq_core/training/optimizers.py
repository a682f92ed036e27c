"""Optimizers and schedules of a recipe."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..quantization import check_latent
from .recipes import Recipe


def base_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the plain optimizer of a recipe over a model; parameters of quantizers do not decay."""
    check_latent(model, "train the one that save() wrote, or dequantize() this one")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("model must have trainable parameters, got none")
    quantizers = [m for m in model.modules() if getattr(m, "is_quantizer", False)]
    learned = {id(p) for m in quantizers for p in m.parameters()}
    groups = [
        {"params": [p for p in trainable.values() if id(p) not in learned], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable.values() if id(p) in learned], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: Any
    if callable(recipe.optimizer):
        optimizer = recipe.optimizer(groups)
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
            kind = type(optimizer).__name__
            raise TypeError(f"optimizer must return a torch.optim.Optimizer that steps from one gradient, got {kind}")
    elif recipe.optimizer == "adamw":
        fused = all(p.device.type in ("cpu", "cuda") for p in trainable.values()) or None  # of SGD cannot skip weights
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
    else:
        nesterov = recipe.nesterov and recipe.momentum > 0
        optimizer = torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=nesterov)
    if recipe.clip_norm is not None:
        trained = [p for group in groups for p in cast(Any, group["params"])]

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(trained, cast(float, recipe.clip_norm))

        optimizer.register_step_pre_hook(clip)
    return optimizer


def scheduler_of(optimizer: Optimizer, recipe: Recipe, steps: int) -> LRScheduler | None:
    """Return the scheduler that a recipe's function makes for so many steps; None for a schedule by name."""
    if isinstance(recipe.schedule, str):
        return None
    scheduler: Any = recipe.schedule(optimizer, steps)
    rule = "schedule must return a scheduler of the optimizer that it is given"
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        needs = ", which waits for a value: call it in on_epoch" if isinstance(scheduler, ReduceLROnPlateau) else ""
        raise TypeError(f"{rule}, got a {type(scheduler).__name__}{needs}")
    if scheduler.optimizer is not optimizer:
        raise ValueError(f"{rule}, got a {type(scheduler).__name__} of another {type(scheduler.optimizer).__name__}")
    return scheduler
