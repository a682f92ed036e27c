"""What a training has come to after each epoch, in a file: one that was killed goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import files, processes
from .history import History
from .recipes import Recipe
from .steps import Run


def store(path: str | Path, run: Run) -> None:
    """Write what a training has come to, on the first process."""
    optimizer = run.optimizer.state_dict()
    own = processes.gather(optimizer.pop("sam", None))  # what each process remembers of its ε
    content: dict[str, Any] = {"recipe": run.recipe.stored(), **run.minimised, "history": run.history.state()}
    content |= {"model": run.model.state_dict(), "optimizer": optimizer, "sam": own}
    content["average"] = run.average.state_dict()  # the model's tensors, and no bytes more, where the recipe has none
    if run.scheduler is not None:
        content["scheduler"] = files.storable(run.scheduler.state_dict())
    if run.teacher is not None:
        content["teacher"] = run.teacher.network.state_dict()
    if processes.rank() == 0:
        files.write(path, "training", content)


def resume(path: str | Path, run: Run, snapshots: str | None) -> History:
    """Read what `store` wrote, of the same recipe, loss and network, into a run; return the history so far.

    Raises:
        ValueError: It is of another one, or lacks the snapshots asked for.
    """
    model, recipe = run.model, run.recipe
    content = files.read(path, "training", run.device)
    stored = Recipe.from_dict(content["recipe"]).stored() | {name: content.get(name) for name in run.minimised}
    files.check_same_settings(path, stored, recipe.stored() | run.minimised, "recipe and loss")
    history = History.from_state(content["history"])
    count, epochs = len(history.snapshots), len(history.epochs)
    if snapshots and count != epochs:
        rule = f"checkpoint {path} must hold a snapshot of each of its {epochs} epochs when snapshots={snapshots!r}"
        raise ValueError(f"{rule}, got {count}: go on with snapshots=None, or delete it")
    files.check_same_network(model, content["model"], path)
    if any(parts := content.get("sam", ())):
        content["optimizer"]["sam"] = parts[processes.rank() % len(parts)]
    run.optimizer.load_state_dict(content["optimizer"])  # first, because it may refuse
    model.load_state_dict(content["model"])
    run.average.load_state_dict(content.get("average", content["model"]))
    if run.scheduler is not None:
        run.scheduler.load_state_dict(content["scheduler"])
    if run.teacher is not None:  # of the model as it came then, not as it comes now
        run.teacher.network.load_state_dict(content["teacher"])
    return history
