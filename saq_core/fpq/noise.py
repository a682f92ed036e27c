"""Feature-Perturbed Quantization: its settings, and the noise on what goes into convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checking import numbers

from ..quantization import QConv2d
from ..results import Settings


@dataclass(frozen=True, repr=False)
class FPQ(Settings):
    """Configure feature-perturbed quantization, noise and distillation: ``Recipe(fpq=FPQ())``.

    The objective is that of the recipe plus ``weight · L_CSD`` (see `distillation_loss`), on features with noise (see
    `feature_noise`). Noise alone is ``FPQ(distill=False)``, distillation alone ``FPQ(p=0)``.

    Args:
        p: Probability from 0 to 1 that a layer's input is perturbed in a forward pass; the authors recommend 0.1-0.5.
        distill: Whether features are distilled from the float network, at one forward pass of it per batch.
        weight: Of the distillation loss.

    Source: Pang and Cai, Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian Matrix (2025),
    eq. 9, 14-17, 22. The paper leaves open where the noise is added (ours: to the rounded input), the statistics
    (ours: per channel over the batch) and the gates' granularity (ours: one per layer and forward pass), and its sum of
    squares is taken as a mean per layer: the literal sum is 1e7 for a ResNet-18 and leaves nothing to the task.

    Raises:
        ValueError: If p or weight is out of range.

    Example:
        >>> import saq_core
        >>> saq_core.Recipe(epochs=2, lr=0.02, fpq=saq_core.FPQ(p=0.5, distill=False))
        Recipe(epochs=2, lr=0.02, fpq=FPQ(p=0.5, distill=False))
    """

    p: float = 0.1
    distill: bool = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        self._check(p="from 0 to 1", weight=">= 0")


@contextmanager
def feature_noise(model: nn.Module, p: float = 0.1) -> Iterator[None]:
    """Perturb the input of each quantized convolution of `model` inside the context, in training mode.

    ``x̂ ← x̂ + gate·δ``, δ ~ U[-s/2, s/2] for each element and s the step of that input, held constant; gate is 1 with
    probability p, one draw per layer and forward pass. In evaluation mode nothing happens. The noise comes from torch's
    global generators, so that `SAM` replays it in its second pass.

    Args:
        model: Quantized and calibrated. Convolutions whose input is not quantized (the first, as a rule) get no noise.
        p: Probability from 0 to 1; 0 changes nothing, to the bit.

    Raises:
        ValueError: If p is out of range, or no convolution has a quantized input.

    Cost: one pass over each perturbed input; compiled for a GPU, the noise of closed gates is made as well. If you
    compile the model yourself, pass ``isolate_recompiles=True``: else torch may run the graph compiled without noise.

    Source: Pang and Cai (2025), eq. 9 and 14. That the noise is added to the rounded input is ours.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, 3) for _ in range(3)))
        >>> x = torch.randn(4, 1, 8, 8)
        >>> model = saq_core.calibrate(saq_core.quantize(model, "W4A4"), x).train()
        >>> with saq_core.feature_noise(model, p=1.0):
        ...     noisy = model(x)
        >>> torch.equal(noisy, model(x))
        False
    """
    numbers(at_least=0, at_most=1, p=p)
    quantizers = noisy_inputs(model) if p else {}
    if p and not quantizers:
        raise ValueError("model must have convolutions with quantized inputs for p > 0, got none: use p=0")
    with ExitStack() as stack:
        for quantizer in quantizers.values():
            stack.callback(attach(quantizer, "output", partial(_gated, p=p)).remove)
        yield


def noisy_inputs(model: nn.Module) -> dict[str, Any]:
    """Return name -> input quantizer of the convolutions whose input is quantized."""
    layers = {name: m.input_quantizer for name, m in model.named_modules() if isinstance(m, QConv2d)}
    return {name: quantizer for name, quantizer in layers.items() if getattr(quantizer, "is_quantizer", False)}


def attach(module: nn.Module, leaf: str, noise: Any) -> Any:
    """Replace the "input" or "output" x of a module by ``noise(module, input, x)``; return the hook's handle."""
    if leaf == "input":
        return module.register_forward_pre_hook(
            lambda module, inputs: (noise(module, inputs[0], inputs[0]), *inputs[1:])
        )
    return module.register_forward_hook(lambda module, inputs, output: noise(module, inputs[0], output))


def _gated(quantizer: Any, x: Tensor, features: Tensor, *, p: float) -> Tensor:
    if not quantizer.training:
        return features
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return features + _noise_or_zeros(features.detach(), quantizer.step_size(x).detach(), p)
    if torch.compiler.is_compiling():  # one graph for open and closed gates
        gate = (torch.rand((), device=x.device) < p).to(x.dtype)
        return features + uniform_noise(features, quantizer.step_size(x).detach() * gate)
    if float(torch.rand(())) >= p:  # on the host whatever the device: closed gates cost nothing and nothing waits
        return features
    return features + uniform_noise(features, quantizer.step_size(x).detach())


@torch.library.custom_op("saq_core::noise_or_zeros", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _noise_or_zeros(features: Tensor, width: Tensor, p: float) -> Tensor:
    """Return noise with probability p: closed to the compiler, whose own random numbers are slow on a CPU."""
    noise = uniform_noise(features, width) if float(torch.rand(())) < p else torch.zeros_like(features)
    return noise.to(features.dtype)


@_noise_or_zeros.register_fake
def _(features: Tensor, width: Tensor, p: float) -> Tensor:
    return torch.empty_like(features)


def uniform_noise(features: Tensor, width: Tensor | float) -> Tensor:
    """Return noise of the shape of the features, uniform from -width/2 to width/2."""
    return (torch.rand_like(features) - 0.5) * width
