"""Training and evaluation: one loop for float, quantized and sharpness-aware networks."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from . import files
from .data import Data, Split, device_of, evaluation_mode, training_batches
from .sam import SAM, SAQ

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEDULES = ("cosine", "constant")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Recipe:
    """Say how a network is trained.

    Args:
        epochs: Passes over the training split.
        lr: Learning rate at the start.
        batch_size: Samples per step.
        momentum: Of "sgd".
        nesterov: Of "sgd"; without effect where momentum is 0.
        weight_decay: On every parameter except the steps and clips of quantizers (a decayed clip keeps shrinking).
        optimizer: "sgd" or "adamw".
        schedule: "cosine" (to 0 over all steps) or "constant".
        sam: Sharpness-aware, or None for the plain optimizer at the price of one pass per step.
        amp: Forward passes in bfloat16; it swallows most of a small SAM perturbation (see `received_cosine`).
        compile: Compile the forward pass; None = on a GPU only.
        seed: Of shuffling, augmentation and dropout.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    optimizer: str = "sgd"
    schedule: str = "cosine"
    sam: SAQ | None = None
    amp: bool = False
    compile: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be >= 0 and finite, got {value!r}")
        for name, known in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {list(known)}, got {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from `dataclasses.asdict`."""
        return cls(**{**stored, "sam": SAQ(**stored["sam"]) if stored["sam"] else None})


@dataclass
class History:
    """What a training left behind.

    Args:
        epochs: One row per epoch: epoch, loss, accuracy, val_loss, val_accuracy, lr, seconds, SAM's diagnostics on the
            epoch's first step, and what `on_epoch` returned.
        steps: Loss of every step, (steps,).
        snapshots: Name -> tensor on the CPU after every epoch, where they were asked for.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: Tensor = field(default_factory=lambda: torch.empty(0))
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def table(self) -> DataFrame:
        """The epochs as a pandas table."""
        from pandas import DataFrame

        return DataFrame(self.epochs)

    def state(self) -> dict[str, Any]:
        """Return it as tensors and primitives."""
        return {"epochs": files.storable(self.epochs), "steps": self.steps, "snapshots": self.snapshots}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """Rebuild it from `state`, on the CPU."""
        snapshots = [{name: value.cpu() for name, value in one.items()} for one in state["snapshots"]]
        return cls(state["epochs"], state["steps"].cpu(), snapshots)

    def __repr__(self) -> str:
        last = self.epochs[-1] if self.epochs else {}
        shown = ", ".join(f"{key}={last[key]:.4g}" for key in ("loss", "val_loss", "val_accuracy") if key in last)
        return f"History({len(self.epochs)} epochs{', last: ' + shown if shown else ''})"


class Evaluation(NamedTuple):
    """Mean loss and accuracy (0 to 1) over a split, with the standard errors of both."""

    loss: float
    accuracy: float
    loss_stderr: float
    accuracy_stderr: float


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, *, batch_size: int = 128) -> Evaluation:
    """Return mean cross-entropy and accuracy of `model` on a split, in evaluation mode.

    Args:
        model: Returns logits (n, classes); the mode of every module is restored.
        split: Inputs (n, …) and labels (n,), on any device.
        batch_size: Samples per forward pass.

    Raises:
        ValueError: If the split is no pair of tensors, is empty, or has a label out of range.

    Cost: one forward pass over the split.
    """
    if not isinstance(split, tuple | list) or len(split) != 2 or not all(isinstance(part, Tensor) for part in split):
        raise ValueError(f"split must be two tensors (x, y), got {type(split).__name__}: pass data.test or data.val")
    x, y = split
    if len(x) == 0:
        raise ValueError("split must hold at least one sample, got none")
    device = device_of(model)
    with evaluation_mode(model):
        outputs = torch.cat([model(rows.to(device)) for rows in x.split(batch_size)])
    y = y.to(device)
    if not 0 <= int(y.min()) <= int(y.max()) < outputs.shape[1]:
        raise ValueError(f"labels must lie in 0 … {outputs.shape[1] - 1}, got {int(y.min())} … {int(y.max())}")
    losses, hits = F.cross_entropy(outputs, y, reduction="none"), (outputs.argmax(1) == y).to(outputs.dtype)
    stderr = [float(v.std(correction=0)) / len(x) ** 0.5 for v in (losses, hits)]
    return Evaluation(float(losses.mean()), float(hits.mean()), *stderr)


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    on_epoch: Callable[[nn.Module, History], Any] | None = None,
    snapshots: str | None = None,
    checkpoint: str | Path | None = None,
) -> History:
    """Train `model` in place; return its history.

    Leaves `model.probe` (the images on which its landscape is measured), `model.recipe` and `model.history`, and the
    model in evaluation mode. The global random state is left as it was.

    Args:
        model: A network that returns logits; a quantized one has to be calibrated.
        data: Moved to the model's device if it lies elsewhere.
        recipe: How to train.
        on_epoch: Called after every epoch with the model and the history so far; a dict it returns becomes columns of
            the table, anything else the column "on_epoch".
        snapshots: "epoch" keeps the weights and buffers of every epoch in `history.snapshots`.
        checkpoint: File that is written after every epoch; if it exists, training goes on where it ended, to the
            numbers of an uninterrupted training (on a CPU in float32). What `on_epoch` returned is kept as far as it
            is made of numbers, texts and tensors.

    Raises:
        RuntimeError: If activations are not calibrated.
        FloatingPointError: At the end of the epoch in which a loss was NaN or infinite.
        ValueError: If `data` is no `Data`, or if the checkpoint belongs to another recipe or network or lacks the
            snapshots of its epochs where they are asked for.
    """
    from tqdm.auto import tqdm

    if snapshots not in (None, "epoch"):
        raise ValueError(f'snapshots must be None or "epoch", got {snapshots!r}')
    if not isinstance(data, Data):
        remedy = "Data(train=(x, y), val=…, test=…, num_classes=…)"
        raise ValueError(f"data must be a saq_core.Data, got {type(data).__name__}: make it with {remedy}")
    device = device_of(model)
    probe, data = data.probe, _moved(data, device)
    optimizer = _make_optimizer(model, recipe)
    forward = _compiled(model, device) if _wants_compile(recipe, device) else model
    history = History()
    if checkpoint is not None and Path(checkpoint).exists():
        history = _resume(checkpoint, model, optimizer, recipe, snapshots)
    cast(Any, model).probe, cast(Any, model).recipe, cast(Any, model).history = probe, recipe, history
    try:
        off = "TQDM_DISABLE" in os.environ  # tqdm's bars for notebooks do not ask for its own switch
        left = range(len(history.epochs), recipe.epochs)
        for epoch in tqdm(left, desc="training", delay=2, leave=False, disable=off):
            row = _run_epoch(model, forward, optimizer, data, recipe, epoch, history)
            history.epochs.append(row)
            if snapshots:
                history.snapshots.append(_snapshot(model))
            if on_epoch is not None:
                result = on_epoch(model, history)
                row.update(result if isinstance(result, dict) else {} if result is None else {"on_epoch": result})
            if checkpoint is not None:
                _store(checkpoint, model, optimizer, recipe, history)
    finally:
        model.eval()
    return history


