"""Validity checks: the format of batches and objectives, labels, and whether a loss repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BatchObjective = Callable[[nn.Module, Any], tuple[Tensor, Any]]


def pair(batch: Any) -> tuple[Any, Tensor]:
    """Return inputs and targets of a batch.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(f"a batch must be (inputs, targets), got {what}: pass objective=, which may take any batch")
    return batch[0], batch[1]


def checked_objective(objective: BatchObjective) -> BatchObjective:
    """Return the objective, which now raises where it does not return (mean loss, weight)."""

    def call(model: nn.Module, batch: Any) -> Any:
        result: Any = objective(model, batch)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"objective must return (mean loss, weight of the batch), got {type(result).__name__}")
        return result

    return call


def check_labels(y: Tensor, classes: int) -> None:
    """Raise if a label is outside [0, classes)."""
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0…{classes - 1} for {classes} outputs, got {low}…{high}")


def check_repeats(loss: Callable[[], Tensor], dtype: torch.dtype, reason: Callable[[], str]) -> None:
    """Raise if a loss changes when it is computed again.

    Raises:
        ValueError: with the reason.
    """
    once, again = loss().double(), loss().double()
    # a shuffled loader adds up in another order, and some kernels do so every time
    slack = min(1e3 * torch.finfo(dtype).eps, 1e-2)
    if not torch.allclose(once, again, rtol=slack, atol=slack, equal_nan=True):
        raise ValueError(
            f"the loss changed when repeated ({float(once):.6g}, then {float(again):.6g}): {reason()}; "
            "the Hessian of a stochastic loss is not defined"
        )


def stochastic_module(model: nn.Module, run: Callable[[], Any]) -> str:
    """Name the first module, innermost first, whose output changes when a pass is repeated."""
    outputs: list[dict[str, Tensor]] = []

    def record(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[-1].setdefault(name, output.detach().clone())

        return hook

    hooks = [module.register_forward_hook(record(name)) for name, module in model.named_modules() if name]
    try:
        for _ in range(2):
            outputs.append({})
            run()
    finally:
        for hook in hooks:
            hook.remove()
    once, again = outputs
    changed = (name for name in once if name in again and not torch.equal(once[name], again[name]))
    name = next(changed, None)
    who = "the model or its loss" if name is None else f"{name} ({type(model.get_submodule(name)).__name__})"
    return f"{who} is stochastic in eval mode"
