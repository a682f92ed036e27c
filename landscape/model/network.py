"""A network as a function of its tensors: names → output. It knows no data and no loss.

The model is only ever called through `torch.func.functional_call` on other tensors: its own are not touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from .coordinates import Coordinates, Point, Space, coordinates
from .folding import Folding

BatchNorm = Literal["fixed", "recomputed"]
Precision = Literal["fp32", "bf16"]
Call = Callable[[nn.Module, Any], Any]


class Network:
    """A model that is called on a batch with some of its tensors replaced.

    Args:
        model: any network; a compiled one is taken uncompiled, for it has no double backward.
        call: ``call(model, batch)`` → output.
        space, layers: see `coordinates`.
        batchnorm: ``"fixed"`` statistics, or ``"recomputed"`` ones: see `landscape.model.batchnorm`.
        precision: ``"fp32"`` (the model's own dtype), or ``"bf16"`` for autocast.

    Attributes:
        coordinates: what varies.
        folded: whether BatchNorm is folded into the convolutions; known after `settle`.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Call,
        *,
        space: Space | None = None,
        layers: Sequence[str] | None = None,
        batchnorm: BatchNorm = "fixed",
        precision: Precision = "fp32",
    ) -> None:
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.coordinates: Coordinates = coordinates(self.model, space, layers)
        reference = next(iter(self.coordinates.centre.values()))
        self.device, self.dtype = reference.device, reference.dtype
        self.batchnorm, self.precision = batchnorm, precision
        self.norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.folded = bool(self.norms) and batchnorm == "fixed"
        self._bound = _Bound(self.model, call)
        tensors = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        self._frozen = {f"model.{name}": tensor.detach().clone() for name, tensor in tensors}
        self._changing: Point = {}  # buffers that the network changes while it runs, as they were
        self._folded_weights = WeakIdKeyDictionary()

    def tensors(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Return the tensors that vary at centre + displacement, by their names in the model."""
        return self.coordinates.displaced(displacement or {})

    def output(self, tensors: Mapping[str, Tensor], batch: Any) -> Any:
        """Return the output for one batch with these tensors in place of the model's own."""
        whole = self._frozen | {f"model.{name}": value for name, value in tensors.items()}
        whole |= {name: tensor.clone() for name, tensor in self._changing.items()}
        low = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            if not self.folded:
                return functional_call(self._bound, whole, (batch,))
            images_last = self.dtype != torch.float64 and self.device.type == "cpu"
            with Folding(images_last, self._folded_weights) as folding:
                output = functional_call(self._bound, whole, (batch,))
            return folding.result(output)

    def settle(self, loss: Callable[[Point], Tensor]) -> None:
        """Find the buffers that the network changes while it runs, and whether BatchNorm can be folded.

        Args:
            loss: the loss of one batch at given tensors.

        Cost: a forward pass and two gradients of the batch.
        """
        folded, self.folded = self.folded, False
        versions = {name: tensor._version for name, tensor in self._frozen.items()}
        with torch.no_grad():
            loss(self.tensors())
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        changed = [name for name, tensor in self._frozen.items() if tensor._version != versions[name]]
        self._changing = {name: own[name.removeprefix("model.")].detach().clone() for name in changed}
        self.folded = folded and self._folding_agrees(loss)

    def _folding_agrees(self, loss: Callable[[Point], Tensor]) -> bool:
        """Return whether loss and gradient, a step from the centre, are the same when BatchNorm is folded."""
        there = {name: 1.01 * value + 1e-3 for name, value in self.tensors().items()}
        plain = _loss_and_gradient(loss, there)
        if plain is None:
            with torch.no_grad():
                loss(there)  # what fails for another reason than the gradient fails again, and says so
            return False
        self.folded = True
        try:
            folded = _loss_and_gradient(loss, there)
        except Exception:  # the network does what a stand-in cannot
            return False
        finally:
            self.folded = False
        # rounded activations may jump where sums differ by a rounding error; a fold gone wrong is far off
        eps = torch.finfo(torch.bfloat16 if self.precision == "bf16" else self.dtype).eps
        return folded is not None and _agree(plain, folded, max(1e-2, 8 * eps))


class _Bound(nn.Module):
    """A function of (model, batch) as a module, so that `functional_call` can swap the model's tensors."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, batch: Any) -> Any:
        return self.call(self.model, batch)


def _loss_and_gradient(loss: Callable[[Point], Tensor], tensors: Mapping[str, Tensor]) -> list[Tensor] | None:
    """Return the loss and its gradient, float64; None where there is no gradient to be had."""
    leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
    try:
        with torch.enable_grad():
            value = loss(leaves)
            gradient = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    except RuntimeError:
        return None
    return [part.detach().double() for part in (value, *gradient)]


def _agree(plain: list[Tensor], folded: list[Tensor], slack: float) -> bool:
    whole = sum(float(part.norm()) for part in plain[1:])
    norms = [(float((a - b).norm()), float(a.norm())) for a, b in zip(plain, folded, strict=True)]
    return norms[0][0] <= slack * norms[0][1] and all(gap <= slack * (10 * norm + whole) for gap, norm in norms[1:])
