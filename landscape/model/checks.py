"""What keeps numbers that mean nothing from being measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def pair(batch: Any) -> tuple[Any, Tensor]:
    """Return inputs and targets of a batch.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(f"a batch must be (inputs, targets), got {what}: pass objective=, which may take any batch")
    return batch[0], batch[1]


def checked(objective: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], Any]:
    """Return the objective, which now refuses to return anything but (mean loss, weight)."""

    def call(model: nn.Module, batch: Any) -> Any:
        found = objective(model, batch)
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(f"objective must return (mean loss, weight of the batch), got {type(found).__name__}")
        return found

    return call


def refuse_change(function: Any, loss: Callable[[], Tensor], reason: Callable[[], str]) -> None:
    """Refuse a loss that is another when repeated.

    Raises:
        ValueError: with the reason.
    """
    once, again = loss().double(), loss().double()
    # a shuffled loader adds up in another order, and some kernels do so every time
    slack = min(1e3 * torch.finfo(function.dtype).eps, 1e-2)
    if not torch.allclose(once, again, rtol=slack, atol=slack, equal_nan=True):
        raise ValueError(
            f"the loss changed when repeated ({float(once):.6g}, then {float(again):.6g}): {reason()}, and curvature "
            "of a moving function means nothing"
        )


def random_module(function: Any, batch: Any) -> str:
    """Name the first module, innermost first, whose output changes when a batch is repeated."""
    seen: list[dict[str, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen[-1].setdefault(name, output.detach().clone())

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in function.model.named_modules() if name]
    try:
        for _ in range(2):
            seen.append({})
            function.loss(function.live(), batch)
    finally:
        for hook in hooks:
            hook.remove()
    once, again = seen
    changed = (name for name in once if name in again and not torch.equal(once[name], again[name]))
    name = next(changed, None)
    who = "the model or its loss" if name is None else f"{name} ({type(function.model.get_submodule(name)).__name__})"
    return f"{who} is random in eval mode"
