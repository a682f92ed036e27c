"""What a loss averages: which targets count, and what one batch contributes to the whole."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Any, Any], Tensor]
Output = str | int | Callable[[Any], Any]
_MODULES = ((F.cross_entropy, nn.CrossEntropyLoss), (F.nll_loss, nn.NLLLoss))


class BatchLoss(NamedTuple):
    """The loss of one batch: its mean and weight; what is known of its samples.

    Attributes:
        mean: the loss, whose product with ``weight`` adds up over the batches.
        weight: of the batch; divided by the sum of all in the end.
        losses: (n,) of each sample, where they are known.
        shares: (n,) weights of the samples, which sum to ``weight``: how many of a sample's targets count.
        hits: (n,) share of a sample's targets that are right.
        counted: (n,) how many of a sample's targets have a label.
        metrics: one mean for each metric.
    """

    mean: Tensor
    weight: Any
    losses: Tensor | None = None
    shares: Tensor | None = None
    hits: Tensor | None = None
    counted: Tensor | None = None
    metrics: tuple[Tensor, ...] = ()

    @property
    def total(self) -> Tensor:
        """The mean times the weight, which is a constant: no device is waited for to read it."""
        if not isinstance(self.weight, Tensor):
            return self.mean * float(self.weight)
        return self.mean * self.weight.detach().to(self.mean.dtype).reshape(())

    def scaled(self, factor: float) -> BatchLoss:
        """Return the loss times a factor."""
        return self._replace(mean=factor * self.mean, losses=None if self.losses is None else factor * self.losses)


class CrossEntropy:
    """Cross-entropy and negative log-likelihood, target by target: ignored ones count nowhere, classes by weight.

    Values per sample (``reduction="none"``) are averaged as PyTorch's own mean averages them.

    Args:
        loss: None for the default, ``nn.CrossEntropyLoss``, ``nn.NLLLoss``, or a function of them (with its arguments
            bound by `functools.partial`).
    """

    def __init__(self, loss: nn.CrossEntropyLoss | nn.NLLLoss) -> None:
        self.is_sum = loss.reduction == "sum"
        self._ignored = loss.ignore_index
        self._each: Any = copy.deepcopy(loss)
        self._each.reduction = "none"

    @staticmethod
    def of(loss: Any) -> CrossEntropy | None:
        """Return the loss as one of this kind, None if it is another; None stands for the default."""
        loss = F.cross_entropy if loss is None else loss
        bound = isinstance(loss, functools.partial) and not loss.args
        function, arguments = (loss.func, loss.keywords) if bound else (loss, {})
        kind = next((module for known, module in _MODULES if function is known), None)
        loss = kind(**arguments) if kind else loss
        return CrossEntropy(loss) if type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss) else None

    def __call__(self, output: Tensor, target: Tensor, *, with_hits: bool = True) -> BatchLoss:
        """Return the loss of a batch, and which answers are right."""
        labels = not target.is_floating_point()
        if output.dtype in (torch.bfloat16, torch.float16):  # whose means would be rounded to a hundredth
            output, target = output.float(), target if labels else target.float()
        target = target.long() if labels else target
        losses = self._each.to(output.device, output.dtype)(output, target)
        counted = (target != self._ignored) if labels else torch.ones_like(losses, dtype=torch.bool)
        shares = counted.to(losses.dtype)
        if labels and self._each.weight is not None:
            shares = self._each.weight[torch.where(counted, target, 0)] * shares
        total, hits, tiny = shares.sum(), None, torch.finfo(losses.dtype).tiny
        mean = losses.sum() / total.clamp_min(tiny)
        of_losses, of_shares, labelled = map(_of_samples, (losses, shares, counted))
        if labels and with_hits:
            hits = _of_samples((output.argmax(1) == target) & counted) / labelled.clamp_min(1)
        return BatchLoss(mean, total, of_losses / of_shares.clamp_min(tiny), of_shares, hits, labelled)

    @classmethod
    def by_token(cls, logits: Any, labels: Tensor, shifted: bool) -> BatchLoss:
        """Return the cross-entropy of (n, …, classes) logits, of the next token where the labels are shifted."""
        logits, labels = (logits[:, :-1], labels[:, 1:]) if shifted else (logits, labels)
        return cls(nn.CrossEntropyLoss())(logits.movedim(-1, 1), labels)


def _of_samples(values: Tensor) -> Tensor:
    """Return the sum over all targets of each sample."""
    if values.ndim > 1:
        return values.flatten(1).sum(1)
    return values.long() if values.dtype == torch.bool else values


def loss_carried_by(output: Any) -> tuple[Tensor, Any] | None:
    """Return the loss that a network's output carries, and its logits; None where there is none."""
    get: Any = output.get if isinstance(output, Mapping) else functools.partial(getattr, output)
    loss = None if isinstance(output, Tensor) else get("loss", None)
    return (loss, get("logits", None)) if isinstance(loss, Tensor) else None


def batch_loss_carried(loss: Tensor | None, logits: Any, target: Any, alignment: str) -> BatchLoss:
    """Return the loss that an output carries, over the targets that count where it is known how it comes about.

    Raises:
        ValueError: there are logits alone, and it is not known.
    """
    if alignment == "unknown":
        if loss is None:
            raise ValueError(
                "the network computes its loss itself, and not as the cross-entropy of its logits: pass loss=loss("
                "output, target), and output= for the part that it is given"
            )
        return value_of(loss, len(target) if isinstance(target, Tensor) and target.ndim else None)
    return CrossEntropy.by_token(logits, target, alignment == "shifted")


