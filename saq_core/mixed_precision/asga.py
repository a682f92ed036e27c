"""ASGA: descent on a mixture of bit widths, with the gradients at w and at w + ε aligned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from landscape.model import Criterion

from ..contexts import device_of
from ..costs import describe
from ..data import Data, steps_per_epoch
from ..quantization import QuantizerName, parse_bits
from ..results import Settings
from ..sharpness import SAM, SAQ, Case, checked_range, common_grads, cosine, norm
from ..training import Recipe, base_optimizer, batch_loss
from .baselines import solve
from .descent import descend
from .resuming import Checkpoint
from .space import Space
from .switchable import QuantizerSwitch, Switchable

START = 0.01  # initial value of all logits: uniform probabilities


@dataclass(frozen=True, repr=False)
class ASGA(Settings):
    """Configure ``search(…, method="asga")``: gradient descent on a mixture of bit widths.

    No code was released: see below for what is the paper's and what is ours. Every layer computes with
    ``W̃ = Σᵢ softmax(α)ᵢ·Q_bᵢ(W)`` and ``x̃ = Σᵢ softmax(α)ᵢ·Q_bᵢ(x)``; weights, steps and α descend together (one
    level, all training images) along ``½(∇L(w) + ∇L(w + ε))``, ``ε = (ρ - β‖g‖)·g/‖g‖``, g = ∇L(w) by the weights
    alone, and α along λ·∇C as well, once. See `complexity` for C and `derive` for the end.

    Args:
        epochs: Over the training images, with their augmentation.
        batch_size: Samples per step; the learning rates are for 256.
        lr: Of weights and steps, a tenth from 40 % of all steps on, a hundredth from 80 %.
        lr_alpha: Of the logits α, lowered in the same way; their weights do not decay (ours).
        weight_decay: Of weights, biases and norms.
        lam: λ, the weight of C. With more of it the search leans to fewer bits.
        rho: Radius of the first step, and of all where `rho_range` is None.
        rho_range: (lowest, highest) of ``ρ ← ln(1 + h)``, h = L(w + ε) - L(w) of the step before (see `AdaptiveRho`);
            the rule and a cap are the paper's, the floor and the cap's value are ours.
        beta: β, how much of the gradient's own length shortens ε.
        combine: "mean" as above, or "perturbed", ∇L(w + ε) alone (SAM).
        case: Where ε is measured and added, as in `SAQ`: 3 = quantized weights (ours: rounding undoes little of it);
            2 = latent ones, the literal reading of the paper.
        slack: The policy costs from (1 - slack)·budget to budget, where there are such.

    rho = beta = 0 with rho_range=None is one pass of the plain optimizer. ρ by this rule is a switch: with
    ``h ≈ ρ‖g‖ + ½σρ²``, σ the curvature along g, and ‖g‖ < 1 it falls to the floor where it starts below
    ``ρ* ≈ 2(1 - ‖g‖)/(σ - ‖g‖²)`` and rises to the cap above; with ‖g‖ > 1 it rises (our analysis).

    Source: Ma et al., Adaptive Sharpness-Aware Gradient Aligning (2025), whose own name for it is GMPQ-ASGA, with GMPQ
    (Wang et al., 2021) as the base search. Its body was not at hand; from its only long source, a summary: the rule
    ``ρ = min(ρ_max, ln(h + 1))``, that L, L(w + ε) and their gap are lowered together by aligning gradients, and that
    the search is differentiable. Ours: the formula for that, taken over from SAGM (Wang et al., 2023, β = 1e-3,
    ρ = 0.05), that the weights alone are perturbed, that h is without C, the cap of 0.1. Schedule, λ and C: GMPQ and
    EdMIPS (Cai and Vasconcelos, 2020). Departure from those: one α per decision of `Space`, not one for weights and one
    for inputs.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> import saq_core
        >>> saq_core.ASGA(epochs=4, lam=0.03)
        ASGA(epochs=4, lam=0.03)
    """

    epochs: int = 25
    batch_size: int = 256
    lr: float = 0.1
    lr_alpha: float = 0.01
    weight_decay: float = 1e-4
    lam: float = 3e-4
    rho: float = 0.05
    rho_range: tuple[float, float] | None = (0.005, 0.1)
    beta: float = 1e-3
    combine: Literal["mean", "perturbed"] = "mean"
    case: Case = 3
    slack: float = 0.02

    def __post_init__(self) -> None:
        floats = ("lr", "lr_alpha", "weight_decay", "lam", "rho", "beta")
        self._check(epochs=1, batch_size=1, slack="from 0 to below 1", **dict.fromkeys(floats, ">= 0"))
        object.__setattr__(self, "rho_range", checked_range(self.rho, self.rho_range))

    @property
    def passes(self) -> int:
        """Forward and backward passes per step."""
        return 1 if self.rho == self.beta == 0 and self.rho_range is None else 2

    def lr_factor(self, step: int, steps: int) -> float:
        """Return what both learning rates are multiplied by in a step, counted from 0."""
        return 0.1 ** (5 * step // (2 * steps))

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> SAM:
        """Return the optimizer as the SAM that makes the steps; its policy records their statistics."""
        settings: Any = {"combine": self.combine, "perturbed": ("weight",), "rho_range": self.rho_range}
        sharp = SAQ(self.rho, self.case, **settings)
        return sharp.wrap(model, optimizer, policy=RecordingPolicy(), shrink=self.beta)


class Mixture(nn.Module):
    """Stand in for a quantizer: ``Σᵢ softmax(α)ᵢ·Qᵢ(x)``.

    Args:
        options: One quantizer per candidate; the same module may stand for several, and computes once.
        logits: (decisions, candidates). They stay outside of the module's parameters, where SAM would find them.
        row: Of this decision.
    """

    member: Tensor

    def __init__(self, options: Sequence[nn.Module], logits: Tensor, row: int) -> None:
        super().__init__()
        distinct = list(dict.fromkeys(options))
        self.options = nn.ModuleList(distinct)
        self._logits, self.row = (logits,), row
        member = torch.tensor([[option is other for other in distinct] for option in options])
        self.register_buffer("member", member.to(logits), persistent=False)

    def probabilities(self) -> tuple[Tensor, ...]:
        """Return the probability of each distinct option."""
        return (self._logits[0][self.row].softmax(0) @ self.member).unbind()

    def _mean(self, values: list[Tensor]) -> Tensor:
        if len(values) == 1:  # its probability is 1
            return values[0]
        first, *others = zip(self.probabilities(), values, strict=True)
        total = first[0] * first[1]
        for probability, value in others:
            total = torch.addcmul(total, probability, value)
        return total

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the quantized x over the options."""
        return self._mean([option(x) for option in self.options])

    def step_size(self, x: Tensor) -> Tensor:
        """Return the mean of the options' steps: nominal, for the levels of a mixture are not evenly spaced."""
        return self._mean([option.step_size(x) for option in self.options]).detach()  # type: ignore[operator]


