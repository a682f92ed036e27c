"""Optimizers, parameter groups and schedules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from landscape.checking import numbers

from ..quantization import check_latent
from ..sharpness import Kind, kinds_of
from .recipes import Recipe


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups of `model` for any torch optimizer, so that only what should decay does.

    Weight decay is for tensors of two or more dimensions, embeddings among them. Biases, norms, everything else of one
    dimension or none, and the steps, clips and offsets of quantizers have none: a decayed clip keeps shrinking.

    Args:
        model: Float or quantized. Frozen parameters are left out; a tied one is there once.
        weight_decay: Of those that decay, >= 0.

    Raises:
        ValueError: If nothing is trainable, weights are not there yet (lazy layers), or the network was read from a
            file of `export`.

    Source: the usual split, as timm and transformers make it. `Recipe` is the older one: it spares quantizers alone.

    Example:
        >>> import torch, saq_core
        >>> layers = [torch.nn.Linear(4, 4) for _ in range(3)]
        >>> model = saq_core.quantize(torch.nn.Sequential(*layers), "W4A4")  # with two steps in the second layer
        >>> groups = saq_core.parameter_groups(model, weight_decay=1e-4)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(3, 0.0001), (5, 0.0)]
        >>> optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    """
    numbers(at_least=0, weight_decay=weight_decay)
    if any(map(nn.parameter.is_lazy, model.parameters())):
        raise ValueError("model must have all its weights, got lazy ones: run it once on a batch")
    return split(model, weight_decay, lambda kind, p: kind == "weight" and p.ndim > 1)


def split(model: nn.Module, decay: float, decays: Callable[[Kind, nn.Parameter], bool]) -> list[dict[str, Any]]:
    """Return the group of the trainable parameters that decay, by their kinds, and that of the others."""
    check_latent(model, "train the one that save() wrote, or dequantize() this one")
    kinds = kinds_of(model)
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay}, {"params": [], "weight_decay": 0.0}]
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[not decays(kinds[name], p)]["params"].append(p)
    if not any(group["params"] for group in groups):
        raise ValueError("model must have trainable parameters, got none")
    return [group for group in groups if group["params"]]


def base_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the plain optimizer of a recipe over a model; parameters of quantizers do not decay."""
    groups = split(model, recipe.weight_decay, lambda kind, _: kind not in ("weight_step", "input_step"))
    optimizer: Any
    if callable(recipe.optimizer):
        optimizer = recipe.optimizer(groups)
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
            kind = type(optimizer).__name__
            raise TypeError(f"optimizer must return a torch.optim.Optimizer that steps from one gradient, got {kind}")
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if left := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in trained]:
            named = f"{left[0]} and {len(left) - 1} more" if len(left) > 1 else left[0]
            warnings.warn(f"the optimizer leaves out {named}: freeze them, or add them to its groups", stacklevel=4)
    elif recipe.optimizer == "adamw":
        fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters()) or None  # of SGD cannot skip weights
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)
    else:
        nesterov = recipe.nesterov and recipe.momentum > 0
        optimizer = torch.optim.SGD(groups, recipe.lr, recipe.momentum, nesterov=nesterov)
    if recipe.clip_norm is not None:

        def clip(*_: Any) -> None:
            trained = [p for group in optimizer.param_groups for p in group["params"]]
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