def alignment_of(loss: Tensor, logits: Any, labels: Any) -> str:
    """Return how the loss that an output carries comes from its logits: ``"aligned"``, ``"shifted"`` or ``"unknown"``.

    Causal language models shift their labels by one token; classifiers and masked models do not.
    """
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and isinstance(logits, Tensor)
    if not whole or logits.ndim != labels.ndim + 1 or logits.shape[:-1] != labels.shape:
        return "unknown"
    rtol = 1e-7 if loss.dtype == torch.float64 else 1e-3
    for name in ("aligned", "shifted") if labels.ndim > 1 else ("aligned",):
        computed = CrossEntropy.by_token(logits.detach(), labels, name == "shifted").mean
        if torch.allclose(computed.double(), loss.detach().double(), rtol=rtol):
            return name
    return "unknown"


def value_of(value: Any, samples: int | None, name: str = "loss") -> BatchLoss:
    """Return what a loss of the user's own gave: one value for each sample (and its tokens or pixels), or a mean.

    Raises:
        TypeError: no tensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}(output, target) must return a tensor, got {type(value).__name__}")
    if value.ndim and (len(value) == samples or (samples is None and value.ndim == 1 and len(value) > 1)):
        each = value.reshape(len(value), -1).mean(1)
        return BatchLoss(each.mean(), len(each), each)
    return BatchLoss(value.mean(), (value.numel() if value.numel() > 1 else samples) or 1)


def with_hits(result: BatchLoss, output: Any, target: Any) -> BatchLoss:
    """Count right answers beside a loss of another kind: of (n, classes) outputs, with one label each."""
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)) or target.is_floating_point():
        return result
    if output.ndim != 2 or output.shape[1] == 1 or target.ndim != 1 or len(output) != len(target):
        return result
    counted = (target >= 0) & (target < output.shape[1])
    return result._replace(hits=(output.argmax(1) == target).to(counted), counted=counted)


def part_of(output: Any, which: Output | None, default: bool) -> Any:
    """Return the part of a network's output that the loss is given: the one asked for, or the logits by default."""
    if which is not None:
        if callable(which):
            return which(output)
        try:
            return output[which] if isinstance(which, int) or isinstance(output, Mapping) else getattr(output, which)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            got = type(output).__name__
            raise ValueError(f"output must be part of what the network returns, a {got}, got {which!r}") from error
    if not default or isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, list | tuple) and output and isinstance(output[0], Tensor) else output


def check_default_fits(output: Any, target: Any) -> None:
    """Raise where cross-entropy is not the loss that outputs and targets call for.

    Raises:
        ValueError: with the loss to pass.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise ValueError(
            f"the default loss needs logits, got {type(output).__name__}: say which part with output=, or pass loss="
        )
    if not isinstance(target, Tensor):
        raise ValueError(f"the default loss needs a tensor of labels, got {type(target).__name__}: pass loss=")
    shapes = f"outputs of shape {tuple(output.shape)} and {str(target.dtype)[6:]} targets of {tuple(target.shape)}"
    advice = _fitting_loss(output, target)
    if advice:
        raise ValueError(f"the default loss, cross-entropy, does not fit {shapes}: {advice}")


def check_labels(target: Tensor, classes: int) -> None:
    """Raise if a label is outside [0, classes) and not to be ignored, -100."""
    labels = target[target != -100]
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0…{classes - 1} for {classes} outputs, got {low}…{high}")


def _are_probabilities(rows: Tensor, atol: float) -> bool:
    sums = rows.sum(1)
    return bool((rows >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=atol)


def _fitting_loss(output: Tensor, target: Tensor) -> str:
    """Return the loss that fits better than cross-entropy, empty where it fits."""
    if not output.ndim:
        return "the network returns one number; if that is its loss, pass loss=lambda output, target: output"
    if output.ndim == 1 and target.ndim == 0:
        return "a batch is one sample without a dimension for the batch; pass torch.utils.data.DataLoader(data)"
    classes = output.shape[1] if output.ndim > 1 else 1
    several = "pass loss=torch.nn.BCEWithLogitsLoss() for labels of several classes"
    if target.is_floating_point():
        if classes > 1 and output.shape == target.shape and _are_probabilities(target, 1e-3):
            return ""
        binary = bool(((target == 0) | (target == 1)).all())
        rows = " (their rows are no probabilities)" if classes > 1 else ""
        return f"{several}{rows}" if binary else f"pass loss=torch.nn.MSELoss() for a regression{rows}"
    if target.dtype == torch.bool:
        return several
    if classes == 1:
        return "it is zero for one class; pass loss=torch.nn.BCEWithLogitsLoss() with float targets of the same shape"
    if target.shape == output.shape[:1] + output.shape[2:]:
        check_labels(target, classes)
        if _are_probabilities(output, 1e-5):
            return (
                "these outputs are probabilities already; pass loss=lambda output, target: "
                "torch.nn.functional.nll_loss(output.log(), target)"
            )
        return ""
    if output.ndim > 2 and target.shape == output.shape[:-1]:
        return (
            "pass loss=lambda output, target: torch.nn.functional.cross_entropy(output.flatten(0, -2), "
            "target.flatten()) where the classes come last"
        )
    return "pass loss=loss(output, target)"
