"""Training: one loop for float, quantized and sharpness-aware networks of any task, on one process or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from landscape.checking import is_logger
from landscape.model import BatchObjective, Criterion, Loss, Output
from landscape.parallel import check_agreement

from .. import processes
from ..contexts import check_loaded, device_of, seeded
from ..data import data_of, is_pair
from .history import History
from .recipes import Recipe
from .resuming import resume, store
from .steps import Run, TrainingState

Snapshots = Literal[None, "epoch"]


def train(
    model: nn.Module,
    data: Any,
    recipe: Recipe,
    *,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    output: Output | None = None,
    metrics: Mapping[str, Loss] | None = None,
    on_epoch: Callable[[TrainingState], Any] | None = None,
    on_step: Callable[[TrainingState], Any] | None = None,
    snapshots: Snapshots = None,
    checkpoint: str | Path | None = None,
    log: Any = None,
    teacher: nn.Module | None = None,
) -> History:
    """Train `model` in place; return its history.

    It leaves `model.probe` (the samples on which its landscape is measured), `model.recipe` and `model.history`, and
    the model in evaluation mode. The global random state is left as it was. Under torchrun every process calls it with
    the same arguments; each computes its share of every batch, and the first one writes the files.

    Args:
        model: Any network; a quantized one has to be calibrated.
        data: A `Data`, or its training split alone: inputs and targets, a Dataset, a DataLoader, a list of batches (see
            `Data`). Tensors lie on the model's device, or are moved there. A Dataset is drawn by the recipe, a
            DataLoader draws and cuts by itself; several processes need its DistributedSampler.
        recipe: How to train.
        loss: ``loss(output, target)``; default cross-entropy, or the loss that the network's output carries. See
            `landscape.Objective` for the four that say what is minimised, which all mean the same there.
        objective: ``objective(model, batch)`` → (mean loss, weight), for batches of any kind.
        output: Which part of what the network returns the loss is given: a name, an index, a function.
        metrics: Name → ``metric(output, target)``, which become columns of the table.
        on_epoch: Called after every epoch with a `TrainingState`; a dict it returns becomes columns of the table,
            anything else the column "on_epoch". Raise `StopTraining` here or in `on_step` to stop early.
        on_step: Called after every step with a `TrainingState`.
        snapshots: "epoch" keeps the weights and buffers of every epoch in `history.snapshots`.
        checkpoint: File that is written after every epoch; if it exists, training resumes from it, to the numbers of an
            uninterrupted training (on a CPU in float32). Results of `on_epoch` are kept as far as they consist of
            numbers, texts and tensors.
        log: File for the table as JSON lines, written after every epoch; or an object whose method ``log`` is given
            each row, a dict, as runs of W&B and trackio have one.
        teacher: Float network of the same layers, for a recipe that distills; None takes `model` as it comes, without
            quantizers and with its latent weights. It is left as it is; a resumed training has that of its checkpoint.

    Raises:
        RuntimeError: If activations are not calibrated.
        FloatingPointError: At the end of the epoch in which a loss, or the network itself, became NaN or infinite.
        ValueError: If cross-entropy does not fit outputs and targets where no loss is given, if a loss depends on no
            weight, has trainable parameters of its own, or is no mean over samples where `micro_batch` cuts them, if
            the processes cannot share a batch, if the checkpoint belongs to another recipe, loss or network or lacks
            the snapshots asked for, or if there is a teacher but no distillation.
        TypeError: If `data` are none of these.

    Cost: per step one forward and backward pass, two with `Recipe.sam`, and a forward pass of the teacher if distilled.

    Example:
        >>> import saq_core
        >>> data = saq_core.load_data("digits", limit=64, device="cpu")
        >>> model = saq_core.build_model("resnet8", data)
        >>> history = saq_core.train(model, data, saq_core.Recipe(epochs=1, lr=0.1, batch_size=32))
        >>> len(history.steps), model.probe[0].shape
        (2, torch.Size([64, 1, 8, 8]))
        >>> import torch
        >>> regression, x = torch.nn.Linear(3, 1), torch.randn(32, 3)
        >>> recipe = saq_core.Recipe(epochs=20, lr=0.05, batch_size=8)
        >>> rows = saq_core.train(regression, (x, x.sum(1, keepdim=True)), recipe, loss=torch.nn.MSELoss()).epochs
        >>> rows[-1]["loss"] < rows[0]["loss"]
        True
    """
    checkpoint = None if checkpoint is None else Path(checkpoint)
    check_agreement(**locals())  # else gradients of different trainings would be averaged
    if teacher is not None and not (recipe.fpq and recipe.fpq.distill):
        raise ValueError("recipe must have fpq=FPQ(distill=True) for a teacher, got one that distills nothing")
    check_loaded(model)
    if not (log is None or isinstance(log, str | Path) or is_logger(log)):
        raise TypeError(f"log must be a path or have a method log(row), got {type(log).__name__}")
    criterion = Criterion(loss, objective, output, metrics)
    data = data_of(data, has_labels=criterion.is_default)
    with seeded(recipe.seed):  # a Dataset may draw
        probe = data.probe if is_pair(data.train) else processes.gather(data.probe)[0]
    data = data.to(device_of(model))
    with ExitStack() as stack:
        stack.callback(model.eval)
        run = Run(model, data, recipe, criterion, teacher, on_step, stack)
        history = run.history
        if checkpoint is not None and checkpoint.exists():
            history = run.history = resume(checkpoint, run, snapshots)
        cast(Any, model).probe, cast(Any, model).recipe, cast(Any, model).history = probe, recipe, history
        for epoch in processes.bar(range(len(history.epochs), recipe.epochs), "training"):
            row = run.epoch(epoch)
            history.epochs.append(row)
            if snapshots:
                state = run.average.state_dict().items()
                history.snapshots.append({k: v.detach().cpu().clone() for k, v in state if isinstance(v, Tensor)})
            if on_epoch is not None:
                result = run.tell(on_epoch, run.average, epoch + 1, len(history.steps), history.steps[-1])
                row.update(result if isinstance(result, dict) else {} if result is None else {"on_epoch": result})
            if checkpoint is not None:
                store(checkpoint, run)
            if log is not None and processes.rank() == 0:
                history.write_lines(log) if isinstance(log, str | Path) else log.log(dict(row))
            processes.wait()
            if run.stopped:
                break
        if recipe.ema is not None:
            model.load_state_dict(run.average.state_dict())
    return history
