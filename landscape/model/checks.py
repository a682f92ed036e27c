"""Validity checks: the format of batches and objectives, and whether a loss repeats and adds up."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from .. import parallel
from .adapters import RoundedWeight
from .batches import TARGETS, mapped, taken, target_of
from .evaluation import merged
from .losses import BatchLoss
from .network import Network

Reduction = Literal["mean", "sum"]


def call_by_name(model: nn.Module, batch: Mapping[str, Any], with_targets: bool = True) -> Any:
    """Return the network's output for the entries of a mapping, without targets that it has no argument for.

    Args:
        model: the network, or one that hands on to its ``module`` what it is given.
        batch: the entries by name.
        with_targets: False leaves out what it can do without, too.

    Raises:
        ValueError: entries that it has no argument for, or arguments without an entry.
    """
    inner: Any = getattr(model, "_orig_mod", model)
    while any(p.kind is p.VAR_KEYWORD for p in signature(inner.forward).parameters.values()):
        if not isinstance(getattr(inner, "module", None), nn.Module):
            break
        inner = inner.module
    known = signature(inner.forward)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.parameters.values())

    def is_given(name: str) -> bool:
        argument = known.parameters.get(name)
        if name not in TARGETS or (argument and argument.default is argument.empty):
            return True
        return with_targets and (takes_all or argument is not None)

    given = {name: value for name, value in batch.items() if is_given(name)}
    try:
        known.bind(**given)
    except TypeError as error:
        names = ", ".join(map(repr, batch))
        raise ValueError(
            f"a batch is a mapping, whose entries must be arguments of the model, got {names}: {error}; name them so, "
            "or hand over pairs (input, target)"
        ) from error
    return model(**given)


def call_of(model: nn.Module, batch: Any) -> Any:
    """Return the network's output for a batch: a pair's inputs, a mapping's entries by name, or the batch itself.

    Raises:
        TypeError: a tuple or list that is no pair.
        ValueError: a mapping whose entries are not the network's arguments.
    """
    if isinstance(batch, Mapping):
        return call_by_name(model, batch)
    has_parts = isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence)
    if has_parts and len(batch) == 2:
        return model(batch[0])
    if has_parts or isinstance(batch, Tensor) or target_of(batch) is None:
        got = f"{len(batch)} parts" if has_parts else type(batch).__name__
        raise TypeError(f"a batch must be (inputs, targets), got {got}: pass objective=, which may take any batch")
    return model(batch)


class CallOnCopies:
    """Calls a network that writes into its batches on copies of them; until `settle`, any network.

    Args:
        call: ``call(model, batch)`` → output.
    """

    def __init__(self, call: Callable[[nn.Module, Any], Any]) -> None:
        self._call, self._copies, self._writes = call, True, False

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Return the output for a batch, which is left as it is."""
        if not self._copies:
            return self._call(model, batch)
        copies: dict[int, Tensor] = {}
        output = self._call(model, mapped(batch, lambda tensor: copies.setdefault(id(tensor), tensor.clone())))
        self._writes |= any(copy._version for copy in copies.values())
        return output

    def settle(self) -> None:
        """Copy no more where nothing was written so far."""
        self._copies = self._writes


def check_repeats(loss: Callable[[], Tensor], dtype: torch.dtype, reason: Callable[[], str]) -> Tensor:
    """Compute a loss twice; return it, or raise if it changes.

    Raises:
        ValueError: with the reason.
    """
    once, again = loss().double(), loss().double()
    if not _close(once, again, dtype):
        raise ValueError(
            f"the loss changed when repeated ({float(once):.6g}, then {float(again):.6g}): {reason()}; "
            "neither surface nor Hessian of a stochastic loss is defined: seed what draws in every pass"
        )
    return once


def check_same_function(loss: Callable[[bool], Tensor], off: Tensor, dtype: torch.dtype) -> None:
    """Raise if the loss with gradients on is another than with gradients off.

    Raises:
        ValueError: it is.
    """
    with warnings.catch_warnings():  # a loss that leaves PyTorch may warn of gradients that nobody asked for here
        warnings.simplefilter("ignore")
        try:
            on = loss(True).double()
        except RuntimeError:  # no gradients: only a derivative has to say so
            return
    if not _close(on, off, dtype):
        raise ValueError(
            f"the loss is {float(off):.6g} with gradients off and {float(on):.6g} with gradients on: the network "
            "computes two functions (a fused path, or code that asks torch.is_grad_enabled()), and the derivatives of "
            "one are not those of the other; switch the second path off"
        )