def relax(
    model: nn.Module, space: Space, data: Data, *, quantizer: QuantizerName = "lsq", start: float = START
) -> tuple[nn.Module, nn.Parameter]:
    """Return a copy of a float network whose quantizers are mixtures, calibrated, and its logits.

    The layers are those of `quantize`, with one latent weight and one BatchNorm.

    Cost: `quantize` and `calibrate` once per candidate.
    """
    network = Switchable(model, replace(space, norms={}), data, quantizer=quantizer)
    like = next(p for p in network.model.parameters() if p.is_floating_point())
    logits = nn.Parameter(like.new_full((len(space.groups), len(space.candidates)), start))
    rows = {id(switch): row for row, switches in enumerate(network.switches.values()) for switch in switches}
    for name, module in list(network.model.named_modules()):
        if isinstance(module, QuantizerSwitch):
            network.model.set_submodule(name, Mixture(list(module.options), logits, rows[id(module)]))
    return network.model, logits


def multiplications(space: Space, model: nn.Module, example: Any) -> tuple[Tensor, int]:
    """Return MACs (decisions, 2) with weights and between activations, and those of the first layer that decides."""
    macs = {row.name: row.macs for row in describe(model, example).layers}
    groups, kinds = space.groups.values(), (False, True)
    table = [[sum(macs[n] for n in group if n.endswith(".products") is kind) for kind in kinds] for group in groups]
    return torch.tensor(table), macs[next(iter(space.groups))]


