"""Does noise on features penalise curvature over them? The rise of the loss, predicted and measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import device_of, evaluation_mode, seeded
from .perturbation import attach, noisy_inputs, uniform_noise


class LayerRise(NamedTuple):
    """One layer's share: step of its input, trace of the Hessian over that input, p·step²/24·trace with its error."""

    step: float
    trace: float
    rise: float
    stderr: float


@dataclass(frozen=True)
class FeatureRise:
    """What `feature_rise` found.

    Args:
        predicted: Σ of the layers' rises, in units of the loss.
        predicted_stderr: Of the traces' probes.
        measured: Mean rise of the loss over draws of gates and noise; NaN where none were made.
        measured_stderr: Over the draws.
        layers: Layer -> its share of the prediction.
        p: Probability of a gate.
        draws: Pairs of opposite draws.
        seconds: Wall-clock time.
    """

    predicted: float
    predicted_stderr: float
    measured: float
    measured_stderr: float
    layers: dict[str, LayerRise]
    p: float
    draws: int
    seconds: float

    @property
    def trace(self) -> float:
        """Σ s²·Tr(∇²_x L): what the noise penalises, whatever its probability."""
        return sum(layer.step**2 * layer.trace for layer in self.layers.values())

    def __repr__(self) -> str:
        predicted = f"predicted {self.predicted:.3g} ± {self.predicted_stderr:.1g}"
        measured = f"measured {self.measured:.3g} ± {self.measured_stderr:.1g}" if self.draws else "not measured"
        return f"FeatureRise({predicted}, {measured}, p={self.p}, {len(self.layers)} layers, {self.draws} draws)"


def feature_rise(
    model: nn.Module,
    data: Any = None,
    *,
    p: float = 0.1,
    steps: Mapping[str, float] | None = None,
    placement: str = "post",
    draws: int = 100,
    rtol: float = 0.05,
    max_samples: int = 100,
    seed: int = 0,
) -> FeatureRise:
    """Compare how much gated feature noise raises the loss with what the curvature over the features predicts.

    ``E[L(x + gate·δ)] - L ≈ Σ_l p·s_l²/24 · Tr(∇²_{x_l} L)``, to second order in s: noise on features penalises the
    Hessian over features, not (as the paper argues) that over weights. Evaluation mode, cross-entropy. Where later
    activations are rounded, the traces are those of the straight-through surrogate and the two need not agree.

    Args:
        model: Left as it is.
        data: (x, y) or a list of such batches; None takes `model.probe`.
        p: Probability of a gate, from 0 to 1.
        steps: Module -> width s of the noise on its input, for any network; None takes the inputs of the quantized
            convolutions with their learnt steps.
        placement: "post" or "pre" the rounding of the input, where `steps` is None.
        draws: Pairs of passes with opposite noise (which takes the first-order term out); 0 predicts without measuring.
        rtol: Relative standard error at which a trace is enough.
        max_samples: Of a trace.
        seed: Of noise and probes.

    Raises:
        ValueError: If there are no data or no inputs to perturb, or for settings out of range.

    Cost: 2·draws forward passes over the data, and one trace (see `landscape.trace`) per layer.

    Source: our reading of Pang and Cai (2025), eq. 7-14, which the paper writes for weights.
    """
    import landscape

    start = time.perf_counter()
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, got {p!r}")
    if draws != 0 and draws < 2:
        raise ValueError(f"draws must be >= 2, or 0 to measure nothing, got {draws!r}")
    batches = _batches(model, data)
    sites = _sites(model, steps, placement)
    layers = {}
    for name, (path, leaf, step) in sites.items():
        operator = landscape.Hessian(model, batches, at=f"{path}.{leaf}")
        found = landscape.trace(operator, rtol=rtol, num_probes=max_samples, seed=seed)
        factor = p * step**2 / 24
        layers[name] = LayerRise(step, found.value, factor * found.value, factor * found.stderr)
    rises = _measured(model, batches, list(sites.values()), p, draws, seed) if draws else torch.full((2,), math.nan)
    return FeatureRise(
        predicted=sum(layer.rise for layer in layers.values()),
        predicted_stderr=sum(layer.stderr**2 for layer in layers.values()) ** 0.5,
        measured=float(rises.mean()),
        measured_stderr=float(rises.std() / len(rises) ** 0.5),
        layers=layers,
        p=p,
        draws=draws,
        seconds=time.perf_counter() - start,
    )


def _batches(model: nn.Module, data: Any) -> list[tuple[Tensor, Tensor]]:
    data = getattr(model, "probe", None) if data is None else data
    if data is None:
        raise ValueError("data must be given for a model without a probe, got None: pass (x, y)")
    whole = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    pairs: Iterable[Any] = [data] if whole else data
    device = device_of(model)
    return [(x.to(device), y.to(device)) for x, y in pairs]


def _sites(model: nn.Module, steps: Mapping[str, float] | None, placement: str) -> dict[str, tuple[str, str, float]]:
    """Return layer -> (name of a module, "input" or "output" of it, width of the noise there)."""
    if steps is not None:
        unknown = sorted(set(steps) - set(dict(model.named_modules())))
        if unknown:
            raise ValueError(f"steps must name modules of the model, got {unknown[:3]}")
        found = {name: (name, "input", float(step)) for name, step in steps.items()}
    else:
        leaf = {"post": "output", "pre": "input"}.get(placement)
        if leaf is None:
            raise ValueError(f'placement must be "post" or "pre", got {placement!r}')
        quantizers = noisy_inputs(model)
        found = {
            name: (f"{name}.input_quantizer", leaf, float(q.step_size(torch.ones((), device=device_of(model)))))
            for name, q in quantizers.items()
        }
    if not found:
        raise ValueError("model must have convolutions with quantized inputs, got none: pass steps={module: width}")
    return found


@torch.no_grad()
def _measured(
    model: nn.Module, batches: list[Any], sites: list[tuple[str, str, float]], p: float, draws: int, seed: int
) -> Tensor:
    """Return the rise of the mean loss for each pair of opposite draws, (draws,) float64."""
    sign = [0.0]

    def noise(width: float, module: nn.Module, x: Tensor, features: Tensor) -> Tensor:
        gate = torch.rand((), device=features.device, dtype=features.dtype) < p
        return features + uniform_noise(features, sign[0] * width * gate)

    def loss() -> Tensor:
        losses = [F.cross_entropy(model(x), y, reduction="sum").double() for x, y in batches]
        return torch.stack(losses).sum() / sum(len(y) for _, y in batches)

    device = device_of(model)
    with evaluation_mode(model):
        plain, rises = loss(), []
        handles = [attach(model.get_submodule(path), leaf, partial(noise, width)) for path, leaf, width in sites]
        try:
            for draw in range(draws):
                pair = []
                for sign[0] in (1.0, -1.0):
                    with seeded(seed * 1_000_003 + draw, device):
                        pair.append(loss())
                rises.append((pair[0] + pair[1]) / 2 - plain)
        finally:
            for handle in handles:
                handle.remove()
    return torch.stack(rises).cpu()
