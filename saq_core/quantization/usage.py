"""What a forward pass uses: layers in order, what the network's own input reaches, products of two activations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("scaled_dot_product_attention", "matmul", "mm", "bmm", "baddbmm", "einsum", "tensordot")
INPUT, WEIGHT = 0, 1  # origins of a value: the network's input alone, a weight of no layer in `used`


def is_matrix(value: Any) -> bool:
    """Return whether a tensor is a weight that multiplies: one row is a class token or a position embedding."""
    return isinstance(value, nn.Parameter) and value.ndim >= 2 and len(value) > 1


class Tracer(TorchFunctionMode):
    """Know where values of a forward pass come from: what was put with a tensor, until it is put anew."""

    def __init__(self) -> None:
        super().__init__()
        self._origins: dict[int, tuple[Tensor, Any]] = {}  # the tensor too, for its id must not be used again

    def _of(self, values: Any) -> list[Any]:
        """Return the origins of those tensors that have one."""
        return [self._origins[id(value)][1] for value in tree_leaves(values) if id(value) in self._origins]

    def _put(self, values: Any, origin: Any) -> None:
        self._origins.update({id(t): (t, origin) for t in tree_leaves(values) if isinstance(t, Tensor)})


class Usage(Tracer):
    """Follow the values of a forward pass from the network's input on.

    Its hooks stay on the model: use it in `measurement_mode`, which takes them off.

    Args:
        model: Any network, which then is run in this context.
        layers: Names of those whose use is recorded.
    """

    def __init__(self, model: nn.Module, layers: Collection[str] = ()) -> None:
        super().__init__()
        self.first: str | None = None  # the first layer that takes the network's input, if one does
        self.used: list[str | None] = [None, None]  # layers in the order of use; a position is an origin
        self.products: dict[str, str] = {}  # module -> the function with which it multiplies two activations
        self.output: Any = None
        self._inside: list[str] = []
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
                module.register_forward_hook(partial(self._leave, name, name in layers), with_kwargs=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        values = tree_leaves((args, kwargs))
        origins = self._of(values)
        if origins:
            self._put(output, max(origins) or (WEIGHT if any(map(is_matrix, values)) else INPUT))
            name = getattr(func, "__name__", "")
            if len(origins) > 1 and name in PRODUCTS and self._inside:
                self.products.setdefault(self._inside[-1], name)
        return output

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._inside:
            self._put((args, kwargs), INPUT)
        self._inside.append(name)

    def _leave(self, name: str, is_layer: bool, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._inside.pop()
        if is_layer:
            if self.first is None and INPUT in self._of((args, kwargs)):
                self.first = name
            self.used.append(name)
            self._put(output, len(self.used) - 1)
        if not self._inside:
            self.output = output

    def last(self) -> list[str]:
        """Return the last layers before each output, or before the logits where the output has some."""
        output = self.output
        if isinstance(output, Mapping):
            output = [output["logits"]] if isinstance(output.get("logits"), Tensor) else list(output.values())
        outputs = output if isinstance(output, list | tuple) else [output]  # not what is deeper inside, say a cache
        origins = self._of(outputs) or [len(self.used) - 1]
        return [name for origin in sorted(set(origins)) if (name := self.used[origin]) is not None]