def _close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    # a shuffled loader adds up in another order, and some kernels do so every time
    slack = min(1e3 * torch.finfo(dtype).eps, 1e-2)
    return torch.allclose(a, b, rtol=slack, atol=slack, equal_nan=True)


def check_integers(network: Network, rounded: Mapping[str, RoundedWeight], batch: Any) -> None:
    """Raise if a network with integer weights is another one at their dequantized values.

    Raises:
        ValueError: it is; its inputs are quantized while it runs.

    Cost: two forward passes of a batch, where weights are integers.
    """
    integers = [name for name, weight in rounded.items() if weight.moves == name]
    if not integers:
        return
    with torch.no_grad():
        network.swap_in({})
        theirs = tree_leaves(network.call(network.model, batch))
        measured = tree_leaves(network.output(network.tensors(), batch))
    slack = min(1e3 * torch.finfo(network.dtype).eps, 4 * torch.finfo(network.dtype).eps + 1e-4)
    for a, b in zip(theirs, measured, strict=True):
        if isinstance(a, Tensor) and a.is_floating_point() and (a - b).abs().max() > slack * a.abs().max():
            raise ValueError(
                f"{integers[0]} holds integers, and with their dequantized values the network gives other outputs (its "
                "inputs are quantized while it runs): measure the fake-quantized network that it was converted from"
            )


def check_objective(objective: Any) -> None:
    """Raise if the loss is not finite, changes when repeated or with gradients on, or from process to process.

    Raises:
        ValueError: it does.
    """
    first = next(objective.batches())

    def run(with_gradients: bool = False) -> Tensor:
        tensors = objective.tensors()
        if with_gradients:
            tensors = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        with torch.set_grad_enabled(with_gradients or objective.needs_grad):
            return objective.loss(tensors, first).mean.detach()

    off = check_repeats(run, objective.dtype, lambda: stochastic_module(objective.model, run))
    check_same_function(run, off, objective.dtype)
    if not objective.is_pair:
        reason = (
            "the data change from pass to pass (augmentation? shuffle with drop_last?): pass a loader that gives the "
            "same samples in every pass, or a list of its batches"
        )

        def whole() -> Tensor:
            # at the model's own statistics: those recomputed depend on which samples a shuffle puts into one batch
            tensors = objective.tensors()
            return merged([objective.loss(tensors, batch) for batch in objective.batches()], False).loss

        with torch.set_grad_enabled(objective.needs_grad):
            check_repeats(whole, objective.dtype, lambda: reason)
    loss = float(objective.centre.loss)
    if not math.isfinite(loss):
        raise ValueError(f"the loss of the model itself is {loss}: look at its weights and data before measuring")
    if parallel.size() > 1:  # what a loader makes, and what functions compute: neither can be told from outside
        values = [f"{float(value):.5g}" for value in (objective.centre.loss, *objective.centre.metrics)]
        batches = [] if objective.is_pair else [parallel.fingerprints({"": batch}) for batch in objective.batches()]
        parallel.check_agreement(data=batches, loss=values, weights=objective.batch_weights)


def check_reached(network: Network, loss: Callable[[Any], Tensor]) -> None:
    """Raise if the network reads the weight of a quantized layer without calling the layer.

    In quantized space its delta would then move nothing, and all curvature of it would be zero.

    Raises:
        ValueError: with the layers.

    Cost: one gradient of a batch, in quantized space alone.
    """
    deltas = {name: other for name, other in network.coordinates.tensors.items() if name != other}
    if not deltas:
        return
    centre = network.frozen | network.tensors()
    leaves = {name: centre[name].detach().clone().requires_grad_() for pair in deltas.items() for name in pair}
    with torch.enable_grad():
        value = loss(network.tensors() | leaves)
        if not value.requires_grad:
            return
        slopes = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True))
    if bypassed := [name for name, delta in deltas.items() if slopes[delta] is None and slopes[name] is not None]:
        raise ValueError(
            f"the network reads {', '.join(bypassed[:3])} directly, without calling the quantized layer: nothing is "
            "rounded there, and in quantized space it would not vary; leave it float "
            "(saq_core.quantize(..., skip=[…])), or use space='latent'"
        )