def complexity(logits: Tensor, bits: Tensor, macs: Tensor) -> Tensor:
    """Return ``C(α) = Σ_l MAC_l·E[b_w]·E[b_a] / MAC_1``; between activations ``E[b_a]²`` takes the place of E·E.

    Both expectations are over the one softmax of a decision, so over the marginals of its joint distribution: the
    product of two means, as in the source, and not the mean E[b_w·b_a] of the product, which is larger where both go
    together. Where the chances are 0 and 1, so at a policy, they are the same. Layers of fixed bits are left out.

    Args:
        logits: (decisions, candidates).
        bits: (candidates, 2) of weights and inputs.
        macs: (decisions, 2) with weights and between activations, over MAC_1, that of the first layer that decides.

    Source: GMPQ and EdMIPS; one softmax for both is ours.
    """
    weight, activation = (logits.softmax(1) @ bits).unbind(1)
    return ((macs[:, 0] * weight + macs[:, 1] * activation) * activation).sum()


def derive(logits: Tensor, space: Space, budget: float, slack: float) -> Tensor:
    """Return the most probable choice (decisions,) that makes use of the budget, exactly.

    It is the argmax of every decision's logits where that costs from (1 - slack)·budget to budget. Where that costs
    more, it is the choice of largest ``Σ log softmax(α)`` within the budget. Where this costs less than the window, λ
    was too large: unspent bit operations get the least price μ for which the choice of largest
    ``Σ log softmax(α) + μ·BOPs`` within the budget reaches the window, or the nearest below it. No choice that costs at
    least as much, and fits, is more probable.

    All of this is ours: the sources take the argmax and tune λ by searching anew.

    Cost: a few small integer programmes, one for each choice that becomes the best between μ = 0 and that price.
    """
    logs = logits.detach().double().cpu().log_softmax(1)
    lost = logs.amax(1, keepdim=True) - logs
    room = budget - space.fixed
    unspent = (space.table.amax(1, keepdim=True) - space.table).double() / room

    def total(costs: Tensor, choice: Tensor) -> float:
        return float(costs.gather(1, choice[:, None]).sum())

    low, high = solve(lost, space.table, room), solve(unspent, space.table, room)
    least = min((1 - slack) * budget, float(space.bops(high)))
    if space.bops(low) >= least:
        return low
    while True:  # the price at which both cost the same is the one sought, unless another choice is better there
        price = (total(lost, high) - total(lost, low)) / (total(unspent, low) - total(unspent, high))
        priced = lost + price * unspent
        middle = solve(priced, space.table, room)
        if total(priced, middle) >= total(priced, high) - 1e-9 * total(priced, low):  # up to rounding
            return high
        low, high = (low, middle) if space.bops(middle) >= least else (middle, high)


