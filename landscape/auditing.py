"""What a monitor measures while a network trains, over the checkpoints that a training left."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .files import atomic, unsealed
from .model import BatchObjective, Loss, Output, copied, load_state, recentred
from .monitoring import Monitor, TrainingCurvature
from .progress import progress
from .stability import stability_threshold

_NESTED = ("model", "state_dict", "model_state_dict")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")


def audit(
    folder: str | Path | Sequence[Mapping[str, Any]],
    model: nn.Module,
    data: Any = None,
    *,
    pattern: str = "*.pt",
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
    output: Output | None = None,
    keep: str | Path | None = None,
) -> TrainingCurvature:
    """Measure over saved checkpoints what a `Monitor` measures while training.

    Finished rows are kept in a file: an audit that was killed goes on, to the same numbers, and one of a training that
    goes on adds its new checkpoints.

    Args:
        folder: of state dicts, or of dicts with one as "model", "state_dict" or "model_state_dict" (those of
            `saq_core.train`, say); or a list of state dicts, such as ``history.snapshots``. Files are read without
            executing anything in them. They are taken in natural order (2 before 10), and where all names hold an
            increasing number, that is the step.
        model: a network that the checkpoints fit; not touched.
        data: ``(x, y)`` or batches; default ``model.probe``.
        pattern: of the files' names; ``"*/model.safetensors"``, for example.
        loss, objective, output: see `Objective`.
        keep: file of the finished rows; default ``landscape.audit`` in the folder, none for a list.

    Raises:
        ValueError: no checkpoints, one that does not fit the model or is damaged, finished rows of other files or data.

    Cost: that of a row of `Monitor` for each, about 90 forward passes.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> snapshots = [torch.nn.Linear(3, 2).state_dict() for _ in range(3)]
        >>> landscape.audit(snapshots, model, data).frame["checkpoint"].tolist()
        ['1', '2', '3']
    """
    if not isinstance(folder, str | Path):
        files: dict[str, Any] = {str(index): state for index, state in enumerate(folder, start=1)}
    else:
        found = sorted(Path(folder).glob(pattern), key=lambda path: _natural(path.relative_to(folder).as_posix()))
        keep = Path(folder) / "landscape.audit" if keep is None else keep
        files = {path.relative_to(folder).as_posix(): path for path in found if path.resolve() != Path(keep).resolve()}
    if not files:
        where = f"{folder} with names like {pattern!r}" if isinstance(folder, str | Path) else "an empty list"
        raise ValueError(f"folder must hold checkpoints, got none in {where}")
    model = getattr(model, "_orig_mod", model)
    network = copied(model.module if isinstance(model, _WRAPPERS) else model)
    monitor = Monitor(network, data, loss=loss, objective=objective, output=output)
    monitor.budget = math.inf
    steps = [int(number) for name in files for number in re.findall(r"\d+", name)[-1:]]  # that a name holds
    steps = steps if len(steps) == len(files) and sorted({*steps}) == steps else list(range(1, len(files) + 1))
    done = _finished(keep, monitor, network, files)
    for name, step in progress(list(zip(files, steps, strict=True))[len(done) :], "audit"):
        optimizer = _loaded(network, files[name])
        monitor.vectors = {key: part for key, part in monitor.vectors.items() if key == "gradient"}  # λ₁ from scratch
        monitor._measured(stability_threshold(optimizer), step, checkpoint=name)
        done[name] = _digest(files[name])
        if keep is not None:
            with atomic(keep, sealed=True) as scratch:
                torch.save({"files": done, "monitor": monitor.state_dict()}, scratch)
    for row, step in zip(monitor.rows, steps, strict=True):  # another checkpoint may have changed what counts
        row["step"] = step
    return TrainingCurvature(monitor.result.about | {"folder": str(folder) if keep else "snapshots"}, monitor.rows)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _digest(source: Any) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest() if isinstance(source, Path) else ""


def _loaded(network: nn.Module, source: Any) -> Any:
    """Load a checkpoint's weights into a network; return what it says of the optimizer, None where nothing."""
    content = source
    try:
        if isinstance(source, Path) and source.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(source)
        elif isinstance(source, Path):
            content = torch.load(io.BytesIO(unsealed(source)), map_location="cpu", weights_only=True)
        state = next((content[key] for key in _NESTED if _is_state(content.get(key))), content)
        own = network.state_dict().keys()
        load_state(network, {}, {name if name in own else _PREFIXES.sub("", name): v for name, v in state.items()})
    except Exception as error:  # what a damaged file raises differs
        where = str(source) if isinstance(source, Path) else "a snapshot"
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"folder must hold checkpoints that fit the model, and {where} is none: {reason}") from error
    optimizer = content.get("optimizer")
    groups = optimizer.get("param_groups") if isinstance(optimizer, Mapping) else None
    return SimpleNamespace(param_groups=groups, state={}) if groups else None


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, torch.Tensor) for value in content.values())


def _finished(keep: Any, monitor: Monitor, network: nn.Module, files: Mapping[str, Any]) -> dict[str, str]:
    """Take over the rows that an audit before has finished; return their files, with checksums."""
    if keep is None or not Path(keep).exists():
        return {}
    rule = f"{keep} must hold rows of these checkpoints on these data"
    try:
        content = torch.load(io.BytesIO(unsealed(keep)), map_location="cpu", weights_only=True)
        done = content["files"]
    except Exception as error:  # what a damaged file raises differs
        raise ValueError(f"{rule}, and is damaged: delete it, or pass another keep=") from error
    if list(done) != list(files)[: len(done)] or any(_digest(files[name]) != done[name] for name in done):
        raise ValueError(f"{rule}, got other files: delete it, or pass another keep=")
    monitor.load_state_dict(content["monitor"])
    last = list(done)[-1]
    _loaded(network, files[last])
    expected, found = monitor.rows[-1]["probe_loss"], float(recentred(monitor._function).centre.loss)
    if not (math.isclose(expected, found, rel_tol=1e-5) or math.isnan(expected) and math.isnan(found)):
        raise ValueError(f"{rule}, got a loss of {expected:.6g} for {last}, here {found:.6g}: delete it, or pass keep=")
    return dict(done)
