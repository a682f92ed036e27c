"""What is done to the weights between steps, beside the optimizer: WinQ's noise and reset, and their average."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..contexts import device_of
from ..results import Settings
from ..sharpness import Weights, displaced, find_parameters, find_targets

STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, repr=False)
class WinQ(Settings):
    """Pull the weights towards their quantized values every so many steps, and take gradients at noisy ones.

    After each step whose number is a multiple of N: ``w ← α·w + (1 - α)·Q(w)``, for the weights of quantized layers.
    In each step: the gradient is that at ``w + σ·z``, z ~ N(0, 1), and updates w. Where Q rounds to the nearest level
    and its step stands by itself (LSQ), Q(w) and so the loss stay the same in a reset: w comes nearer to its level.

    Args:
        every: N, the steps from one reset to the next, counted over all epochs.
        alpha: α, what remains of the distance between a weight and its quantized value; 1 leaves w as it is.
        noise: σ, in the units of the weights; 0 for none.
        noise_at: What the noise is added to: "latent", w before rounding, or "quantized", Q(w).

    Raises:
        ValueError: If a setting is out of range; in `train`, if no layer of the network is quantized.

    Cost: per step a draw of as many numbers as weights, per reset one quantization of them.

    Source: WinQ (Li et al., ICML 2026, arXiv 2605.17471), of which the abstract and the code (facebookresearch/WinQ)
    were at hand, not the body. From the code: α = 0.2, σ = 0.001 on the latent weights (on the quantized ones is an
    option), N a quarter of all steps below 3 bits, else a half, so that the last step ends with a reset. Departures:
    one draw per step, for all passes of SAM, micro-batches and processes (there one per forward pass); no noise on
    steps and clips (there 0.001 too). Ours: with SAM, ε is added to the noisy weights; of several layers that quantize
    one weight, the first resets it.
    Not known: what it does beside language models, with momentum (the optimizer's state is left as it is), and with
    quantizers whose levels follow the weights (DoReFa, LIQ, MinMax), where a reset moves Q(w) too.

    Example:
        >>> import torch, saq_core
        >>> model = saq_core.quantize(torch.nn.Sequential(torch.nn.Linear(4, 3)), "W2A32", first_last_bits=None)
        >>> recipe = saq_core.Recipe(epochs=2, lr=0.1, batch_size=4, winq=saq_core.WinQ(every=4, alpha=0.0))
        >>> data = torch.randn(8, 4), torch.arange(8) % 3
        >>> history = saq_core.train(model, data, recipe)  # four steps
        >>> torch.allclose(model[0].weight, model[0].used_weight())
        True
    """

    every: int
    alpha: float = 0.2
    noise: float = 1e-3
    noise_at: Weights = "latent"

    def __post_init__(self) -> None:
        self._check(every=1, alpha="from 0 to 1", noise=">= 0")


class Resetting:
    """A WinQ at work on a network; `seed` is the recipe's."""

    def __init__(self, winq: WinQ, model: nn.Module, seed: int) -> None:
        self.winq, self.seed, self.generator = winq, seed, torch.Generator(device_of(model))
        self.parameters = [p for p in find_parameters(model, ("weight",)) if p.users]
        if not self.parameters:
            raise ValueError("winq needs trainable weights of quantized layers, got none: quantize() the model first")

    def noisy(self, step: int) -> AbstractContextManager[None]:
        """Stay at w + σz, with the z of a step, counted from 0: the same whenever and in whatever process."""
        self.generator.manual_seed(self.seed * 1_000_003 + 500_009 + step)  # draws not what shuffles an epoch
        tensors = [t.tensor for t in find_targets(self.parameters, "latent", self.winq.noise_at).values()]
        drawn = [t.new_empty(t.shape).normal_(generator=self.generator) for t in tensors]
        return displaced(tensors, list(torch._foreach_mul(drawn, self.winq.noise)))

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Reset the weights if it is time after a step, counted from 0."""
        for parameter in self.parameters if (step + 1) % self.winq.every == 0 else ():
            parameter.tensor.lerp_(parameter.quantized(0), 1 - self.winq.alpha)


@torch.no_grad()
def average_(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Take a network into its average: ``m ← d·m + (1 - d)·w`` for what is trained and statistics of norms; else copy.

    `torch.optim.swa_utils.AveragedModel` waits for a GPU in every update, and makes NaN of a buffer that is infinite.
    """
    own, new = (dict(network.named_parameters()) | dict(network.named_buffers()) for network in (average, model))
    names = [k for k in own if new[k].requires_grad or k.endswith(STATISTICS)]
    get_ema_multi_avg_fn(decay)([own[k] for k in names], [new[k] for k in names], 0)
    for k in own.keys() - set(names):
        own[k].copy_(new[k])
