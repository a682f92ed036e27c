"""Training and evaluation: one loop for float, quantized and sharpness-aware networks, on one process or many."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from landscape.checking import numbers
from landscape.model.errors import translated
from landscape.model.measuring import measurement_mode
from landscape.parallel import check_agreement

from .. import files, processes
from ..contexts import device_of, seeded
from ..data import Data, Split, check_split, evaluation_batches, mix, steps_per_epoch, training_batches
from ..fpq import Features, Student, Teacher, distilled_layers, feature_noise, teacher_of
from ..sharpness import SAM
from .groups import split
from .history import History
from .recipes import Recipe

Snapshots = Literal[None, "epoch"]


class Evaluation(NamedTuple):
    """Mean loss and accuracy (0 to 1) over a split, with the standard errors of both."""

    loss: float
    accuracy: float
    loss_stderr: float
    accuracy_stderr: float


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 128) -> Evaluation:
    """Return mean cross-entropy and accuracy of `model` on a split, in evaluation mode.

    Under several processes each takes its own samples, and all return the same.

    Args:
        model: Returns logits (n, classes); the mode of every module is restored.
        split: `data.test` or `data.val`, or inputs (n, …) and labels (n,) on any device.
        batch_size: Samples per forward pass.

    Raises:
        ValueError: If the split is no pair of tensors, is empty, or has a label out of range.

    Cost: one forward pass over the split.

    Example:
        >>> import torch, saq_core
        >>> model = torch.nn.Linear(4, 3)
        >>> result = saq_core.evaluate(model, (torch.randn(9, 4), torch.arange(9) % 3))
        >>> 0 <= result.accuracy <= 1 and result.loss > 0
        True
    """
    check_agreement(**locals())
    numbers(whole=True, at_least=1, batch_size=batch_size)
    check_split(split, "split", None)
    if len(split[1]) < processes.size():
        raise ValueError(f"split must hold at least one sample per process, got {len(split[1])}")
    return _evaluated(model, split, batch_size)


@torch.no_grad()
def _evaluated(model: nn.Module, split: Split, batch_size: int = 128) -> Evaluation:
    device = device_of(model)
    outputs, labels = [], []
    with measurement_mode(model):
        share = {"rank": processes.rank(), "world_size": processes.size()}
        for x, y in evaluation_batches(split, batch_size, device, **share):
            with translated("the forward pass of the model on this split", model):
                outputs.append(model(x))
            labels.append(y)
    output, y = torch.cat(outputs), torch.cat(labels)
    if not 0 <= int(y.min()) <= int(y.max()) < output.shape[1]:
        raise ValueError(f"labels must lie in 0 … {output.shape[1] - 1}, got {int(y.min())} … {int(y.max())}")
    losses, hits = F.cross_entropy(output, y, reduction="none"), (output.argmax(1) == y).to(output.dtype)
    rows = torch.stack([losses, hits]).double()
    total = processes.sum_(torch.cat([rows.sum(1), rows.new_full((1,), len(y))]))
    mean = total[:2] / total[2]
    spread = processes.sum_((rows - mean[:, None]).square().sum(1))
    return Evaluation(*mean.tolist(), *(spread.sqrt() / total[2]).tolist())


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    on_epoch: Callable[[nn.Module, History], Any] | None = None,
    snapshots: Snapshots = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    teacher: nn.Module | None = None,
) -> History:
    """Train `model` in place; return its history.

    It leaves `model.probe` (the images on which its landscape is measured), `model.recipe` and `model.history`, and the
    model in evaluation mode. The global random state is left as it was. Under torchrun every process calls it with the
    same arguments; each computes its share of every batch, and the first one writes the files.

    Args:
        model: A network that returns logits; a quantized one has to be calibrated.
        data: Moved to the model's device if it lies elsewhere.
        recipe: How to train.
        on_epoch: Called after every epoch with the model and the history so far; a dict it returns becomes columns of
            the table, anything else the column "on_epoch".
        snapshots: "epoch" keeps the weights and buffers of every epoch in `history.snapshots`.
        checkpoint: File that is written after every epoch; if it exists, training resumes from it, to the numbers of an
            uninterrupted training (on a CPU in float32). Results of `on_epoch` are kept as far as they consist of
            numbers, texts and tensors.
        log: File for the table as JSON lines, written after every epoch.
        teacher: Float network of the same layers, for a recipe that distills; None takes `model` as it comes, without
            quantizers and with its latent weights. It is left as it is; a resumed training has that of its checkpoint.

    Raises:
        RuntimeError: If activations are not calibrated.
        FloatingPointError: At the end of the epoch in which a loss, or the network itself, became NaN or infinite.
        ValueError: If `data` is no `Data`, if the processes cannot share a batch, if the checkpoint belongs to another
            recipe or network or lacks the snapshots asked for, or if there is a teacher but no distillation.

    Cost: per step one forward and backward pass, two with `Recipe.sam`, and a forward pass of the teacher if distilled.

    Example:
        >>> import saq_core
        >>> data = saq_core.load_data("digits", limit=64, device="cpu")
        >>> model = saq_core.build_model("resnet8", data)
        >>> history = saq_core.train(model, data, saq_core.Recipe(epochs=1, lr=0.1, batch_size=32))
        >>> len(history.steps), model.probe[0].shape
        (2, torch.Size([64, 1, 8, 8]))
    """
    checkpoint = None if checkpoint is None else Path(checkpoint)
    check_agreement(**locals())  # else gradients of different trainings would be averaged
    if teacher is not None and not (recipe.fpq and recipe.fpq.distill):
        raise ValueError("recipe must have fpq=FPQ(distill=True) for a teacher, got one that distills nothing")
    probe, data = data.probe, data.to(device_of(model))
    with ExitStack() as stack:
        stack.callback(model.eval)
        run = _Run(model, data, recipe, teacher, stack)
        history = History()
        if checkpoint is not None and checkpoint.exists():
            history = _resume(checkpoint, run, snapshots)
        cast(Any, model).probe, cast(Any, model).recipe, cast(Any, model).history = probe, recipe, history
        for epoch in processes.bar(range(len(history.epochs), recipe.epochs), "training"):
            row = run.epoch(epoch, history)
            history.epochs.append(row)
            if snapshots:
                history.snapshots.append(_snapshot(model))
            if on_epoch is not None:
                result = on_epoch(model, history)
                row.update(result if isinstance(result, dict) else {} if result is None else {"on_epoch": result})
            if checkpoint is not None:
                _store(checkpoint, run, history)
            if log is not None and processes.rank() == 0:
                history.write_lines(log)
            processes.wait()
    return history


class _Run:
    """One training: the state of every step."""

    def __init__(
        self, model: nn.Module, data: Data, recipe: Recipe, teacher: nn.Module | None, stack: ExitStack
    ) -> None:
        self.model, self.data, self.recipe, self.device = model, data, recipe, device_of(model)
        base, network = base_optimizer(model, recipe), model
        self.teacher = None
        compiled = self.device.type == "cuda" if recipe.compile is None else recipe.compile
        prepare = partial(_compiled, device=self.device) if compiled else lambda module: module
        if recipe.fpq is not None:
            stack.enter_context(feature_noise(model, recipe.fpq.p))
            if recipe.fpq.distill:
                names = distilled_layers(model)
                float_network = teacher_of(model, teacher, names)
                self.teacher = Teacher(float_network, prepare(Features(float_network, names)))
                features = Features(model, names)
                stack.callback(features.close)
                network = Student(recipe.fpq, features)
        self.forward, self.no_sync = processes.parallel(prepare(network), model)
        self.optimizer = base if recipe.sam is None else recipe.sam.wrap(model, base, no_sync=self.no_sync)

    def epoch(self, epoch: int, history: History) -> dict[str, Any]:
        """Train for one epoch, then validate; return the row of the table."""
        start = time.perf_counter()
        seed = self.recipe.seed * 1_000_003 + epoch  # by epoch, so that resuming needs no stored random state
        with seeded(seed + 7_919 * processes.rank(), self.device):  # dropout differs between processes
            losses, hits, lr = self.steps(seed, epoch)
        processes.average_([losses, hits])
        processes.agree_(self.model)
        steps = losses.cpu()
        if not steps.isfinite().all():
            at = int((~steps.isfinite()).nonzero()[0])
            where = f"at step {at + 1} of epoch {epoch + 1}"
            raise FloatingPointError(f"training loss is {float(steps[at])} {where}: try an lr below {self.recipe.lr}")
        history.steps = torch.cat([history.steps, steps])
        validation = _evaluated(self.model, self.data.val)
        if not math.isfinite(validation.loss):
            where = f"after epoch {epoch + 1}: its last step destroyed the network"
            raise FloatingPointError(f"validation loss is {validation.loss} {where}; try an lr below {self.recipe.lr}")
        diagnostics = self.optimizer.diagnostics if isinstance(self.optimizer, SAM) else {}
        return {
            "epoch": epoch + 1,
            "loss": float(steps.mean()),
            "accuracy": float(hits.mean()),
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
            "lr": lr,
            "seconds": time.perf_counter() - start,
            **{name: float(value) for name, value in diagnostics.items()},
        }

    def steps(self, seed: int, epoch: int) -> tuple[Tensor, Tensor, float]:
        """Return loss and accuracy of every step and the last lr, all without waiting for the device."""
        recipe, data = self.recipe, self.data
        self.model.train()
        # of the data, which every process draws alike; mixing needs numbers on the host
        generator, mixer = torch.Generator(self.device).manual_seed(seed), torch.Generator().manual_seed(seed)
        per_epoch = steps_per_epoch(data, recipe.batch_size)
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        lr = recipe.lr
        if isinstance(self.optimizer, SAM):
            self.optimizer.diagnostics = {}
        batches = training_batches(
            data, recipe.batch_size, generator=generator, rank=processes.rank(), world_size=processes.size()
        )
        for k, (x, y) in enumerate(batches):
            lr = recipe.lr_at(epoch * per_epoch + k, per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            if recipe.mix:
                x, y = mix(x, y, data.num_classes, recipe.mix, mixer)
            if self.teacher is not None:
                self.teacher.next_batch()
            first: list[Tensor] = []
            loss = self.step(partial(self.closure, x, y, first))
            losses.append(loss.float())
            hits.append(torch.cat(first).mean())
        return torch.stack(losses), torch.stack(hits), lr

    def step(self, closure: Callable[..., Tensor]) -> Tensor:
        """Make one step; return the loss of the first pass. The epoch's first step that has an ε is diagnosed."""
        if isinstance(self.optimizer, SAM):
            dtype = torch.bfloat16 if self.recipe.amp else torch.float32
            return self.optimizer.step(closure, diagnose=None if self.optimizer.diagnostics else dtype)
        loss = closure()
        self.optimizer.step()
        return loss

    def closure(self, x: Tensor, y: Tensor, first: list[Tensor], share: float = 1.0) -> Tensor:
        """Leave the gradient on (a share of) the batch in `.grad`; return the loss; note hits of the first pass."""
        self.optimizer.zero_grad()
        rows = max(1, round(share * len(x)))
        size = self.recipe.micro_batch or rows
        parts = list(zip(x[:rows].split(size), y[:rows].split(size), strict=True))
        first_pass, total = not first, x.new_zeros(())
        for k, (a, b) in enumerate(parts):
            with self.no_sync() if k < len(parts) - 1 else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp):
                    output, extra = self.pass_through(a, (rows, k))
                output = output.float() if self.recipe.amp else output
                loss = F.cross_entropy(output, b, label_smoothing=self.recipe.label_smoothing) + extra
                loss = loss if len(parts) == 1 else loss * (len(a) / rows)
                loss.backward()
            total = total + loss.detach()
            if first_pass:
                labels = b if b.ndim == 1 else b.argmax(1)
                first.append((output.detach().argmax(1) == labels).float())
        return total

    def pass_through(self, x: Tensor, part: tuple[int, int]) -> tuple[Tensor, Tensor | float]:
        """Return the output and the further terms of the objective; `part` names these rows of the batch."""
        if self.teacher is None:
            return self.forward(x), 0.0
        return self.forward(x, self.teacher.of(x, part))


