"""What keeps numbers that mean nothing from being measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .objective import Objective


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


def refuse_change(function: Objective, loss: Callable[[], Tensor], reason: Callable[[], str]) -> None:
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


def random_module(function: Objective, batch: Any) -> str:
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


@contextlib.contextmanager
def folding_set(function: Objective, folded: bool) -> Iterator[None]:
    """Fold BatchNorm, or do not, inside this context."""
    before, function.folded = function.folded, folded
    try:
        yield
    finally:
        function.folded = before


def folding_agrees(function: Objective, batch: Any) -> bool:
    """Tell whether loss and gradient of a batch, a step from the centre, stay the same when BatchNorm is folded."""
    there = {name: 1.01 * value + 1e-3 for name, value in function.live().items()}
    with folding_set(function, False):
        plain = _slopes(function, there, batch)
        if plain is None:
            with torch.no_grad():
                function.loss(there, batch)  # what fails for another reason than the gradient fails again, and says so
            return False
    try:
        with folding_set(function, True):
            folded = _slopes(function, there, batch)
    except Exception:  # the network does what a stand-in cannot
        return False
    return folded is not None and _alike(function, plain, folded)


def _alike(function: Objective, plain: list[Tensor], folded: list[Tensor]) -> bool:
    # rounded activations may jump where sums differ by a rounding error; a fold gone wrong is far off
    slack = max(1e-2, 8 * torch.finfo(torch.bfloat16 if function.precision == "bf16" else function.dtype).eps)
    whole = sum(float(slope.norm()) for slope in plain[1:])
    norms = [(float((a - b).norm()), float(a.norm())) for a, b in zip(plain, folded, strict=True)]
    return norms[0][0] <= slack * norms[0][1] and all(gap <= slack * (10 * norm + whole) for gap, norm in norms[1:])


def _slopes(function: Objective, live: Mapping[str, Tensor], batch: Any) -> list[Tensor] | None:
    """Return the loss and its gradient, float64; None where there is no gradient to be had."""
    leaves = {name: value.detach().requires_grad_() for name, value in live.items()}
    try:
        with torch.enable_grad():
            loss = function.loss(leaves, batch).mean
            slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    except RuntimeError:
        return None
    return [part.detach().double() for part in (loss, *slopes)]
