"""Noise on a network's features and weights, and what goes into its layers."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import saq_core

DRAWS, SHARE = 100, 0.1  # of the noise on images: how often, and in parts of their standard deviation


@torch.no_grad()
def scatter(model: nn.Module, x: Tensor, *, draws: int = DRAWS, share: float = SHARE) -> tuple[float, float]:
    """Return the variance of the logits over noise on x, and the same relative to their variance between the images.

    Both are means over images and classes. The noise has `share` of the standard deviation of x, and is the same for
    every network.
    """
    generator, size = torch.Generator().manual_seed(0), share * x.std()
    noisy = [model(x + size * torch.randn(x.shape, generator=generator).to(x)) for _ in range(draws)]
    variance = torch.stack(noisy).var(0).mean()
    return float(variance), float(variance / model(x).var(0).mean())


def gradient_norm(model: nn.Module, x: Tensor, y: Tensor, kind: str = "none", *, draws: int = 4) -> float:
    """Return the norm of the weights' gradient, in training mode, mean over draws of a `noise`."""
    own, norms = copy.deepcopy(model), []
    weights = [m.weight for m in own.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.random.fork_rng(), noise(kind, own, x):
        torch.manual_seed(0)
        own.train()
        for _ in range(draws):
            gradients = torch.autograd.grad(nn.functional.cross_entropy(own(x), y), weights)
            norms.append(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
    return float(torch.stack(norms).mean())


def noise(kind: str, model: nn.Module, x: Tensor | None = None) -> AbstractContextManager[None]:
    """Return the context of no noise, on features, on weights, or on weights of the features' relative size on x."""
    if kind == "weights_alike":
        return weight_noise(model, {name: f / w for name, (f, w) in relative_sizes(model, x).items()})
    return {"none": nullcontext, "features": partial(saq_core.feature_noise, p=1.0), "weights": weight_noise}[kind](
        model
    )


def noisy_layers(model: nn.Module) -> dict[str, Any]:
    """Return name -> convolution with a quantized input: the layers that `saq_core.feature_noise` perturbs."""
    convolutions = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    return {
        n: m for n, m in convolutions.items() if getattr(getattr(m, "input_quantizer", None), "is_quantizer", False)
    }


@contextmanager
def weight_noise(model: nn.Module, factors: dict[str, float] | None = None) -> Iterator[None]:
    """Add δ ~ U[-s/2, s/2], s the weights' step (times a layer's factor), to quantized weights in training mode."""

    def noisy(factor: float, quantizer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        width = factor * quantizer.step_size(inputs[0]).detach()
        return output + (torch.rand_like(output) - 0.5) * width if quantizer.training else output

    with ExitStack() as stack:
        for name, layer in noisy_layers(model).items():
            factor = 1.0 if factors is None else factors[name]
            stack.callback(layer.weight_quantizer.register_forward_hook(partial(noisy, factor)).remove)
        yield


@torch.no_grad()
def relative_sizes(model: nn.Module, x: Tensor) -> dict[str, tuple[float, float]]:
    """Return name -> rms of half a step's noise over the rms of what it is added to: the input, the weights."""

    def size(quantizer: Any, values: Tensor) -> float:
        return float((quantizer.step_size(values).square().mean() / 12 / quantizer(values).square().mean()).sqrt())

    own = copy.deepcopy(model).eval()  # without the noise that may be on
    layers = noisy_layers(own)
    inputs = features(own, list(layers), x)
    quantizers = {name: (layer.input_quantizer, layer.weight_quantizer) for name, layer in layers.items()}
    return {name: (size(a, inputs[name]), size(w, layers[name].weight)) for name, (a, w) in quantizers.items()}


@torch.no_grad()
def features(model: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """Return what goes into layers, before it is quantized, in evaluation mode."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        found[name] = inputs[0]

    own = copy.deepcopy(model).eval()
    for name in names:
        own.get_submodule(name).register_forward_pre_hook(partial(keep, name))
    own(x)
    return found


def distance(true: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return (rows,) Wasserstein's distance between the values of a row, in units of the true ones' deviation."""
    return np.abs(np.sort(true) - np.sort(other)).mean(1) / true.std(1)