class RecordingPolicy:
    """Make every step with two passes, and record its statistics (a policy of `SAM`)."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.rows: list[dict[str, Tensor]] = []

    def step(self, sam: SAM, closure: Callable[..., Any]) -> Any:
        """Make a step with two passes."""
        losses: list[Tensor] = []

        def recorded() -> Any:
            losses.append(closure())
            return losses[-1]

        loss, plain = sam.full_step(recorded, keep_plain=True)
        weights = {id(parameter.tensor) for parameter in sam.parameters}
        trained = enumerate(p for group in sam.param_groups for p in group["params"])
        indices = {k for k, p in trained if id(p) in weights}
        g, used = common_grads({k: v for k, v in plain.items() if k in indices}, sam.gradients())
        sharp = used if sam.combine == "perturbed" else list(torch._foreach_sub(torch._foreach_mul(used, 2), g))
        gap = (losses[1] - losses[0]).detach()
        rho = sam.radius.detach() if isinstance(sam.radius, Tensor) else torch.full_like(gap, sam.radius)
        self.rows.append({"gap": gap, "rho": rho, "gradient_norm": norm(g), "cosine": cosine(g, sharp)})
        return loss


class Alignment:
    """One run of ASGA: the mixture, its logits, and the optimizer of both.

    Args:
        model: A float network, which is left as it is.
        data: Only its training images are used (and its probe, to calibrate).
        space: What can be chosen.
        settings: See `ASGA`.
        seed: Of order and augmentation.
        quantizer: See `quantize`.
        criterion: What is minimised, cross-entropy by default.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        space: Space,
        settings: ASGA,
        seed: int,
        quantizer: QuantizerName = "lsq",
        criterion: Criterion | None = None,
    ) -> None:
        self.space, self.settings, self.seed, self.criterion = space, settings, seed, criterion or Criterion()
        self.model, self.logits = relax(model, space, data, quantizer=quantizer)
        self.data = data.to(device_of(self.model))
        macs, first = multiplications(space, model, data)
        self.macs = (macs.double() / first).to(self.logits)
        self.bits = torch.tensor([parse_bits(label) for label in space.candidates]).to(self.logits)
        plain: Any = {"nesterov": False, "weight_decay": settings.weight_decay}
        self.recipe = Recipe(settings.epochs, settings.lr, settings.batch_size, **plain)
        self.optimizer = base_optimizer(self.model, self.recipe)
        self.optimizer.add_param_group({"params": [self.logits], "lr": settings.lr_alpha, "weight_decay": 0.0})
        self.optimizer.register_step_pre_hook(self.add_cost)
        self.starts = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.sam = settings.wrap(self.model, self.optimizer) if settings.passes == 2 else None

    def complexity(self) -> Tensor:
        """Return C(α)."""
        return complexity(self.logits, self.bits, self.macs)

    def add_cost(self, *_: Any) -> None:
        """Add λ∇C to the gradient of α: once, after both passes (a hook before the optimizer's step)."""
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.complexity(), self.logits)
        assert self.logits.grad is not None
        self.logits.grad.add_(slope, alpha=self.settings.lam)

    def backward(self, batch: Any) -> Tensor:
        """Leave the gradient of one batch in `.grad`; return its loss."""
        self.optimizer.zero_grad()
        loss = batch_loss(self.model, batch, self.criterion).mean
        loss.backward()
        return loss.detach()

    def step(self, batch: Any) -> Tensor:
        """Make one step on a batch; return the loss at w."""
        closure = partial(self.backward, batch)
        if self.sam is not None:
            return self.sam.step(closure)
        loss = closure()
        self.optimizer.step()
        return loss

    def epoch(self, epoch: int) -> dict[str, float]:
        """Make an epoch; return the means of its steps' statistics, the mixtures' mean entropy in nats, and C."""
        steps = self.recipe.epochs * steps_per_epoch(self.data, self.recipe.batch_size)

        def step(k: int, batch: Any) -> Tensor:
            for group, start in zip(self.optimizer.param_groups, self.starts, strict=True):
                group["lr"] = start * self.settings.lr_factor(k, steps)
            return self.step(batch)

        row = descend(self.model, self.data, self.recipe, self.seed, epoch, step) | self.step_means()
        logs = self.logits.detach().log_softmax(1)
        entropy, complexity = -(logs.exp() * logs).sum(1).mean(), self.complexity().detach()
        return row | {"entropy": float(entropy), "complexity": float(complexity)}

    def step_means(self) -> dict[str, float]:
        """Return the means over the steps since the last call: ρ, how often at its ends, the gap h, ‖g‖, the cosine.

        ‖g‖ is that of the latent weights, also for case 3, whose ε is shortened by that of the quantized ones.
        """
        if self.sam is None:
            return {}
        rows: list[dict[str, Tensor]] = self.sam.policy.rows  # type: ignore[attr-defined]
        columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        rows.clear()
        if self.settings.rho_range is not None:
            lowest, highest = (columns["rho"].new_tensor(end) for end in self.settings.rho_range)
            columns["at_floor"], columns["at_cap"] = columns["rho"] <= lowest, columns["rho"] >= highest
        return {name: float(column.double().mean()) for name, column in columns.items()}

    def found(self, budget: float, checkpoint: Checkpoint) -> tuple[Tensor, dict[str, Any]]:
        """Make the epochs; return the choice that they lead to within the budget, and the history: see `search`."""
        settings = self.settings
        state = {"network": self.model, "logits": nn.ParameterList([self.logits])}
        epochs = checkpoint.rows("epochs", settings.epochs, self.epoch, **state, optimizer=self.sam or self.optimizer)
        logits = self.logits.detach().cpu()
        probable = logits.argmax(1)
        stored = asdict(settings) | {"rho_range": settings.rho_range and list(settings.rho_range)}  # as JSON has it
        chances = dict(zip(self.space.groups, logits.softmax(1).tolist(), strict=True))
        argmax = {"bits": self.space.bits(probable), "bops": int(self.space.bops(probable))}
        details = {"epochs": epochs, "chances": chances, "argmax": argmax, "settings": stored}
        return derive(logits, self.space, budget, settings.slack), details