def base_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the plain optimizer of a recipe over a model; parameters of quantizers do not decay."""
    groups = split(model, recipe.weight_decay, lambda kind, _: kind not in ("weight_step", "input_step"))
    optimizer: Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    else:
        nesterov = recipe.nesterov and recipe.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
    if recipe.clip_norm is not None:
        trained = [p for group in groups for p in group["params"]]

        def clip(*_: Any) -> None:
            nn.utils.clip_grad_norm_(trained, cast(float, recipe.clip_norm))

        optimizer.register_step_pre_hook(clip)
    return optimizer


def _compiled(model: nn.Module, device: torch.device) -> nn.Module:
    try:
        torch.compile(lambda t: t.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a missing compiler raises differs between platforms
        warnings.warn(f"no working compiler, training runs eager: {str(error).splitlines()[0]}", stacklevel=3)
        return model
    # Else all networks of a process share one small number of compiled versions: later ones run eager, and one with
    # hooks runs silently as the one before it without.
    isolated: dict[str, Any] = {"isolate_recompiles": True}
    if "isolate_recompiles" not in signature(torch.compile).parameters:  # torch 2.11
        isolated, torch._dynamo.config.skip_nnmodule_hook_guards = {}, False
    return cast(Any, torch.compile(model, dynamic=False, **isolated))


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def _store(path: str | Path, run: _Run, history: History) -> None:
    optimizer = run.optimizer.state_dict()
    own = processes.gather(optimizer.pop("sam", None))  # what each process remembers of its ε
    content: Any = {"recipe": asdict(run.recipe), "history": history.state(), "model": run.model.state_dict()}
    content |= {"optimizer": optimizer, "sam": own}
    if run.teacher is not None:
        content["teacher"] = run.teacher.network.state_dict()
    if processes.rank() == 0:
        files.write(path, "training", content)


def _resume(path: str | Path, run: _Run, snapshots: str | None) -> History:
    model, recipe = run.model, run.recipe
    content = files.read(path, "training", run.device)
    files.check_same_settings(path, asdict(Recipe.from_dict(content["recipe"])), asdict(recipe), "recipe")
    history = History.from_state(content["history"])
    count, epochs = len(history.snapshots), len(history.epochs)
    if snapshots and count != epochs:
        raise ValueError(
            f"checkpoint {path} must hold a snapshot of each of its {epochs} epochs when snapshots={snapshots!r}, "
            f"got {count}: go on with snapshots=None, or delete it"
        )
    files.check_same_network(model, content["model"], path)
    if any(parts := content.get("sam", ())):
        content["optimizer"]["sam"] = parts[processes.rank() % len(parts)]
    run.optimizer.load_state_dict(content["optimizer"])  # first, because it may refuse
    model.load_state_dict(content["model"])
    if run.teacher is not None:  # of the model as it came then, not as it comes now
        run.teacher.network.load_state_dict(content["teacher"])
    return history
