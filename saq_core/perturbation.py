"""Feature-Perturbed Quantization: noise on what goes into convolutions, and distillation of what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import QConv2d, copy_model, dequantize

PLACEMENTS = ("post", "pre")
STATISTICS = ("batch", "image")
EPSILON = 1e-5  # of the standardisation; the paper gives none


@dataclass(frozen=True)
class FPQ:
    """Say how features are perturbed and distilled in training: ``Recipe(fpq=FPQ())``.

    The objective is that of the recipe plus ``weight · L_CSD`` (see `distillation_loss`), on features with noise (see
    `feature_noise`). Noise alone is ``FPQ(distill=False)``, distillation alone ``FPQ(p=0)``.

    Args:
        p: Probability from 0 to 1 that a layer's input is perturbed in a forward pass; the authors recommend 0.1-0.5.
        distill: Whether the float network teaches; it costs one forward pass of it per batch.
        placement: "post" adds the noise to the rounded input, "pre" before rounding (a dither).
        weight: Of the distillation loss.
        statistics: Of the standardisation: per channel over the "batch", or over each "image".

    Source: Pang and Cai, Stabilizing Quantization-Aware Training by Implicit-Regularization on Hessian Matrix (2025),
    eq. 9, 14-17, 22. The paper leaves open where the noise is added, the statistics and the gates' granularity (ours:
    one per layer and forward pass), and its sum of squares is taken as a mean per layer: the literal sum is 1e7 for a
    ResNet-18 and leaves nothing to the task.
    """

    p: float = 0.1
    distill: bool = True
    placement: str = "post"
    weight: float = 1.0
    statistics: str = "batch"

    def __post_init__(self) -> None:
        _check_noise(self.p, self.placement)
        if self.statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {list(STATISTICS)}, got {self.statistics!r}")
        if not (isinstance(self.weight, Real) and math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight must be >= 0 and finite, got {self.weight!r}")
        for name in ("p", "weight"):
            object.__setattr__(self, name, float(getattr(self, name)))  # numpy's would not come back from a checkpoint


def _check_noise(p: float, placement: str) -> None:
    if not (isinstance(p, Real) and 0 <= p <= 1):
        raise ValueError(f"p must be from 0 to 1, got {p!r}")
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {list(PLACEMENTS)}, got {placement!r}")


@contextmanager
def feature_noise(model: nn.Module, p: float = 0.1, *, placement: str = "post") -> Iterator[None]:
    """Perturb the input of each quantized convolution of `model` for a while, in training mode.

    ``x̂ ← x̂ + gate·δ``, δ ~ U[-s/2, s/2] for each element and s the step of that input, held constant; gate is 1 with
    probability p, one draw per layer and forward pass. In evaluation mode nothing happens. The noise comes from torch's
    global generators, so that `SAM` replays it in its second pass.

    Args:
        model: Quantized and calibrated. Convolutions whose input is not quantized (the first, as a rule) get no noise.
        p: Probability from 0 to 1; 0 changes nothing, to the bit.
        placement: "post" = added to the rounded input, "pre" = before rounding.

    Raises:
        ValueError: For p out of range, an unknown placement, or no convolution with a quantized input.

    Cost: one pass over each perturbed input; compiled for a GPU, the noise of closed gates is made as well. If you
    compile the model yourself, pass ``isolate_recompiles=True``: else torch may run what it compiled without the noise.

    Source: Pang and Cai (2025), eq. 9 and 14.
    """
    _check_noise(p, placement)
    quantizers = noisy_inputs(model) if p else {}
    if p and not quantizers:
        raise ValueError("model must have convolutions with quantized inputs for p > 0, got none: use p=0")
    leaf = "output" if placement == "post" else "input"
    handles = [attach(quantizer, leaf, partial(_gated, p=p)) for quantizer in quantizers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def noisy_inputs(model: nn.Module) -> dict[str, Any]:
    """Return name -> input quantizer of the convolutions whose input is quantized."""
    layers = {name: m.input_quantizer for name, m in model.named_modules() if isinstance(m, QConv2d)}
    return {name: quantizer for name, quantizer in layers.items() if getattr(quantizer, "is_quantizer", False)}


def attach(module: nn.Module, leaf: str, noise: Any) -> Any:
    """Let ``noise(module, input, x)`` replace x, the "input" or "output" of a module; return the hook's handle."""
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


