"""The penalty of feature noise: whether the loss increases by what the curvature over features predicts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.checking import numbers
from landscape.model.measuring import measurement_mode

from .. import processes
from ..contexts import device_of, seeded
from ..results import Shown
from .noise import attach, noisy_inputs, uniform_noise


class LayerPenalty(NamedTuple):
    """One layer: step of its input, trace of the Hessian over that input, p·step²/24·trace with its standard error."""

    step: float
    trace: float
    delta_loss: float
    stderr: float


@dataclass(frozen=True, repr=False)
class FeatureNoisePenalty(Shown):
    """Result of `feature_noise_penalty`: the loss increase that feature noise causes, predicted and measured.

    Args:
        predicted: Σ of the layers' loss increases, in units of the loss.
        predicted_stderr: Of the traces' probes.
        measured: Mean loss increase over draws of gates and noise; NaN without draws.
        measured_stderr: Over the draws.
        layers: Layer -> its share of the prediction.
        p: Probability of a gate.
        num_samples: Pairs of opposite draws.
        seconds: Wall-clock time.

    Example:
        See `feature_noise_penalty`.

        >>> import saq_core
        >>> saq_core.FeatureNoisePenalty(0.02, 0.001, 0.021, 0.002, {}, p=0.1, num_samples=50, seconds=1.0)
        FeatureNoisePenalty(predicted 0.02 ± 0.001, measured 0.021 ± 0.002, p=0.1, 0 layers, 50 draws)
    """

    predicted: float
    predicted_stderr: float
    measured: float
    measured_stderr: float
    layers: dict[str, LayerPenalty]
    p: float
    num_samples: int
    seconds: float

    @property
    def trace(self) -> float:
        """Σ s²·Tr(∇²_x L): what the noise penalises, whatever its probability."""
        return sum(layer.step**2 * layer.trace for layer in self.layers.values())

    def _rows(self) -> list[dict[str, Any]]:
        return [{"layer": name, **layer._asdict()} for name, layer in self.layers.items()]

    def __repr__(self) -> str:
        predicted = f"predicted {self.predicted:.3g} ± {self.predicted_stderr:.1g}"
        measured = f"measured {self.measured:.3g} ± {self.measured_stderr:.1g}" if self.num_samples else "not measured"
        extent = f"p={self.p}, {len(self.layers)} layers, {self.num_samples} draws"
        return f"FeatureNoisePenalty({predicted}, {measured}, {extent})"


def feature_noise_penalty(
    model: nn.Module,
    data: Any = None,
    *,
    p: float = 0.1,
    steps: Mapping[str, float] | None = None,
    num_samples: int = 100,
    rtol: float = 0.05,
    num_probes: int = 100,
    seed: int = 0,
) -> FeatureNoisePenalty:
    """Compare the loss increase under gated feature noise with the one that the curvature over features predicts.

    ``E[L(x + gate·δ)] - L ≈ Σ_l p·s_l²/24 · Tr(∇²_{x_l} L)``, to second order in s: noise on features penalises the
    Hessian over features, not (as the paper argues) that over weights. Evaluation mode, cross-entropy. Where later
    activations are rounded, the traces are those of the straight-through surrogate and the two need not agree.

    Args:
        model: Left as it is.
        data: (x, y) or a list of such batches; None takes `model.probe`.
        p: Probability of a gate, from 0 to 1.
        steps: Module -> width s of the noise on its input, for any network; None takes the inputs of the quantized
            convolutions with their learnt steps.
        num_samples: Pairs of passes with opposite noise (which cancels the first-order term); 0 only predicts.
        rtol: Relative standard error at which the probes of a trace stop.
        num_probes: Most probes of a trace.
        seed: Of noise and probes.

    Raises:
        ValueError: If there are no data or no inputs to perturb, or a setting is out of range.

    Cost: 2·num_samples forward passes over the data, and one trace (see `landscape.trace`) per layer.

    Source: our reading of Pang and Cai (2025), eq. 7-14, which the paper writes for weights.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> batch = torch.randn(16, 4), torch.randint(3, (16,))
        >>> penalty = saq_core.feature_noise_penalty(model, batch, steps={"2": 0.1}, num_samples=4)
        >>> list(penalty.layers), penalty.num_samples
        (['2'], 4)
    """
    start = time.perf_counter()
    numbers(at_least=0, at_most=1, p=p)
    numbers(whole=True, at_least=2 if num_samples else 0, note="or 0 to measure nothing", num_samples=num_samples)
    batches = _batches(model, data)
    inputs = _noisy_tensors(model, steps)
    layers = {}
    for name, (path, leaf, step) in processes.bar(inputs.items(), "feature traces"):
        operator = landscape.Hessian(model, batches, at=f"{path}.{leaf}")
        trace = landscape.trace(operator, rtol=rtol, num_probes=num_probes, seed=seed)
        factor = p * step**2 / 24
        layers[name] = LayerPenalty(step, trace.value, factor * trace.value, factor * trace.stderr)
    increases = torch.full((2,), math.nan)
    if num_samples:
        increases = _measured(model, batches, list(inputs.values()), p, num_samples, seed)
    return FeatureNoisePenalty(
        predicted=sum(layer.delta_loss for layer in layers.values()),
        predicted_stderr=sum(layer.stderr**2 for layer in layers.values()) ** 0.5,
        measured=float(increases.mean()),
        measured_stderr=float(increases.std() / len(increases) ** 0.5),
        layers=layers,
        p=p,
        num_samples=num_samples,
        seconds=time.perf_counter() - start,
    )


def _batches(model: nn.Module, data: Any) -> list[tuple[Tensor, Tensor]]:
    data = getattr(model, "probe", None) if data is None else data
    if data is None:
        raise ValueError("data must be given for a model without a probe, got None: pass (x, y)")
    whole = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    device = device_of(model)
    try:
        return [(x.to(device), y.to(device)) for x, y in ([data] if whole else data)]
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(f"data must be (x, y) or a list of such batches, got {type(data).__name__}") from error


def _noisy_tensors(model: nn.Module, steps: Mapping[str, float] | None) -> dict[str, tuple[str, str, float]]:
    """Return layer -> (name of a module, "input" or "output" of it, width of the noise there)."""
    if steps is not None:
        unknown = sorted(set(steps) - set(dict(model.named_modules())))
        if unknown:
            raise ValueError(f"steps must name modules of the model, got {unknown[:3]}")
        for step in steps.values():
            numbers(at_least=0, steps=step)
        tensors = {name: (name, "input", float(step)) for name, step in steps.items()}
    else:
        like, quantizers = torch.ones((), device=device_of(model)), noisy_inputs(model).items()
        tensors = {n: (f"{n}.input_quantizer", "output", float(q.step_size(like))) for n, q in quantizers}
    if not tensors:
        raise ValueError("model must have convolutions with quantized inputs, got none: pass steps={module: width}")
    return tensors


@torch.no_grad()
def _measured(
    model: nn.Module, batches: list[Any], tensors: list[tuple[str, str, float]], p: float, num_samples: int, seed: int
) -> Tensor:
    """Return the increase of the mean loss for each pair of opposite draws, (num_samples,) float64."""
    sign = [0.0]

    def noise(width: float, module: nn.Module, x: Tensor, features: Tensor) -> Tensor:
        gate = torch.rand((), device=features.device, dtype=features.dtype) < p
        return features + uniform_noise(features, sign[0] * width * gate)

    def loss() -> Tensor:
        losses = [F.cross_entropy(model(x), y, reduction="sum").double() for x, y in batches]
        return torch.stack(losses).sum() / sum(len(y) for _, y in batches)

    device = device_of(model)
    with measurement_mode(model):  # which takes the hooks back
        plain, increases = loss(), []
        for path, leaf, width in tensors:
            attach(model.get_submodule(path), leaf, partial(noise, width))
        for draw in processes.bar(range(num_samples), "feature noise"):
            pair = []
            for sign[0] in (1.0, -1.0):
                with seeded(seed * 1_000_003 + draw, device):
                    pair.append(loss())
            increases.append((pair[0] + pair[1]) / 2 - plain)
    return torch.stack(increases).cpu()
