"""Post-training quantization by GPTQ: layer by layer, each rounding error made up for by the weights still to come."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from landscape.checking import numbers
from landscape.model import generators_of, measurement_mode

from .. import processes
from ..data.feeding import batches_in, feed
from .calibration import calibrate
from .convert import Bits, quantize
from .layers import QTransposedLinear
from .quantizers import QuantizerLike

ROUNDED = (nn.Linear, QTransposedLinear, nn.Conv2d, nn.MultiheadAttention)  # by GPTQ; other layers to nearest
BLOCK = 128  # columns after which those outside of the block are updated
CHUNK = 2**24  # numbers in the unfolded input of a convolution that are held at once
Layers = dict[str, Any]


class Rounding(NamedTuple):
    """How one weight was rounded: ‖(Ŵ - W)X‖ / ‖WX‖ of both ways over all inputs X, and which way was kept."""

    nearest: float
    compensated: float
    kept: Literal["nearest", "compensated"]


@torch.no_grad()
def gptq(
    model: nn.Module,
    data: Any,
    bits: Bits = "W4A32",
    *,
    quantizer: QuantizerLike = "lsq",
    per_channel: bool = True,
    first_last_bits: int | None = 8,
    damping: float = 0.01,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> nn.Module:
    """Return a quantized copy of `model`, as `quantize` does, with weights rounded by GPTQ instead of to nearest.

    Layer by layer in order of use, ‖(Ŵ - W)X‖² is made small, where X are the inputs that the network gives the layer
    with the layers before it quantized (of convolutions unfolded; themselves quantized where bits ask for it). The
    columns w_j of W are rounded one after the other, in order of falling ‖x_j‖, to the levels of the quantizer, and the
    error of each is made up for by those still to come: with UᵀU the inverse of XXᵀ + damping · mean(diag XXᵀ) · 1 and
    U upper triangular, ``w_k -= (w_j - Q(w_j)) · U_jk/U_jj`` for all k > j. Weights whose inputs are all zero become
    zero first. The latent weights of the result are the w_j as they were rounded, so that Q of them is Ŵ, and training
    can go on from them.

    Choose it for 3 or 4 bits without training. At 2 bits training takes longer and gets further ("resnet8" on digits,
    three seeds, weights alone: 3 bits 98.9 %, to nearest 87.3 %, float 98.5 %; 2 bits 83.0 %, trained 98.7 %).

    The result lists in `.gptq`, weight -> (nearest, compensated, kept), the relative errors ‖(Ŵ - W)X‖ / ‖WX‖ of
    rounding to nearest and by GPTQ, and which of them was kept: the smaller. NaN, and the nearest kept, stand where the
    data never reached the layer, where other modules use its weight as well, and for convolutions that are transposed
    or not two-dimensional.

    Args:
        model: A float network; it is left as it is.
        data: See `calibrate`, but all of it is used, and held in memory; about 1,000 samples do.
        bits, per_channel, first_last_bits: See `quantize`. Activations are calibrated before the weights are rounded,
            and once more afterwards.
        quantizer: "lsq", "lsq+", "lsq-asymmetric", or "liq" without convolutions: levels of the others move with the
            weights.
        damping: Added to the diagonal of XXᵀ, in units of its mean.
        forward: See `calibrate`.

    Raises:
        ValueError: If the network is quantized already, the levels of the quantizer move with the weights, there are no
            data, the inputs of a layer are NaN or infinite, or XXᵀ is singular in spite of the damping.

    Cost: a forward pass of all data per layer (one for layers that are fed the same tensor), and two more; per layer of
    c inputs per filter c³ + c² · filters operations and some 40 c² bytes for each group of a convolution.

    Source: Frantar et al., GPTQ (2022), algorithm 1, with the order of columns ("act_order") and the zeros of the
    released code. Departures: columns of zeros do not count as ones in the mean; what is better rounded to nearest
    stays so; steps are those of the quantizer's calibration; sums and inverse are in float64.

    Example:
        >>> import torch, saq_core
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 8).cumsum(1)
        >>> model = saq_core.gptq(torch.nn.Sequential(torch.nn.Linear(8, 4)), x, "W3A32", first_last_bits=None)
        >>> model.gptq["0.weight"].kept
        'compensated'
    """
    numbers(above=0, damping=damping)
    network = quantize(model, bits, quantizer=quantizer, per_channel=per_channel, first_last_bits=first_last_bits)
    for levels in (pair[0] for module in network.modules() for pair in _parts("", module).values()):
        if levels.dynamic or getattr(levels, "normalise", False):
            raise ValueError(f'quantizer must keep its levels when weights move, as "lsq" does, got {quantizer!r}')
    with measurement_mode(network, generators_of(data)):  # a loader draws
        data = list(batches_in(data, "data"))  # the same in every pass, also from a generator or one that shuffles
    settle = partial(calibrate, network, data, batches=sys.maxsize, forward=forward)
    run = partial(feed, network, data, forward=forward)
    settle()
    layers = {name: layer for name, layer in network.named_modules() if _parts(name, layer)}
    results = {k: Rounding(torch.nan, torch.nan, "nearest") for n, layer in layers.items() for k in _parts(n, layer)}
    for alike in processes.bar(_order(network, layers, partial(run, 1)), "rounding"):
        for name, matrices in _watch(network, alike, _gram_matrices, partial(run, sys.maxsize)).items():
            for (label, (levels, weight)), matrix in zip(_parts(name, layers[name]).items(), matrices, strict=True):
                results[label] = _round_(levels, weight, matrix, damping, label)
    cast(Any, network).gptq = results
    return settle()


def _parts(name: str, layer: Any) -> dict[str, tuple[Any, Tensor]]:
    """Return label, as in the report of `export` -> (quantizer, weight), of the parts of a layer that are quantized."""
    pairs = layer.quantized_parts() if hasattr(layer, "quantized_parts") else {}
    return {f"{name}.{part}".lstrip("."): pair for part, pair in pairs.items() if pair[0].is_quantizer}


def _watch(network: nn.Module, layers: Layers, see: Callable[..., Any], run: Callable[[], Any]) -> dict[str, Any]:
    """Return name -> sum of see(layer, inputs of its parts) over all uses of the layer in a run of the network."""
    sums: dict[str, Any] = {}

    def hook(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [*signature(type(layer).forward).bind(layer, *args, **kwargs).arguments.values()]
        seen = see(layer, inputs[1 : 1 + len(layer.quantized_parts())])  # of attention query, key and value
        sums[name] = sums[name] + seen if name in sums else seen

    with measurement_mode(network):  # which takes the hooks back
        for name, layer in layers.items():
            layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
        run()
    return sums


def _order(network: nn.Module, layers: Layers, run: Callable[[], Any]) -> list[Layers]:
    """Return the layers whose weight is theirs alone in order of first use, those together that are fed the same."""
    uses = Counter(id(parameter) for module in network.modules() for parameter in module._parameters.values())
    # the tensors are held, so that no two have the same id
    fed = _watch(network, layers, lambda _, inputs: [(x, x._version) for x in inputs], run)
    groups: dict[Any, Layers] = {}
    for name, layer in {name: layers[name] for name in [*fed, *layers]}.items():
        if uses[id(getattr(layer, layer.weight_name))] == 1 and isinstance(layer, ROUNDED):
            key = tuple((id(x), version) for x, version in fed.get(name, [(layer, 0)]))
            groups.setdefault(key, {})[name] = layer
    return list(groups.values())


def _gram_matrices(layer: Any, inputs: list[Tensor]) -> Tensor:
    """Return XXᵀ of each part of a layer (parts, groups, inputs of a filter, the same)."""
    chunks = [_columns(layer, layer.input_quantizer(x)) for x in inputs]
    return torch.stack([cast(Tensor, sum(map(_squared, part))) for part in chunks])


def _squared(x: Tensor) -> Tensor:
    """Return XXᵀ in float64, of numbers brought to about one first: squares may leave the dtype's range."""
    exponent = torch.frexp(x.abs().amax())[1]
    x = torch.ldexp(x, -exponent)
    return torch.ldexp((x @ x.mT).double(), 2 * exponent)


