"""The steps of a training: its state, epoch by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from landscape.model import (
    BatchLoss,
    Criterion,
    call_of,
    check_default_fits,
    mapped,
    measurement_mode,
    samples_of,
    translated,
)

from .. import processes
from ..contexts import device_of, dtype_of, seeded
from ..data import Data, is_pair, mix, steps_per_epoch, training_batches
from ..fpq import Features, Student, Teacher, distilled_layers, feature_noise, teacher_of
from ..quantization import copy_model
from ..results import name_of
from ..sharpness import SAM
from .acceleration import compiled as _compiled
from .acceleration import lay_channels_last
from .evaluation import batch_loss, brought_to, evaluated
from .history import History
from .optimizers import base_optimizer, scheduler_of
from .recipes import Recipe
from .weights import Resetting, average_


class StopTraining(Exception):  # noqa: N818 - no error
    """Raise it in `on_epoch` or `on_step` to end a training early: everything is left as after the last epoch.

    In `on_step` the epoch ends with this step, is validated and counts. Under several processes all have to raise it.

    Example:
        >>> import torch, saq_core
        >>> def patient(state):
        ...     if state.epoch == 3:
        ...         raise saq_core.StopTraining
        >>> data = torch.randn(8, 3), torch.arange(8) % 2
        >>> recipe = saq_core.Recipe(epochs=100, lr=0.1)
        >>> len(saq_core.train(torch.nn.Linear(3, 2), data, recipe, on_epoch=patient).epochs)
        3
    """


@dataclass(frozen=True)
class TrainingState:
    """What `on_epoch` and `on_step` are given.

    Args:
        model: The network, in training mode during an epoch; its average, a copy, in `on_epoch` with `Recipe.ema`.
        optimizer: That of the steps, a `SAM` where the recipe has one.
        history: The epochs so far; in `on_epoch` the last row is that of this epoch.
        epoch: Number of the epoch, from 1.
        step: Number of the steps made, over all epochs.
        loss: Of the last step, on the device: reading it waits for the device.

    Example:
        >>> import torch, saq_core
        >>> def shown(state):
        ...     print(state.epoch, state.step, state.loss.isfinite().item())
        >>> data = torch.randn(8, 3), torch.arange(8) % 2
        >>> recipe = saq_core.Recipe(epochs=2, lr=0.1, batch_size=4)
        >>> history = saq_core.train(torch.nn.Linear(3, 2), data, recipe, on_epoch=shown)
        1 2 True
        2 4 True
    """

    model: nn.Module
    optimizer: Any
    history: History
    epoch: int
    step: int
    loss: Tensor


class Run:
    """One training: the state of every step.

    Args:
        model, data, recipe, criterion, teacher, on_step: See `saq_core.train`.
        stack: Takes what has to be undone at the end.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe: Recipe,
        criterion: Criterion,
        teacher: nn.Module | None,
        on_step: Callable[[TrainingState], Any] | None,
        stack: ExitStack,
    ) -> None:
        self.model, self.data, self.recipe, self.criterion = model, data, recipe, criterion
        self.on_step, self.history, self.stopped = on_step, History(), False
        arguments = criterion.arguments
        chosen = arguments["objective"] or arguments["loss"]
        kept = {"loss": chosen, "output": arguments["output"]}  # as a checkpoint knows them
        self.minimised = {key: name_of(value) if callable(value) else value for key, value in kept.items()}
        if isinstance(chosen, nn.Module):
            within = {id(p) for p in model.parameters()}
            own = [name for name, p in chosen.named_parameters() if p.requires_grad and id(p) not in within]
            if own:
                rule = f"loss must have no trainable parameters of its own, got {own[0]}"
                raise ValueError(f"{rule}: make it a part of the model, whose output may carry the loss, or freeze it")
        self.device, self.dtype = device_of(model), dtype_of(model)
        self.per_epoch = steps_per_epoch(data, recipe.batch_size, processes.size())
        # cross-entropy of labels that are known to lie in range
        self.is_plain = criterion.is_default and is_pair(data.train) and data.num_classes is not None
        has_images = self.is_plain and len(data.train[0].shape) == 4
        if (recipe.mix and not has_images) or (recipe.label_smoothing and not self.is_plain):
            named, inputs = ("mix", "images") if recipe.mix else ("label_smoothing", "inputs")
            rule = f"{named} belongs to cross-entropy of tensors ({inputs}, labels) with num_classes"
            raise ValueError(f"{rule}: leave loss, objective and output out, or {named}")
        self.layout = stack.enter_context(ExitStack())
        # tried on a batch: a network may ask for the other layout
        self.is_channels_last, self.is_tried = lay_channels_last(model, self.device, self.layout), False
        base, network = base_optimizer(model, recipe), model
        self.scheduler = scheduler_of(base, recipe, recipe.epochs * self.per_epoch)
        self.starts = [group["lr"] for group in base.param_groups]
        self.resetting = None if recipe.winq is None else Resetting(recipe.winq, model, recipe.seed)
        self.average = model if recipe.ema is None else copy_model(model)
        self.teacher = None
        compiled = self.device.type == "cuda" if recipe.compile is None else recipe.compile
        prepare = partial(_compiled, device=self.device) if compiled else lambda module: module
        if recipe.fpq is not None:
            stack.enter_context(feature_noise(model, recipe.fpq.p))
            if recipe.fpq.distill:
                if not criterion.has_output or not is_pair(data.train):
                    raise ValueError("fpq distills on tensors (inputs, targets) without objective: FPQ(distill=False)")
                names = distilled_layers(model)
                float_network = teacher_of(model, teacher, names)
                lay_channels_last(float_network, self.device, self.layout)
                self.teacher = Teacher(float_network, prepare(Features(float_network, names)))
                features = Features(model, names)
                stack.callback(features.close)
                network = Student(recipe.fpq, features)
        self.forward, self.no_sync = processes.parallel(prepare(network), model)
        self.optimizer = base if recipe.sam is None else recipe.sam.wrap(model, base, no_sync=self.no_sync)

    def tell(self, callback: Callable[[TrainingState], Any], model: nn.Module, *after: Any) -> Any:
        """Return what a callback says to the state after an epoch, step and loss; note where it stops the training."""
        try:
            return callback(TrainingState(model, self.optimizer, self.history, *after))
        except StopTraining:
            self.stopped = True

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train for one epoch, then validate; return the row of the table."""
        start = time.perf_counter()
        seed = self.recipe.seed * 1_000_003 + epoch  # by epoch, so that resuming needs no stored random state
        with seeded(seed + 7_919 * processes.rank(), self.device):  # dropout differs between processes
            rows, lr = self.steps(seed, epoch)
        processes.average_([rows])
        processes.agree_(self.model, self.average)
        rows = rows.cpu()
        steps, means = rows[:, 0], rows.mean(0).tolist()
        if not steps.isfinite().all():
            at = int((~steps.isfinite()).nonzero()[0])
            advice = f"try an lr below {self.recipe.lr}, or look at that batch: its inputs, and whether a target counts"
            raise FloatingPointError(f"training loss is {steps[at]} at step {at + 1} of epoch {epoch + 1}: {advice}")
        self.history.steps = torch.cat([self.history.steps, steps])
        names = ("accuracy", *self.criterion.metrics)
        row = {"epoch": epoch + 1, "loss": means[0], **dict(zip(names, means[1:], strict=True))}
        row |= self.validation(epoch) | {"lr": lr, "seconds": time.perf_counter() - start}
        row |= {name: float(value) for name, value in getattr(self.optimizer, "diagnostics", {}).items()}
        return {name: value for name, value in row.items() if "accuracy" not in name or not math.isnan(value)}

    def validation(self, epoch: int) -> dict[str, float]:
        """Return the columns of the validation split, if there is one."""
        if self.data.val is None:
            return {}
        self.criterion.checks_default = epoch == 0
        result = evaluated(self.average, self.data.val, self.criterion)
        if not math.isfinite(result.loss):
            where = f"after epoch {epoch + 1}: its last step destroyed the network"
            raise FloatingPointError(f"validation loss is {result.loss} {where}; try an lr below {self.recipe.lr}")
        metrics = {f"val_{name}": value for name, value in result.metrics.items()}
        return {"val_loss": result.loss, "val_accuracy": result.accuracy, **metrics}

    def steps(self, seed: int, epoch: int) -> tuple[Tensor, float]:
        """Return loss, accuracy and metrics of every step and the last lr, all without waiting for the device."""
        recipe, data, made = self.recipe, self.data, len(self.history.steps)
        self.model.train()
        # of the data, which every process draws alike; mixing needs numbers on the host
        generator, mixer = torch.Generator(self.device).manual_seed(seed), torch.Generator().manual_seed(seed)
        self.criterion.checks_default = epoch == 0  # waits for the device, once
        if isinstance(self.optimizer, SAM):
            self.optimizer.diagnostics = {}
        share: Any = {"epoch": epoch, "rank": processes.rank(), "world_size": processes.size()}
        rows: list[tuple[Tensor, ...]] = []
        batches, lr = training_batches(data, recipe.batch_size, generator=generator, **share), recipe.lr
        for k, batch in enumerate(brought_to(self.model, batches)):
            if self.is_channels_last:
                laid = mapped(batch, lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)
                self.is_channels_last = self.is_tried or self.takes(laid)
                batch, self.is_tried = laid if self.is_channels_last else batch, True
            lr = self.set_lr(epoch * self.per_epoch + k)
            if recipe.mix:
                batch = mix(batch[0], batch[1], cast(int, data.num_classes), recipe.mix, mixer)
            if self.teacher is not None:
                self.teacher.next_batch()
            first: list[BatchLoss] = []
            loss = self.step(partial(self.closure, batch, first), made + k)
            rows.append((loss, *_means(first)))
            self.criterion.checks_default = False
            if self.scheduler is not None:
                self.scheduler.step()
            if self.on_step is not None:
                self.tell(self.on_step, self.model, epoch + 1, made + k + 1, loss)
            if self.stopped:
                break
        return torch.stack([torch.stack(column).float() for column in zip(*rows, strict=True)], 1), lr

    def takes(self, batch: Any) -> bool:
        """Return whether network and loss take a batch that is laid out channels last; if not, undo that layout."""
        try:
            with measurement_mode(self.model), torch.no_grad():
                batch_loss(self.model, batch, self.criterion)
        except Exception as error:  # any other comes again in the step
            if "view size is not compatible" in str(error):
                self.layout.close()
                return False
        return True

    def set_lr(self, step: int) -> float:
        """Set the learning rate of a step, where the schedule has a name; return that of the first group."""
        groups, recipe = self.optimizer.param_groups, self.recipe
        if self.scheduler is None and (recipe.schedule != "constant" or step < recipe.warmup * self.per_epoch):
            for group, start in zip(groups, self.starts, strict=True):
                group["lr"] = recipe._lr_at(step, self.per_epoch, start)
        return float(groups[0]["lr"])

    def step(self, closure: Callable[..., Tensor], index: int) -> Tensor:
        """Make one step; return the loss of the first pass. The epoch's first step that has an ε is diagnosed."""
        if isinstance(self.optimizer, SAM):
            dtype = torch.bfloat16 if self.recipe.amp else torch.float32
            closure = partial(self.optimizer.passes, closure, diagnose=None if self.optimizer.diagnostics else dtype)
        with nullcontext() if self.resetting is None else self.resetting.noisy(index):
            loss = closure()
        self.optimizer.step()
        if self.resetting is not None:
            self.resetting.after(index)
        if self.recipe.ema is not None:
            average_(self.average, self.model, self.recipe.ema)
        return loss

    def closure(self, batch: Any, first: list[BatchLoss], share: float = 1.0) -> Tensor:
        """Leave the gradient on (a share of) the batch in `.grad`; return the loss; note results of the first pass."""
        self.optimizer.zero_grad()
        parts, is_first = self.parts(batch, share), not first
        together = processes.size() > 1 and not self.is_plain  # so that targets count alike in all processes
        rows = samples_of(batch) if len(parts) > 1 or together else None
        if len(parts) > 1 and is_first and self.criterion.checks_default:
            self.check_parts(batch)
        total: Any = 0
        weight: Any = 0
        for k, part in enumerate(parts):
            with nullcontext() if k == len(parts) - 1 else self.no_sync(), translated("a training step", self.model):
                result = self.loss_of(part, (share, k))
                if not result.mean.requires_grad:
                    raise ValueError(f"loss must depend on trainable weights, got {result.mean} without a gradient")
                factor = 1 if rows is None else result.weight / rows
                loss = result.mean if rows is None else result.mean * factor
                loss.backward()
            total, weight = total + loss.detach(), weight + factor
            if is_first:
                first.append(result)
        # targets that count, or losses, were not one per row; all processes go the same way
        if rows is not None and (together or isinstance(weight, Tensor) or abs(weight - 1) > 1e-9):
            total = total / self.divide_gradients(weight)
        return cast(Tensor, total)

    def divide_gradients(self, weight: float | Tensor) -> Tensor:
        """Divide all gradients by a weight, the mean over the processes; return it."""
        divisor = torch.as_tensor(weight, device=self.device, dtype=torch.float32).clone()
        processes.average_([divisor])
        tensors = [*self.model.parameters(), *self.model.buffers()]  # deltas of quantized weights too
        torch._foreach_div_([tensor.grad for tensor in tensors if tensor.grad is not None], divisor)
        return divisor

    def parts(self, batch: Any, share: float) -> list[Any]:
        """Return (a share of) a batch, cut into micro-batches."""
        if share == 1 and self.recipe.micro_batch is None:
            return [batch]
        samples = samples_of(batch)
        if samples is None:
            raise ValueError("micro_batch and policy 'subset' need batches with targets, (inputs, targets) or mappings")
        count = max(1, round(share * samples))
        size = self.recipe.micro_batch or count
        return [_rows(batch, samples, first, min(first + size, count)) for first in range(0, count, size)]

    def check_parts(self, batch: Any) -> None:
        """Raise if a loss of the user's own, of two micro-batches, is not the mean of those of each."""
        samples, size = cast(int, samples_of(batch)), cast(int, self.recipe.micro_batch)
        with measurement_mode(self.model), torch.no_grad():
            ends = (0, 2 * size), (0, size), (size, 2 * size)
            found = [batch_loss(self.model, _rows(batch, samples, *end), self.criterion) for end in ends]
        whole, *parts = (float(part.mean * part.weight) for part in found)
        if not math.isclose(whole, sum(parts), rel_tol=1e-2, abs_tol=1e-6 * float(found[0].weight)):
            rule = f"micro_batch needs a loss that is a mean over samples, got {whole:.6g} for {sum(parts):.6g}"
            raise ValueError(f"{rule}, times samples: class weights belong to nn.CrossEntropyLoss or to objective=")

    def loss_of(self, batch: Any, part: tuple[float, int]) -> BatchLoss:
        """Return the loss of a batch, or of the `part` of it of that name."""
        extra: Tensor | float = 0.0
        with torch.autocast(self.device.type, torch.bfloat16) if self.recipe.amp else nullcontext():
            if self.criterion.objective is not None:
                return BatchLoss(*self.criterion.objective(self.forward, batch))
            if self.teacher is not None:
                output, extra = self.forward(batch[0], self.teacher.of(batch[0], part))
            else:
                output = call_of(self.forward, batch)
        if self.is_plain and isinstance(output, Tensor) and output.ndim == 2:
            if self.criterion.checks_default:
                check_default_fits(output, batch[1])
            output = output.float() if self.recipe.amp else output
            result = self.cross_entropy(output, batch[1])
        else:
            result = self.criterion(output, batch, torch.float32 if self.recipe.amp else self.dtype)
        return result._replace(mean=result.mean + extra) if self.teacher is not None else result

    def cross_entropy(self, output: Tensor, y: Tensor) -> BatchLoss:
        """Return cross-entropy for labels that are known to lie in range, or for mixed ones."""
        labels = y if y.ndim == 1 else y.argmax(1)
        hits = (output.detach().argmax(1) == labels).float()
        loss = F.cross_entropy(output, y, label_smoothing=self.recipe.label_smoothing)
        return BatchLoss(loss, len(y), hits=hits, metrics=self.criterion.metrics_of(output, labels))


def _rows(batch: Any, samples: int, first: int, last: int) -> Any:
    """Return some samples of a batch."""

    def whole(part: Any) -> Any:
        if isinstance(part, PackedSequence):
            raise ValueError("micro_batch and policy 'subset' need batches that can be cut, got a PackedSequence")
        return part

    return mapped(batch, lambda t: t[first:last] if t.ndim and len(t) == samples else t, whole)


def _means(parts: list[BatchLoss]) -> tuple[Tensor, ...]:
    """Return accuracy, NaN where there is none, and metrics of a batch in parts."""
    hits = [part.hits for part in parts if part.hits is not None]
    counted = [part.counted for part in parts if part.counted is not None]
    if len(hits) < len(parts):
        accuracy = parts[0].mean.new_full((), math.nan)
    elif counted:
        counts = torch.cat(counted)
        accuracy = (torch.cat(hits) * counts).sum() / counts.sum().clamp_min(1)
    else:
        accuracy = (hits[0] if len(hits) == 1 else torch.cat(hits)).mean()
    weights = [part.weight for part in parts]
    columns = zip(*(part.metrics for part in parts), strict=True)
    return accuracy, *(sum(w * m.detach() for w, m in zip(weights, c, strict=True)) / sum(weights) for c in columns)