def distillation_loss(student: list[Tensor], teacher: list[Tensor], *, statistics: str = "batch") -> Tensor:
    """Return L_CSD, how much the features of two networks differ once each channel is standardised.

    ``Σ_l mean(Norm(z_s) - Norm(z_t))²``, ``Norm(z) = (z - μ)/√(σ² + 1e-5)`` for each channel over batch and space (or
    over the space of each image): in a layer 2·(1 - correlation), averaged over its channels.

    Args:
        student: Features (n, channels, height, width), or any (n, channels, …), layer by layer; gradients flow here.
        teacher: As many of the same shapes, without gradients.
        statistics: "batch" or "image".

    Source: Pang and Cai (2025), eq. 15-17, whose squares are summed over everything; see `FPQ`.
    """
    for z, t in zip(student, teacher, strict=True):
        if z.shape != t.shape:
            raise ValueError(
                f"teacher must have features of shape {tuple(z.shape)}, got {tuple(t.shape)}: other strides"
            )
        if math.prod(z.shape[2:]) * (1 if statistics == "image" else len(z)) < 2:
            rule = f'features must have more than one value per channel for statistics="{statistics}"'
            raise ValueError(f"{rule}, got shape {tuple(z.shape)}")
    norm = F.instance_norm if statistics == "image" else partial(F.batch_norm, running_mean=None, running_var=None)
    options: dict[str, Any] = {"eps": EPSILON} | ({} if statistics == "image" else {"training": True})
    pairs = [(norm(z.float(), **options), norm(t.float(), **options)) for z, t in zip(student, teacher, strict=True)]
    return torch.stack([F.mse_loss(z, t) for z, t in pairs]).sum()


class Features(nn.Module):
    """A network that returns, beside its output, what each of some modules put out.

    Args:
        model: Called as it is; `close` takes the hooks off.
        names: Of modules that are called once in a forward pass.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self._found: dict[str, Tensor] | None = None  # nothing is kept of what others make the model compute
        modules = [model.get_submodule(name) for name in names]
        self._handles = [m.register_forward_hook(self._noting(n)) for n, m in zip(names, modules, strict=True)]

    def _noting(self, name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            if self._found is not None:
                self._found[name] = output

        return note

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the output and the features, in the order of the names."""
        found: dict[str, Tensor] = {}
        self._found = found
        try:
            output = self.model(x)
        finally:
            self._found = None
        if unused := [name for name in self.names if name not in found]:
            raise ValueError(f"model must call every layer that is distilled in its forward pass, got none of {unused}")
        return output, [found[name] for name in self.names]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class Student(nn.Module):
    """A network that returns, beside its output, the weighted distillation loss of its features: one compiled graph.

    Args:
        fpq: How to distill.
        features: Of the network.
    """

    def __init__(self, fpq: FPQ, features: Features) -> None:
        super().__init__()
        self.fpq, self.features = fpq, features

    def forward(self, x: Tensor, taught: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the output and the loss against the teacher's features."""
        output, features = self.features(x)
        return output, self.fpq.weight * distillation_loss(features, taught, statistics=self.fpq.statistics)


class Teacher:
    """The teacher of a training: its features, once per batch.

    Args:
        network: The teacher.
        features: The function that returns its output and features.
    """

    def __init__(self, network: nn.Module, features: Any) -> None:
        self.network, self.features = network, features
        self._known: dict[Any, list[Tensor]] = {}

    def next_batch(self) -> None:
        """Forget the features of the batch before."""
        self._known.clear()

    def of(self, x: Tensor, part: Any) -> list[Tensor]:
        """Return the features; `part` names these rows of the batch."""
        if part not in self._known:
            with torch.no_grad():
                self._known[part] = self.features(x)[1]
        return self._known[part]


def taught_layers(model: nn.Module) -> list[str]:
    """Return the names of the quantized convolutions, whose outputs are distilled.

    Raises:
        ValueError: If there are none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, QConv2d)]
    if not names:
        raise ValueError("model must have quantized convolutions to distill, got none: use FPQ(distill=False) or none")
    return names


def teacher_of(model: nn.Module, teacher: nn.Module | None, names: list[str]) -> nn.Module:
    """Return a copy of `teacher` in evaluation mode, or `model` itself in floating point with its latent weights.

    Raises:
        ValueError: If it lacks a layer of those names, or has it in another shape.
    """
    network = dequantize(model, latent=True) if teacher is None else copy_model(teacher)
    theirs = dict(network.named_modules())
    for name in names:
        mine, own = (
            tuple(getattr(m, "weight", torch.empty(0)).shape) for m in (model.get_submodule(name), theirs.get(name))
        )
        if mine != own:
            raise ValueError(f"teacher must have the layer {name} with weights of shape {mine}, got {own}")
    like = next(p for p in model.parameters() if p.is_floating_point())
    return network.to(like.device, like.dtype).eval().requires_grad_(False)