def _run_epoch(
    model: nn.Module,
    forward: Callable[..., Any],
    optimizer: Optimizer | SAM,
    data: Data,
    recipe: Recipe,
    epoch: int,
    history: History,
) -> dict[str, Any]:
    """Train for one epoch, then validate; return the row of the table."""
    start = time.perf_counter()
    device = data.train[0].device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(recipe.seed * 1_000_003 + epoch)  # by epoch, so that resuming needs no stored random state
        losses, accuracy, lr = _run_steps(model.train(), forward, optimizer, data, recipe, epoch)
    steps = losses.cpu()
    if not steps.isfinite().all():
        at = int((~steps.isfinite()).nonzero()[0])
        raise FloatingPointError(
            f"training loss is {float(steps[at])} at step {at + 1} of epoch {epoch + 1}: try an lr below {recipe.lr}"
        )
    history.steps = torch.cat([history.steps, steps])
    validation = evaluate(model, data.val)
    diagnostics = optimizer.diagnostics if isinstance(optimizer, SAM) else {}
    return {
        "epoch": epoch + 1,
        "loss": float(steps.mean()),
        "accuracy": float(accuracy),
        "val_loss": validation.loss,
        "val_accuracy": validation.accuracy,
        "lr": lr,
        "seconds": time.perf_counter() - start,
        **{name: float(value) for name, value in diagnostics.items()},
    }


