"""The weights that a network rounds, whoever quantized it: found by how they are used, not by a library's names.

Three kinds are known:

* layers with ``quantized_weights() -> {"weight": (Q, delta, step)}``, ours or a user's: ``delta`` is one of the layer's
  buffers and is added to ``Q`` in its forward pass;
* a module that is handed one weight of two or more dimensions as it is, rounds it, and returns a tensor of its shape,
  by itself or first in a tuple: the fake quantizers of torch.ao, torchao and brevitas, parametrizations, hand-written
  ones. While it is measured its forward pass returns the weight that is asked for;
* tensors that know their ``dequantize()`` (torchao's int8, int4 and float8 weights): they vary around that value.

Everything else that rounds is seen by the check of derivatives (`landscape.model.derivatives`), which says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .watching import Watch

_PLAIN = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.")  # whose modules round nothing


class RoundedWeight(NamedTuple):
    """A weight as the forward pass uses it.

    Attributes:
        value: what is used.
        step: the distance of two levels, to broadcast against the weight; NaN where it is not known.
        base: value of the tensor that moves when the weight is displaced: a ``delta``, or the weight itself.
        moves: name of that tensor, see `landscape.model.swapping.TensorSwap`.
        output: what the module returned whose output is the weight.
    """

    value: Tensor
    step: Tensor
    base: Tensor
    moves: str
    output: Any = None

    @property
    def quantized(self) -> Tensor:
        """Q, without the ``delta`` that is added to it."""
        return self.value if self.base is self.value else self.value - self.base


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """Find the layers that offer ``quantized_weights()``, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "quantized_weights")}


def rounded_weights(model: nn.Module) -> dict[str, RoundedWeight]:
    """Find the rounded weights of layers and tensors that tell, by their names."""
    weights = {}
    for prefix, layer in quantized_layers(model).items():
        for leaf, (value, delta, step) in layer.quantized_weights().items():
            here = f"{prefix}.{leaf}".removeprefix(".")
            weights[here] = RoundedWeight((value + delta).detach(), step, delta.detach().clone(), _name(model, delta))
    for name, parameter in model.named_parameters():
        if type(parameter).dequantize is not Tensor.dequantize:
            value = parameter.dequantize().detach()
            weights[name] = RoundedWeight(value, value.new_full((), torch.nan), value, name)
    return weights


def is_plain(model: nn.Module) -> bool:
    """Return whether all modules are PyTorch's own, which round nothing."""
    return all(type(module).__module__.startswith(_PLAIN) for module in model.modules())


@torch.no_grad()
def rounded_in_use(model: nn.Module, run: Callable[[], Any], varying: Collection[str]) -> dict[str, RoundedWeight]:
    """Find the weights that modules are handed, and round, by their names.

    Args:
        model: any network.
        run: calls it once, in `measurement_mode`, on anything.
        varying: names of the weights that may be rounded.

    Cost: the call, where there are modules that PyTorch does not bring.
    """
    if is_plain(model):
        return {}
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in varying}
    names = {_place(parameter): name for name, parameter in parameters.items()}
    known = tuple(f"{name}." if name else "" for name in quantized_layers(model))
    watch = Watch(parameters.values())
    calls: dict[str, list[tuple[str, int, Any]]] = {}  # module → weight, roundings inside, output, of each call
    before: list[int] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        before.append(watch.rounded.total())

    def leave(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = [*args, *kwargs.values(), module._parameters.get("original")]  # of a parametrization
        large = [part for part in given if isinstance(part, Tensor) and part.ndim > 1]
        handed = {names.get(_place(part), "") for part in large}
        name = handed.pop() if len(handed) == 1 else ""
        calls.setdefault(path, []).append((name, watch.rounded.total() - before.pop(), output if name else None))

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            if path and not path.startswith(known) and not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
                stack.enter_context(module.register_forward_hook(partial(leave, path), with_kwargs=True))
        stack.enter_context(watch)
        run()
    return dict(_outermost(model, calls, parameters))


def _outermost(
    model: nn.Module, calls: Mapping[str, list[tuple[str, int, Any]]], parameters: Mapping[str, Tensor]
) -> Iterator[tuple[str, RoundedWeight]]:
    """Yield the weights that one module alone rounds, and that module's output."""
    quantizers: dict[str, list[str]] = {}
    for path, made in calls.items():
        weights = {name for name, _, _ in made}
        name, roundings, output = made[0]
        used = _weight_of(output)
        if weights == {name} and name and roundings and used is not None and used.shape == parameters[name].shape:
            quantizers.setdefault(name, []).append(path)
    for name, paths in quantizers.items():
        outer = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
        if len(outer) == 1:
            output = calls[outer[0]][0][2]
            value = _weight_of(output).detach().clone()  # type: ignore[union-attr]
            step = _step_of(value, model.get_submodule(outer[0]), output)
            yield name, RoundedWeight(value, step, value, f"{outer[0]}()", output)


def _place(tensor: Tensor) -> Any:
    """Return what a tensor shares with a view of all of it."""
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.numel()
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if is_plain else id(tensor)


def _weight_of(output: Any) -> Tensor | None:
    first = output[0] if type(output) is tuple and output else output
    return first if type(first) in (Tensor, nn.Parameter) else None


def _step_of(value: Tensor, quantizer: nn.Module, output: Any) -> Tensor:
    """Return a tensor that the quantizer holds or returns, where all values are whole multiples of it; else NaN."""
    held = [*(output[1:] if type(output) is tuple else ()), *quantizer.parameters(), *quantizer.buffers()]
    for tensor in [*held, *vars(quantizer).values()]:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        for step in _broadcast(tensor.detach(), value.shape):
            levels = value / step
            if (levels.abs() < 2**16).all() and torch.allclose(levels, levels.round(), rtol=0, atol=1e-3):
                return step
    return value.new_full((), torch.nan)


def _broadcast(tensor: Tensor, shape: torch.Size) -> Iterator[Tensor]:
    """Yield the ways in which steps can lie on a weight: one, one of each slice along a dimension, or of a group."""
    if tensor.numel() == 1:
        yield tensor.reshape(())
    for dim, size in enumerate(shape):
        if tensor.numel() == size:
            yield tensor.reshape([size if d == dim else 1 for d in range(len(shape))])
    if tensor.ndim == len(shape) == 2 and len(tensor) == shape[0] and shape[1] % tensor.shape[1] == 0:
        yield tensor.repeat_interleave(shape[1] // tensor.shape[1], 1)


def _name(model: nn.Module, buffer: Tensor) -> str:
    for name, candidate in model.named_buffers():
        if candidate is buffer:
            return name
    raise TypeError("quantized_weights() must return the layer's own buffer as delta: got a tensor that is no buffer")