def _columns(layer: Any, x: Tensor) -> Iterator[Tensor]:
    """Yield the inputs of a layer as (groups, inputs of a filter, positions), in chunks."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not isinstance(layer, nn.Conv2d):
        yield x.reshape(1, -1, x.shape[-1]).mT
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x.reshape(-1, *x.shape[-3:]), layer._reversed_padding_repeated_twice, mode)
    for images in x.split(max(1, CHUNK // (x.shape[1:].numel() * layer.weight[0, 0].numel()))):
        unfolded = nn.functional.unfold(images, layer.kernel_size, layer.dilation, stride=layer.stride)
        yield unfolded.unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)


def _round_(quantizer: Any, weight: Tensor, matrix: Tensor, damping: float, label: str) -> Rounding:
    """Put the weights in place that round to the result of GPTQ, if that is the better one."""

    def norm(difference: Tensor) -> float:
        rows = difference.double().reshape(len(matrix), -1, matrix.shape[-1])
        return float((rows @ matrix * rows).sum().clamp_min(0).sqrt())

    latent, scale = _compensated(quantizer, weight, matrix, damping, label), norm(weight) or 1.0
    nearest, compensated = (norm(quantizer(w) - weight) / scale for w in (weight, latent))
    if compensated < nearest:
        weight.copy_(latent)
    return Rounding(nearest, compensated, "compensated" if compensated < nearest else "nearest")


def _compensated(quantizer: Any, weight: Tensor, matrix: Tensor, damping: float, label: str) -> Tensor:
    """Return the weights as each is when it is rounded."""
    if not matrix.isfinite().all():
        raise ValueError(f"inputs of {label} must be finite, got NaN or infinity: check data and weights")
    diagonal, count = matrix.diagonal(dim1=1, dim2=2), matrix.shape[-1]
    order = diagonal.argsort(stable=True, dim=1)[:, None]  # rounded from the last on, which needs no reversal below
    damped = matrix + torch.diag_embed(damping * diagonal.mean(1, keepdim=True) + (diagonal == 0))
    damped = damped.gather(1, order.mT.expand_as(matrix)).gather(2, order.expand_as(matrix))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed.any():
        raise ValueError(f"damping must make the inputs of {label} independent of each other, got {damping}: try 0.01")
    lower = torch.linalg.solve_triangular(factor, torch.eye(count).to(factor), upper=False)  # lowerᵀ·lower = inverse
    columns = order.expand(-1, len(weight) // len(matrix), -1)
    w = weight.double().reshape(len(matrix), -1, count).masked_fill(diagonal[:, None] == 0, 0).gather(2, columns)
    for stop in range(count, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        errors = torch.zeros_like(w[..., start:stop])
        for j in reversed(range(start, stop)):
            rounded = quantizer(w[..., j].to(weight.dtype).reshape(-1, *[1] * (weight.ndim - 1))).to(w)
            errors[..., j - start] = error = (w[..., j] - rounded.reshape(w.shape[:2])) / lower[:, None, j, j]
            w[..., start:j] -= error[..., None] * lower[:, None, j, start:j]
        w[..., :start] -= errors @ lower[:, start:stop, :start]
    return torch.empty_like(w).scatter_(2, columns, w).to(weight.dtype).reshape(weight.shape)
