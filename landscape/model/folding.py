"""Eval-mode BatchNorm folded into the convolution before it, for any network, while it runs.

γ·(conv(x, w) + b − μ)/√(σ² + ε) + β is one convolution with other weights (libraries of deployed networks fold once;
here w, γ and β vary). The derivative passes through the folding, so every number stays exact up to rounding. Saved of
the time of ResNet-20 on a CPU core: a tenth of a forward pass, a fifth of a gradient, and with `convolution` below a
third of a Hessian-vector product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
# what BatchNorm modules ask of their input before they call the function: answered by a stand-in as well
_HARMLESS = {Tensor.dim, Tensor.size, Tensor.shape.__get__, Tensor.ndim.__get__, Tensor.dtype.__get__}  # type: ignore[attr-defined]


class Folding(TorchFunctionMode):
    """Inside this context a convolution waits until its output is used; a BatchNorm with fixed statistics is folded in.

    Any other use computes it as it stands. A use that PyTorch's functions hide from us would see a stand-in:
    `Objective` therefore compares folded losses and gradients with plain ones, and does without where they differ.

    Args:
        channels_last: lay images out so; faster on CPUs in float32.
        folded: weights that were folded before, without gradients: batches at one point share them. Default: none.
    """

    def __init__(self, channels_last: bool, folded: WeakIdKeyDictionary | None = None) -> None:
        super().__init__()
        self.channels_last = channels_last
        self._folded = WeakIdKeyDictionary() if folded is None else folded
        self._waiting = WeakIdKeyDictionary()  # stand-in → its convolution, forgotten with the stand-in

    def result(self, output: Any) -> Any:
        """Compute what has left the context and is still waiting; called outside of it."""
        return tree_map_only(Tensor, self._computed, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Put convolutions off, fold BatchNorm into them, and pass everything else on."""
        kwargs = kwargs or {}
        # as modules call it; padding by name and single images are left alone
        usual = func in _CONVOLUTIONS and len(args) == 7 and all(isinstance(part, tuple) for part in args[3:6])
        if usual and args[0].ndim == args[1].ndim:
            return self._put_off(func, args)
        if func is batch_norm and (folded := self._fold(*args, **kwargs)) is not None:
            return folded
        if self._waiting and func not in _HARMLESS:
            args, kwargs = tree_map_only(Tensor, self._computed, (args, kwargs))
        return func(*args, **kwargs)

    def _put_off(self, func: Any, args: Any) -> Tensor:
        x, weight, bias, stride, padding, dilation, groups = args
        x = self._computed(x)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        shape = [len(x), len(weight), *((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)]
        stand_in = x.new_zeros(()).expand(shape)
        self._waiting[stand_in] = _Waiting(func, x, weight, bias, (stride, padding, dilation, groups))
        return stand_in

    def _fold(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        if training or running_mean is None or running_var is None:
            return None
        before = self._waiting.get(x)
        if before is not None and not before.can_take(running_var):
            return None
        norm = (running_mean, running_var, weight, bias, eps)
        if before is not None and before.result is None:
            return convolution(before.function, before.x, *self._weights(before, norm), before.settings)
        scale, shift = _affine(*norm)
        shape = [1, -1] + [1] * (x.ndim - 2)
        return torch.addcmul(shift.view(shape), self._computed(x), scale.view(shape))

    def _weights(self, convolution: _Waiting, norm: tuple) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a convolution with BatchNorm in it."""
        weight, bias = convolution.weight, convolution.bias
        sources = (*norm, bias)
        cached = self._folded.get(weight)
        if cached and not torch.is_grad_enabled() and all(a is b for a, b in zip(cached[0], sources, strict=True)):
            return cached[1]
        scale, shift = _affine(*norm)
        folded = weight * scale.view(-1, *[1] * (weight.ndim - 1)), shift if bias is None else shift + bias * scale
        if not torch.is_grad_enabled():
            if self.channels_last and weight.ndim == 4:
                folded = folded[0].contiguous(memory_format=torch.channels_last), folded[1]
            self._folded[weight] = sources, folded
        return folded

    def _computed(self, tensor: Tensor) -> Tensor:
        waiting = self._waiting.get(tensor)
        return tensor if waiting is None else waiting.plain()


class _Waiting:
    """A convolution that was asked for and not computed yet."""

    def __init__(self, function: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple) -> None:
        self.function, self.x, self.weight, self.bias, self.settings = function, x, weight, bias, settings
        # what it must be computed under, wherever its output is used
        self.gradients, self.autocast = torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type)
        self.result: Tensor | None = None

    def can_take(self, variance: Tensor) -> bool:
        """Tell whether a BatchNorm that follows here and now may be folded in."""
        alike = self.gradients == torch.is_grad_enabled()
        alike &= self.autocast == torch.is_autocast_enabled(self.x.device.type)
        return alike and self.weight.dtype == variance.dtype

    def plain(self) -> Tensor:
        if self.result is None:
            device, kind = self.x.device.type, torch.get_autocast_dtype(self.x.device.type)
            cast = torch.autocast(device, kind, enabled=self.autocast, cache_enabled=False)
            with torch.set_grad_enabled(self.gradients), cast:
                self.result = convolution(self.function, self.x, self.weight, self.bias, self.settings)
        return self.result


def _affine(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a BatchNorm with fixed statistics."""
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    return scale, -mean * scale if bias is None else bias - mean * scale


def convolution(function: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple) -> Tensor:
    """Convolve, with second derivatives by the kernels of the first.

    PyTorch's own double backward convolves with batch and channels exchanged, for which processors have no fast kernel.
    """
    if not torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return function(x, weight, bias, *settings)
    return _Convolution.apply(x, weight, bias, function, settings)


def _slopes(slope: Tensor, x: Tensor, weight: Tensor, settings: tuple, mask: list[bool]) -> tuple[Any, Any]:
    """Return the derivatives by input and weight, those asked for."""
    stride, padding, dilation, groups = settings
    geometry = (stride, padding, dilation, False, [0] * len(stride), groups)
    return torch.ops.aten.convolution_backward(slope, x, weight, None, *geometry, [*mask, False])[:2]


_linear = False  # whether backward passes are recorded as functions of the slopes alone


@contextlib.contextmanager
def linear_in_slopes() -> Iterator[None]:
    """Record backward passes of convolutions for derivatives by their slopes alone: what J·v by two passes needs.

    A flag of the module, not of the thread: an accelerator's backward runs in others, and one measurement at a time.
    """
    global _linear
    before, _linear = _linear, True
    try:
        yield
    finally:
        _linear = before


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, function: Any, settings: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.function, ctx.settings = function, settings
        return function(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple:
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        x, weight = (tensor.detach() if _linear else tensor for tensor in ctx.saved_tensors)
        slopes = (slope, x, weight, ctx.settings, [to_x, to_weight])
        gradients = _Slopes.apply(*slopes, ctx.function) if torch.is_grad_enabled() else _slopes(*slopes)
        return (*gradients, slope.sum((0, *range(2, slope.ndim))) if to_bias else None, None, None)


class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, x: Tensor, weight: Tensor, settings: tuple, wanted: list[bool], function: Any
    ) -> tuple:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(slope, x, weight)
        ctx.function, ctx.settings = function, settings
        return _slopes(slope, x, weight, settings, wanted)

    @staticmethod
    def backward(ctx: Any, by_x: Tensor | None, by_weight: Tensor | None) -> tuple:
        slope, x, weight = ctx.saved_tensors
        to_slope = to_x = to_weight = None
        if by_x is not None:
            to_slope = ctx.function(by_x, weight, None, *ctx.settings)
            if ctx.needs_input_grad[2]:
                to_weight = _slopes(slope, by_x, weight, ctx.settings, [False, True])[1]
        if by_weight is not None:
            along = ctx.function(x, by_weight, None, *ctx.settings)
            to_slope = along if to_slope is None else to_slope + along
            to_x = _slopes(slope, x, by_weight, ctx.settings, [True, False])[0] if ctx.needs_input_grad[1] else None
        return to_slope, to_x, to_weight, None, None, None
