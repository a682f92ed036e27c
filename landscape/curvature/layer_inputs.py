"""What goes into a layer, or comes out of it, as what varies: ``at="layer.input"``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..model import Coordinates, Objective


class LayerInputs:
    """What goes into one layer, or comes out, over all the data, as the tensor that varies."""

    def __init__(self, objective: Objective, at: str) -> None:
        name, _, leaf = at.rpartition(".")
        modules = dict(objective.model.named_modules())
        if objective.coordinates.layouts:
            raise ValueError(f"at={at!r} needs whole weights, and the network is sharded: measure it on one process")
        if not objective.same_order:
            raise ValueError("at= needs data in one order: pass (x, y) or a list of batches, not a loader")
        if leaf not in ("input", "output") or name not in modules:
            raise ValueError(f'at must be "<module>.input" or ".output" with the name of a module, got {at!r}')
        self.module, self.leaf = modules[name], leaf
        self._parts: list[Tensor] = []
        with objective.measurement_mode(), torch.no_grad():
            for batch in objective.batches():
                with self._hook(self._remember):
                    objective.loss(objective.tensors(), batch)
        if len(self._parts) != len(objective.batch_rows):
            raise ValueError(f"{name} must be called once in a forward pass, with a tensor, for at={at!r}")
        ends = torch.tensor([0] + [part.numel() for part in self._parts]).cumsum(0).tolist()
        self.rows = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        rounded = any(getattr(module, "is_quantizer", False) for module in objective.model.modules())
        centre = {at: torch.cat(self._parts)}
        self.coordinates = Coordinates(f"{leaf} of {name}", rounded, centre, {at: at}, centre)

    def cut(self, index: int, vector: Tensor) -> list[Tensor]:
        """Cut one batch's part out of a vector of shape (n,)."""
        return [vector[self.rows[index]].view_as(self._parts[index])]

    @contextlib.contextmanager
    def hooked(self, index: int) -> Iterator[Tensor]:
        """Put a tensor that varies in the place of the layer's input, and yield it."""
        leaf = self._parts[index].clone().requires_grad_()
        with self._hook(lambda _: leaf.clone()):  # a copy, for what comes next may work in place
            yield leaf

    def _remember(self, value: Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            raise ValueError(f"at must name a module whose {self.leaf} is one tensor, got a {type(value).__name__}")
        self._parts.append(value.detach().clone())
        return value

    def _hook(self, function: Callable[[Tensor], Tensor]) -> RemovableHandle:
        if self.leaf == "input":
            return self.module.register_forward_pre_hook(lambda _, inputs: (function(inputs[0]), *inputs[1:]))
        return self.module.register_forward_hook(lambda _, inputs, output: function(output))
