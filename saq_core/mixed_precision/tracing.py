"""Which layers a shortcut follows and which layer feeds a BatchNorm, from one forward pass."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.feeding import call
from ..quantization import copy_model, find_layers
from ..quantization.usage import Tracer

ADDITIONS = ("add", "add_", "__add__", "__iadd__", "__radd__")


class Origin(NamedTuple):
    """Origin of a value of a forward pass: the last layer, all layers before, and whether nothing was added."""

    layer: str
    before: frozenset[str]
    alone: bool


class _Origins(Tracer):
    """Trace the values of a forward pass back to the layers that made them."""

    def __init__(self) -> None:
        super().__init__()
        self.follows: dict[str, str] = {}
        self.norms: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        parts: list[Origin] = self._of((args, kwargs))
        if parts:
            deepest = max(parts, key=lambda origin: len(origin.before))
            if getattr(func, "__name__", "") in ADDITIONS and len(parts) == 2:
                self._note_shortcut(min(parts, key=lambda origin: len(origin.before)), deepest)
            before, alone = frozenset().union(*(origin.before for origin in parts)), len(parts) == 1 and deepest.alone
            self._put(output, Origin(deepest.layer, before, alone))
        return output

    def _note_shortcut(self, short: Origin, long: Origin) -> None:
        both = short.alone and long.alone and len(short.before) < len(long.before)
        circle = leader_of(long.layer, self.follows, self.follows.values()) == short.layer  # of layers used twice
        if both and short.layer not in long.before and not circle:
            self.follows.setdefault(short.layer, long.layer)

    def layer(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Record a layer's output (a forward hook)."""
        before: frozenset[str] = max((origin.before for origin in self._of(inputs)), key=len, default=frozenset())
        self._put(output, Origin(name, before | {name}, True))

    def norm(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Record which layer feeds a BatchNorm (a forward pre-hook)."""
        for origin in self._of(inputs[0]):
            self.norms.setdefault(name, origin.layer)


def trace_shortcuts(model: nn.Module, x: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return (shortcut -> the layer beside it, BatchNorm -> the layer that feeds it), from one forward pass of a copy.

    A shortcut is a layer whose output is added to that of a longer branch which it is no part of. After an addition the
    longer branch counts as the origin: the first BatchNorm of a pre-activation block belongs to the block before.
    """
    network, origins = copy_model(model).eval().requires_grad_(), _Origins()
    layers = find_layers(network)[0]
    for name, module in network.named_modules():
        if name in layers:
            module.register_forward_hook(partial(origins.layer, name))
        elif isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(partial(origins.norm, name))
    with torch.enable_grad(), origins:
        call(network, x)
    return origins.follows, origins.norms


def leader_of(name: str, follows: dict[str, str], free: Collection[str]) -> str:
    """Return the layer that decides for this one: itself, unless it follows one that can decide."""
    while follows.get(name) in free:
        name = follows[name]
    return name
