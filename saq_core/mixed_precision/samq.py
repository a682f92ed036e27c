"""SAMQ: a controller that learns which bits leave the loss flat, on a network that holds all of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from landscape.model import Criterion, measurement_mode

from ..contexts import device_of
from ..data import Data, ImageFiles, Split, balanced_order, evaluation_batches, is_dataset, samples_in, steps_per_epoch
from ..quantization import QuantizerName
from ..results import Settings
from ..sharpness import SAQ, Metric
from ..training import Evaluation, Recipe, base_optimizer, batch_loss, brought_to, evaluated
from .controller import Controller, Reinforce
from .descent import descend
from .resuming import Checkpoint
from .space import MILLION, Space
from .switchable import Switchable

PENALTY_AT_TARGET = 1e-4 * 674**2  # the paper's lambda at the paper's target: cost of being off by the whole target


@dataclass(frozen=True, repr=False)
class SAMQ(Settings):
    """Configure ``search(…, method="samq")``: a controller trained by REINFORCE on a switchable network.

    The defaults are the authors' for CIFAR unless marked "ours".

    Args:
        epochs: Of the weights, on one half of the training images; each is followed by one of the controller on
            the other half, after the first `warmup`, whose bits are drawn uniformly.
        warmup: Epochs without the controller.
        rho: Radius of ε, the same for weights, controller and the final choice; 0.05 in plain units is ours, the
            authors' 0.4 is meant in normalised ones. Clips and steps get no ε (ours; the authors' activation clips do).
        metric: Units of `rho`: see `SAM`.
        lam: λ of the penalty ``λ·(BOPs - budget)²``, BOPs in millions; it punishes both sides. None = as much for the
            same relative deviation as the authors' 1e-4 at their 674 M (ours).
        beta: Weight of the entropy of the draws.
        lr: Of the weights, a tenth from 40 % of the epochs on, a hundredth from 60 % (ours:
            the authors drop it at 80 of their 100).
        weight_decay: Of the weights; never of quantizers (ours), and never of those that a step did not use.
        batch_size: Of both.
        generator_lr: Of the Adam of the controller (the paper's generator); its weight decay is the same
            number, as the authors have it.
        memory: Share of the old value in the baseline, a moving average (ours).
        share: Of the training images that the weights see; the split is drawn by the seed (ours).
        candidates: Configurations within the budget that are compared at the end.
        slack: They cost from (1 - slack)·budget to budget (ours; the authors' 10 M are 1.5 % of 674 M).
        tries: Draws until there are so many (ours; the authors draw for ever). If the controller met the window less
            often, its costliest configurations within the budget take the empty places, with a warning.

    Raises:
        ValueError: If a setting is out of range.

    Source: Liu et al., Sharpness-aware Quantization, first version (2021), released code.

    Example:
        >>> import saq_core
        >>> saq_core.SAMQ(epochs=6, warmup=1)
        SAMQ(epochs=6, warmup=1)
    """

    epochs: int = 100
    warmup: int = 10
    rho: float = 0.05
    metric: Metric = "plain"
    lam: float | None = None
    beta: float = 5e-3
    lr: float = 0.01
    weight_decay: float = 1e-4
    batch_size: int = 128
    generator_lr: float = 5e-4
    memory: float = 0.9
    share: float = 0.5
    candidates: int = 20
    slack: float = 0.02
    tries: int = 10_000

    def __post_init__(self) -> None:
        floats = ("rho", "lam", "beta", "lr", "weight_decay", "generator_lr")
        self._check(epochs=1, warmup=0, batch_size=1, candidates=1, tries=1, share="between 0 and 1")
        self._check(memory="from 0 to below 1", slack="from 0 to below 1", **dict.fromkeys(floats, ">= 0"))
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must be below epochs = {self.epochs}, else nothing is learned, got {self.warmup}")


class Search:
    """One run of SAMQ: the network, its optimizer, and the controller.

    Args:
        model: A float network, which is left as it is.
        data: Only its training images are used (and its probe, to calibrate).
        space: What can be chosen.
        budget: In bit operations.
        settings: See `SAMQ`.
        seed: Of everything that is drawn.
        quantizer: See `quantize`.
        criterion: What is minimised, cross-entropy by default.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        space: Space,
        budget: float,
        settings: SAMQ,
        seed: int,
        quantizer: QuantizerName,
        criterion: Criterion | None = None,
    ) -> None:
        self.space, self.budget, self.settings, self.seed = space, budget, settings, seed
        self.criterion = criterion or Criterion()
        self.network = Switchable(model, space, data, quantizer=quantizer)
        self.device = device_of(self.network.model)
        self.ours, self.held_out = halves(data, settings.share, seed, self.device)
        kept: Any = {"weight_decay": settings.weight_decay, "schedule": "steps"}
        self.recipe = Recipe(settings.epochs, settings.lr, settings.batch_size, **kept)
        sharp = SAQ(settings.rho, metric=settings.metric)
        self.sam = sharp.wrap(self.network.model, base_optimizer(self.network.model, self.recipe))
        self.controller = Controller(len(space.groups), len(space.candidates), seed=seed)
        self.reinforce = Reinforce(
            self.controller,
            lr=settings.generator_lr,
            weight_decay=settings.generator_lr,
            entropy_weight=settings.beta,
            memory=settings.memory,
        )

    def epoch(self, epoch: int) -> dict[str, float]:
        """Train the weights for an epoch, and after the warm-up the controller; return the means of both."""
        return self.weight_epoch(epoch) | (self.controller_epoch() if epoch >= self.settings.warmup else {})

    def weight_epoch(self, epoch: int) -> dict[str, float]:
        """Train the weights on their half for an epoch: SAQ, bits drawn anew per batch, the same in both passes."""
        per_epoch = steps_per_epoch(self.ours, self.recipe.batch_size)

        def step(k: int, batch: Any) -> Tensor:
            for group in self.sam.param_groups:
                group["lr"] = self.recipe.lr_at(k, per_epoch)
            self.network.choose_(self.draw(uniform=epoch < self.settings.warmup))
            return cast(Tensor, self.sam.step(partial(self.backward, [batch])))

        return descend(self.network.model, self.ours, self.recipe, self.seed, epoch, step)

    @torch.no_grad()
    def draw(self, *, uniform: bool) -> Tensor:
        """Return a choice (decisions,), drawn by the controller or uniformly."""
        controller = self.controller
        if uniform:
            return torch.randint(controller.candidates, (controller.decisions,), generator=controller.random)
        return controller()[0][0]

    def controller_epoch(self) -> dict[str, float]:
        """Train the controller on the other half for an epoch: one draw per batch, the network in evaluation mode.

        The host waits for the loss of every batch: the next draw depends on it.
        """
        rows = []
        with measurement_mode(self.network.model):
            for batch in self.held_out_batches():
                choice, log_probability, entropy = self.controller()
                self.network.choose_(choice[0])
                loss, bops = self.perturbed_loss(batch).cpu(), self.space.bops(choice)
                if not math.isfinite(loss):
                    rule = f"try a rho below {self.settings.rho} or an lr below {self.settings.lr}"
                    raise FloatingPointError(f"perturbed loss is {float(loss)}: {rule}")
                self.reinforce.update_(log_probability, entropy, loss + self.penalty(bops))
                rows.append(torch.stack([loss.double(), bops[0].double(), entropy[0].detach().double()]))
        return dict(zip(("perturbed_loss", "bops", "entropy"), torch.stack(rows).mean(0).tolist(), strict=True))

    def penalty(self, bops: Tensor) -> Tensor:
        """Return ``λ·(BOPs - budget)²``, BOPs in millions."""
        lam = self.settings.lam
        lam = PENALTY_AT_TARGET / (self.budget / MILLION) ** 2 if lam is None else lam
        return lam * ((bops.double() - self.budget) / MILLION).square()

    def held_out_batches(self) -> Iterator[Any]:
        """Yield the other half, in order."""
        batches = evaluation_batches(self.held_out, self.settings.batch_size, self.device)
        return brought_to(self.network.model, batches)

    def perturbed_loss(self, batch: Any) -> Tensor:
        """Return the loss of one batch at w + ε, with its own ε."""
        with self.sam.at_perturbed(partial(self.backward, [batch])), torch.no_grad():
            return batch_loss(self.network.model, batch, self.criterion).mean

    def backward(self, batches: Iterable[Any], summed: bool = False) -> Tensor:
        """Leave the gradient of the batches' losses in `.grad`, and nothing else; return their sum.

        With `summed` losses are sums over what they average: of many batches ε follows that of them all, whatever the
        length of the gradient.
        """
        self.sam.zero_grad()
        total = torch.zeros((), device=self.device)
        for batch in batches:
            result = batch_loss(self.network.model, batch, self.criterion)
            loss = result.mean * result.weight if summed else result.mean
            loss.backward()
            total = total + loss.detach()
        return total

    def sharpness(self, choice: Tensor) -> tuple[float, Evaluation]:
        """Return L(w + ε) - L(w) over the other half, with one ε for all of it, and the evaluation at w."""
        self.network.choose_(choice)
        model, size = self.network.model, self.settings.batch_size
        flat = evaluated(model, self.held_out, self.criterion, size)
        with measurement_mode(model), self.sam.at_perturbed(partial(self.backward, self.held_out_batches(), True)):
            return evaluated(model, self.held_out, self.criterion, size).loss - flat.loss, flat

    @torch.no_grad()
    def derive(self) -> Tensor:
        """Draw the configurations to be compared, all different, (n, decisions) with 1 <= n <= `candidates`."""
        count, slack = self.settings.candidates, self.settings.slack
        drawn = distinct(self.controller(self.settings.tries)[0])
        costs = self.space.bops(drawn)
        fits = costs <= self.budget
        inside = fits & (costs >= (1 - slack) * self.budget)
        if not fits.any():
            least = f"the cheapest of {self.settings.tries:,} draws costs {int(costs.min()) / MILLION:,.1f} M"
            rule = f"budget must be one that the controller meets, got {self.budget}"
            raise ValueError(f"{rule}: {least}; raise epochs, lam or tries")
        if int(inside.sum()) >= count:
            return drawn[inside][:count]
        order = costs.argsort(descending=True, stable=True)
        chosen = order[fits[order]][:count]
        lowest = f"the cheapest of {len(chosen)} that are compared costs {int(costs[chosen[-1]]) / MILLION:,.1f} M"
        rule = f"{int(inside.sum())} different draws lie within {slack:.1%} below the budget, not {count}"
        warnings.warn(f"{rule}: {lowest}; raise tries or epochs", stacklevel=2)
        return drawn[chosen]

    def found(self, checkpoint: Checkpoint) -> tuple[Tensor, dict[str, Any]]:
        """Make the epochs, compare what they lead to; return the choice of least sharpness and the history."""
        learned: Any = {"network": self.network.model, "sam": self.sam, "controller": self.controller}
        epochs = checkpoint.rows("epochs", self.settings.epochs, self.epoch, **learned, reinforce=self.reinforce)
        choices = self.derive()

        def compare(k: int) -> dict[str, Any]:
            delta_loss, flat = self.sharpness(choices[k])
            row: dict[str, Any] = {"bits": self.space.bits(choices[k]), "bops": int(self.space.bops(choices[k]))}
            return row | {"sharpness": delta_loss, "loss": flat.loss, "accuracy": flat.accuracy}

        compared = checkpoint.rows("compared", len(choices), compare)
        best = min(range(len(compared)), key=[row["sharpness"] for row in compared].__getitem__)
        return choices[best], {"epochs": epochs, "compared": compared, "settings": asdict(self.settings)}


def halves(data: Data, share: float, seed: int, device: torch.device) -> tuple[Data, Split]:
    """Return the data with a share of the training samples, and the rest as a split; both have the data's classes.

    Raises:
        ValueError: If one of them would be empty, or the samples come in batches already.
    """
    train, samples = data.train, samples_in(data.train)
    if samples is None:
        rule = "data must be tensors or a Dataset for method='samq', which divides the samples in two"
        raise ValueError(f"{rule}, got {type(train).__name__}")
    mixed = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    order = balanced_order(train[1].cpu(), seed, proportional=True) if data.num_classes else mixed
    count = round(share * samples)
    if not 0 < count < samples:
        raise ValueError(f"share must leave samples on both sides, got {share} of {samples}")
    first, second = (_rows(train, part, device) for part in (order[:count], order[count:]))
    return replace(data, train=first), second


def _rows(split: Split, rows: Tensor, device: torch.device) -> Split:
    if is_dataset(split):
        return Subset(split, rows.tolist())
    x, y = split
    chosen: Any = replace(x, paths=x.paths[rows.numpy()]) if isinstance(x, ImageFiles) else x[rows.to(x.device)]
    return chosen.to(device), y[rows.to(y.device)].to(device)


def distinct(drawn: Tensor) -> Tensor:
    """Return the distinct rows, in the order of their first occurrence."""
    return torch.tensor(list(dict.fromkeys(map(tuple, drawn.tolist()))))