def reduction_seen(objective: Any, batch: Any) -> tuple[str | None, bool]:
    """Compare the loss of a batch with that of its parts; where the network cannot take parts, those of its output.

    Args:
        objective: an `Objective` that is being made.
        batch: of two samples or more.

    Returns:
        See `reduction_of`; and whether the network itself gives that for parts of a batch, not its loss alone.
    """
    criterion = objective.criterion
    with torch.set_grad_enabled(objective.needs_grad):
        kind = reduction_of(lambda part: objective.loss(objective.tensors(), part), batch, objective.dtype)
        if kind:
            return kind, True
        if kind is None and criterion.custom_loss is not None:
            output = objective.network.output(objective.tensors(), batch)
            pair = criterion.part_of(output, objective.dtype), target_of(batch)
            kind = reduction_of(lambda part: objective.scaled(criterion.of_part(*part)), pair, objective.dtype)
            kind = kind if kind == "sum" else None  # parts of outputs say nothing of the network
    return "sum" if kind is None and getattr(criterion.custom_loss, "reduction", "") == "sum" else kind, False


def reduction_of(loss: Callable[[Any], BatchLoss], batch: Any, dtype: torch.dtype) -> str | None:
    """Compare the loss of a batch with that of its parts.

    The parts are of unequal size, and sorted by target, so that classes and ignored targets weigh differently in them.

    Returns:
        ``"samples"`` where samples do not depend on their company, ``"mean"`` or ``"sum"`` where the loss of the whole
        is that of its parts', ``""`` where it is neither, None where the batch cannot be taken apart.

    Cost: two forward passes of the batch.
    """
    whole, *parts = _pieces(batch) or (None,)
    if whole is None:
        return None
    of_whole = loss(whole)
    try:
        first, second = (loss(part) for part in parts)
    except Exception:  # the network, or its loss, takes no other number of samples
        return None
    slack = max(min(1e3 * torch.finfo(dtype).eps, 1e-2), 1e-8)
    if of_whole.losses is not None:
        each = torch.cat([part.losses for part in (first, second) if part.losses is not None])
        if each.shape != of_whole.losses.shape:
            return ""
        apart = (each - of_whole.losses).abs() > slack * (1 + of_whole.losses.abs())
        # a rounded activation may jump where sums differ by a rounding error
        return "samples" if int(apart.sum()) <= max(1, len(each) // 50) else ""
    weights = [float(part.weight) for part in (first, second)]
    values = [float(part.mean.detach()) for part in (of_whole, first, second)]
    mean = (weights[0] * values[1] + weights[1] * values[2]) / sum(weights)
    close = [abs(value - values[0]) <= slack * abs(values[0]) for value in (mean, values[1] + values[2])]
    return "mean" if close[0] else "sum" if close[1] else ""


def _pieces(batch: Any) -> tuple[Any, Any, Any] | None:
    """Return a batch sorted by its targets, and its first third and the rest; None where it cannot be indexed."""
    target = target_of(batch)
    if not isinstance(target, Tensor) or target.ndim == 0 or len(target) < 2:
        return None
    order = target.reshape(len(target), -1).double().mean(1).argsort(stable=True)
    split = max(1, len(order) // 3)
    pieces = [taken(batch, rows, len(order)) for rows in (order, order[:split], order[split:])]
    return None if any(piece is None for piece in pieces) else tuple(pieces)  # type: ignore[return-value]


def stochastic_module(model: nn.Module, run: Callable[[], Any]) -> str:
    """Name the first module, innermost first, that gives another output for the same input when a pass is repeated."""
    calls: list[dict[str, tuple[list[Tensor], list[Tensor]]]] = []

    def copies(*values: Any) -> list[Tensor]:
        return [value.detach().clone() for value in tree_leaves(values) if isinstance(value, Tensor)]

    def are_alike(some: list[Tensor], others: list[Tensor]) -> bool:
        return len(some) == len(others) and all(map(torch.equal, some, others))

    def record(name: str, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls[-1].setdefault(name, (copies(args, kwargs), copies(output)))

    named = {name: module for name, module in model.named_modules() if name}
    with contextlib.ExitStack() as hooks:
        for name, module in named.items():
            hooks.enter_context(module.register_forward_hook(partial(record, name), with_kwargs=True))
        for _ in range(2):
            calls.append({})
            run()
    who = "the model or its loss"
    for name, (given, made) in calls[0].items():
        again = calls[1].get(name)
        if again and are_alike(given, again[0]) and not are_alike(made, again[1]):
            who = f"{name} ({type(named[name]).__name__})"
            break
    return f"{who} is stochastic in eval mode"