def _run_steps(
    model: nn.Module,
    forward: Callable[..., Any],
    optimizer: Optimizer | SAM,
    data: Data,
    recipe: Recipe,
    epoch: int,
) -> tuple[Tensor, Tensor, float]:
    """Return the loss of every step, the mean accuracy and the last lr, all without waiting for the device."""
    device = data.train[0].device
    per_epoch = max(1, len(data.train[0]) // recipe.batch_size)
    step: Any = optimizer.step
    first_step: Any = step
    if isinstance(optimizer, SAM):
        first_step = partial(step, diagnose=torch.bfloat16 if recipe.amp else torch.float32)
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    lr = recipe.lr
    for k, (x, y) in enumerate(training_batches(data, recipe.batch_size)):
        lr = _lr(recipe, epoch * per_epoch + k, recipe.epochs * per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        outputs: list[Tensor] = []

        def closure(x: Tensor = x, y: Tensor = y, outputs: list[Tensor] = outputs) -> Any:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.amp):
                output = forward(x)
            outputs.append(output.detach())
            loss = F.cross_entropy(output.float() if recipe.amp else output, y)
            loss.backward()
            return loss

        loss = first_step(closure) if k == 0 else step(closure)
        losses.append(loss.detach().float())
        hits.append((outputs[0].argmax(1) == y).float().mean())
    return torch.stack(losses), torch.stack(hits).mean(), lr


def _lr(recipe: Recipe, step: int, steps: int) -> float:
    return recipe.lr if recipe.schedule == "constant" else recipe.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def _make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer | SAM:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError("model must have trainable parameters, got none")
    quantizers = [m for m in model.modules() if getattr(m, "is_quantizer", False)]
    own = {id(p) for m in quantizers for p in m.parameters()}
    groups = [
        {"params": [p for p in trainable.values() if id(p) not in own], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable.values() if id(p) in own], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    else:
        nesterov = recipe.nesterov and recipe.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
    return optimizer if recipe.sam is None else recipe.sam.wrap(model, optimizer)


def _wants_compile(recipe: Recipe, device: torch.device) -> bool:
    return device.type == "cuda" if recipe.compile is None else recipe.compile


def _compiled(model: nn.Module, device: torch.device) -> Callable[..., Any]:
    try:
        torch.compile(lambda t: t.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a missing compiler raises differs between platforms
        warnings.warn(f"no working compiler, training runs eager: {str(error).splitlines()[0]}", stacklevel=3)
        return model
    return torch.compile(model)


def _moved(data: Data, device: torch.device) -> Data:
    if all(t.device == device for split in (data.train, data.val, data.test) for t in split):
        return data
    splits: dict[str, Any] = {k: tuple(t.to(device) for t in getattr(data, k)) for k in ("train", "val", "test")}
    return replace(data, **splits)


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def _store(path: str | Path, model: nn.Module, optimizer: Optimizer | SAM, recipe: Recipe, history: History) -> None:
    content = {"recipe": asdict(recipe), "history": history.state()}
    files.write(path, "training", {**content, "model": model.state_dict(), "optimizer": optimizer.state_dict()})


def _resume(
    path: str | Path, model: nn.Module, optimizer: Optimizer | SAM, recipe: Recipe, snapshots: str | None
) -> History:
    device = device_of(model)
    content = files.read(path, "training", device)
    stored = content["recipe"]
    if stored != asdict(recipe):
        other = {k: stored.get(k) for k, v in asdict(recipe).items() if stored.get(k) != v}
        raise ValueError(f"checkpoint {path} must come from the same recipe, got other {other}: delete it or set these")
    history = History.from_state(content["history"])
    kept, epochs = len(history.snapshots), len(history.epochs)
    if snapshots and kept != epochs:
        raise ValueError(
            f"checkpoint {path} must hold a snapshot of each of its {epochs} epochs when snapshots={snapshots!r}, "
            f"got {kept}: go on with snapshots=None, or delete it"
        )
    files.check_same_network(model, content["model"], path)
    optimizer.load_state_dict(content["optimizer"])  # first, because it may refuse
    model.load_state_dict(content["model"])
    return history
