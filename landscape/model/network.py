"""A network as a function of its tensors: names → output. It knows no data and no loss.

The model is only ever called with other tensors where its own are, which are not touched. They stay there until
the measurement ends (`torch.func.functional_call` takes them back when the forward pass returns, and a checkpointed
network, which runs forward again in its backward pass, then takes its gradient at another point).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from .. import parallel
from .adapters import RoundedWeight
from .coordinates import Coordinates, Point, Space, coordinates
from .folding import Folding
from .measuring import copy_of, has_bits, left_behind, measurement_mode, mode_of, named_tensors, taken_back
from .precision import attention_by
from .substitutes import Substitution
from .swapping import TensorSwap
from .walking import LARGE, Along, Late

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
        rounded, frozen: see `coordinates`.

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
        rounded: Mapping[str, RoundedWeight] | None = None,
        frozen: bool = False,
    ) -> None:
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.coordinates: Coordinates = coordinates(self.model, space, layers, rounded, frozen=frozen)
        reference = next(iter(self.coordinates.centre.values()))
        self.device, self.dtype = reference.device, reference.dtype
        self.dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        self.batchnorm, self.precision = batchnorm, precision
        self.norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        layouts = self.coordinates.layouts
        self.folded = bool(self.norms) and batchnorm == "fixed" and not layouts
        outputs = {weight.moves: weight.output for weight in (rounded or {}).values() if weight.output is not None}
        self.call, self._swap = call, TensorSwap(self.model, outputs, layouts)
        self.notes = self._swap.notes
        own = named_tensors(self.model)
        self.frozen: Point = {name: copy_of(self.model, parallel.local(tensor)) for name, tensor in own}
        self.substitutes = False  # whether functions are written out that have no second derivative
        self.attention: dict[str, bool] = {}  # the kernels of passes without gradients, where they may be fused
        self._changing = set(self.frozen)  # tensors that the network may write to while it runs
        self._folded_weights = WeakIdKeyDictionary()
        self._left: list[Any] = []  # what passes leave in attributes, made of other weights than the next one has

    def recentred(self, rounded: Mapping[str, RoundedWeight]) -> Network:
        """Return the same network about the weights that the model has now; what `settle` found out is kept.

        What varies here varies there, whether it is trainable now or not.
        """
        space: Any = None if self.coordinates.space == "float" else self.coordinates.space
        settings: dict[str, Any] = {"batchnorm": self.batchnorm, "precision": self.precision, "rounded": rounded}
        other = Network(self.model, self.call, space=space, layers=self.coordinates.names, frozen=True, **settings)
        for found in ("folded", "substitutes", "attention", "_changing", "_left"):
            setattr(other, found, getattr(self, found))
        return other

    def tensors(self, displacement: Mapping[str, Tensor] | None = None) -> Point:
        """Return the tensors that vary at centre + displacement, by their names in the model."""
        return self.coordinates.displaced(displacement or {})

    def values_at(self, displacement: Mapping[str, Tensor] | None) -> dict[str, Any]:
        """Return what `tensors` does, for passes without gradients: of a large network each is made when it is read."""
        moves = self.coordinates.tensors
        if self.coordinates.numel <= LARGE or torch.is_grad_enabled() or not isinstance(displacement, Along):
            return self.tensors(displacement)
        self.swap_in({})  # the last point makes room
        terms, moving = displacement.terms, {moves[name] for name in displacement}
        is_whole = bool(self.coordinates.layouts) or self.folded or self.batchnorm != "fixed"
        if is_whole or not moving <= self._swap.are_entries or moving & self._changing:
            return self.tensors(displacement)
        return self.tensors() | {moves[n]: Late(self.coordinates.base[n], terms[n]) for n in terms}

    def swap_in(self, tensors: Mapping[str, Tensor]) -> None:
        """Put these tensors, and copies of the others as they were, where the model's own are."""
        whole = self.frozen | dict(tensors)
        taken_back(self._left)
        self._swap(whole | {name: whole[name].clone() for name in self._changing})

    def output(self, tensors: Mapping[str, Tensor], batch: Any) -> Any:
        """Return the output for one batch with these tensors in place of the model's own, in measurement mode."""
        if mode_of(self.model) is None:
            with measurement_mode(self.model, copies=self.frozen):
                return self.output(tensors, batch)
        if torch.is_grad_enabled():  # the network, or its loss, may differentiate by the weights itself
            moving = [name for name in self.coordinates.tensors.values() if not tensors[name].requires_grad]
            tensors = dict(tensors) | {name: tensors[name].detach().requires_grad_() for name in moving}
        self.swap_in(tensors)
        low = self.precision == "bf16"
        written_out = Substitution(True) if self.substitutes else contextlib.nullcontext()
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False)
        fused = bool(self.attention) and not torch.is_grad_enabled()
        attention = attention_by(self.attention) if fused else contextlib.nullcontext()
        with autocast, written_out, attention, self.noting():
            if not self.folded:
                return self.call(self.model, batch)
            images_last = self.dtype != torch.float64 and self.device.type == "cpu"
            with Folding(images_last, self._folded_weights) as folding:
                output = self.call(self.model, batch)
            return folding.result(output)

    def forget_folded(self) -> None:
        """Forget the weights that were folded: something folds them anew."""
        self._folded_weights.clear()

    def noting(self) -> contextlib.AbstractContextManager[Any]:
        """Keep the gathered weights of a sharded network out of the graphs that are made inside."""
        return self.notes.taken() if self.coordinates.layouts else contextlib.nullcontext()

    def plain(self) -> Network:
        """Return the same network in the model's own dtype, BatchNorm not folded; tensors are shared."""
        other = copy.copy(self)
        other.folded, other.precision = False, "fp32"
        return other

    def settle(self, loss: Callable[[Point], Tensor]) -> bool:
        """Find out what the network does while it runs: tensors written to, functions to be written out, folding.

        Args:
            loss: the loss of one batch at given tensors.

        Returns:
            Whether the loss can be computed with gradients on alone, because it takes some itself.

        Cost: a forward pass and two gradients of the batch; two more passes where there is attention.
        """
        folded, self.folded = self.folded, False
        frozen, self._changing = self.frozen, set()
        tensors = dict(self._beside_the_centre())  # where an observer of weights sees others than it has seen
        self.frozen = {name: tensor.clone() for name, tensor in frozen.items() if name not in tensors}
        try:
            with Substitution(False) as substitution:
                needs_grad = _needs_gradients(lambda: loss(tensors))
            self._left = [] if self.coordinates.layouts else left_behind(self.model)
            after = self.frozen | tensors
        finally:
            self.frozen = frozen
        self.substitutes = substitution.seen
        rest = ((name, tensor) for name, tensor in frozen.items() if name not in tensors)
        before = itertools.chain(rest, self._beside_the_centre())
        # some kernels write without a word
        self._changing = {n for n, t in before if after[n]._version or (has_bits(t) and not torch.equal(after[n], t))}
        for done in (tensors, after):  # what follows needs their room
            done.clear()
        self.folded = folded and self._folding_agrees(loss)
        mode = mode_of(self.model)
        if substitution.attends and not needs_grad and mode is not None:
            self.attention = self._attention_that_agrees(loss, mode.attention)
        return needs_grad

    def _beside_the_centre(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, 1.01 * value + 1e-3) for name, value in self.tensors().items())

    def _attention_that_agrees(self, loss: Callable[[Point], Tensor], kernels: dict[str, bool]) -> dict[str, bool]:
        """Return kernels of attention if the loss, a step from the centre, is the same by them; else none."""
        if not any(is_allowed for kernel, is_allowed in kernels.items() if kernel != "math"):
            return {}
        there = dict(self._beside_the_centre())
        with torch.no_grad():
            plain = loss(there).double()
            try:
                self.attention = kernels
                fused = loss(there).double()
            except Exception:  # no such kernel here, or the network differentiates twice inside
                return {}
            finally:
                self.attention = {}
        eps = torch.finfo(torch.bfloat16 if self.precision == "bf16" else self.dtype).eps
        return kernels if bool((fused - plain).abs() <= min(1e3 * eps, 0.05) * plain.abs()) else {}

    def _folding_agrees(self, loss: Callable[[Point], Tensor]) -> bool:
        """Return whether loss and gradient, a step from the centre, are the same when BatchNorm is folded."""
        there = dict(self._beside_the_centre())
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


def _needs_gradients(loss: Callable[[], Tensor]) -> bool:
    """Compute a loss without gradients, or with them where it takes some itself (of its inputs, say)."""
    try:
        with torch.no_grad():
            loss()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        with torch.enable_grad():
            loss()
        return True
    return False


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
