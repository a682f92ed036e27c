"""The axes of a picture: an objective, its directions, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import parallel
from ..curvature import top_eigenvalues
from ..linalg import Eigenvalues
from ..model import (
    NORMALIZATIONS,
    Objective,
    Point,
    centre_fingerprint,
    checked_direction,
    direction_to,
    eigenvector,
    fingerprint,
    random_direction,
    stacked,
)
from ..progress import stopwatch

NAMES = ("random", "gradient", "eigenvectors")
Axis = dict[str, str | int]
Direction = str | nn.Module | Point | Eigenvalues
Directions = Direction | Sequence[Direction]


def prepared(
    model: nn.Module, settings: Mapping[str, Any], directions: Any, count: int, normalize: str, seed: int
) -> tuple[Objective, list[Point], dict[str, Any]]:
    """Build the objective of a picture, its directions, and what is to be said of them.

    Args:
        model: any network.
        settings: of `Objective`; ``batchnorm`` None stands for recomputed between networks and fixed otherwise,
            ``batch_size`` ``"fastest"`` for a short measurement.
        directions: see `landscape.line`; a result that has directions hands on its own.
        count: of axes.
        normalize, seed: of random directions.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    plane = directions if hasattr(directions, "directions") else None
    kept = 0 if plane is None else len(next(iter(plane.directions.values()), ()))
    if plane is not None and kept < count:
        raise ValueError(f"directions must be a result that holds {count}, got a {type(plane).__name__} with {kept}")
    given = _given(directions, count) if plane is None else [plane.direction(axis) for axis in range(count)]
    policy = "recomputed" if any(isinstance(part, nn.Module) for part in given) else "fixed"
    policy = policy if plane is None else plane.about.get("batchnorm", policy)
    settings = dict(settings) | {"batchnorm": settings["batchnorm"] or policy}
    if settings["batch_size"] == "fastest":
        settings["batch_size"] = parallel.gather(fastest_batch(model, settings))[0]
    function = Objective(model, **settings)
    eigen = None
    if wanted := sum(part == "eigenvectors" for part in given if isinstance(part, str)):
        asked = {key: settings[key] for key in ("space", "loss", "objective")}
        eigen = top_eigenvalues(model, settings["data"], k=wanted, seed=seed, **asked)
    steps, axes = resolved(function, given, normalize, seed, eigen)
    label = describe(axes) if plane is None else {k: plane.about[k] for k in ("directions", "axes") if k in plane.about}
    function.centre()
    drawn = any(isinstance(part, str) and part != "gradient" for part in given)
    about = label | {"seed": seed if drawn else None}
    measured = settings["objective"] or settings["loss"] or torch.nn.functional.cross_entropy
    about |= {"loss": getattr(measured, "__qualname__", type(measured).__name__), "batch_size": settings["batch_size"]}
    return function, steps, about | {"plane": fingerprint(stacked(steps)), "model": centre_fingerprint(function)}


def _given(directions: Directions, count: int) -> list[Direction]:
    given: list[Direction]
    if isinstance(directions, str | Eigenvalues):
        given = [directions] * count  # one name or one result of eigenvectors serves all axes
    else:
        given = [directions] if isinstance(directions, nn.Module | dict) else list(directions)
    if len(given) != count or any(isinstance(part, str) and part not in NAMES for part in given):
        shown = repr(directions) if isinstance(directions, str) else " and ".join(map(_shown, given))
        names = ", ".join(f'"{name}"' for name in NAMES)
        raise ValueError(
            f"directions must be one of {names}, or {count} of names, directions and networks, got {shown}"
        )
    return given


def _shown(part: Direction) -> str:
    return repr(part) if isinstance(part, str) else "towards a network" if isinstance(part, nn.Module) else "given"


def fastest_batch(model: nn.Module, settings: Mapping[str, Any]) -> int | None:
    """Measure which batch size evaluates the most rows per second, on up to 512 rows; None: the default is as good.

    For long jobs: the choice depends on the machine, and with it the last bits of every number.

    Raises:
        ValueError: data that are not ``(x, y)``, or statistics that would depend on the batches.

    Cost: two forward passes over those rows for each of six sizes.
    """
    data: Any = getattr(model, "probe", None) if settings["data"] is None else settings["data"]
    pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    if not pair or settings["batchnorm"] == "recomputed":
        raise ValueError(
            'batch_size="fastest" needs data=(x, y) and BatchNorm statistics that are fixed, not those of the batches'
        )
    few = tuple(part[:512] for part in data)
    seconds: dict[int | None, float] = {}
    for size in (None, 16, 32, 64, 128, 256, 512):
        function = Objective(model, **dict(settings) | {"data": few, "batch_size": size})
        function.centre()
        elapsed = stopwatch()
        float(function.evaluate().loss)
        seconds[size] = elapsed()
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < 0.95 * seconds[None] else None


def describe(axes: Sequence[Axis]) -> dict[str, Any]:
    """Return what a result says of its axes: ``axes`` for pictures, and ``directions`` in words."""
    labels = [_label(axis) for axis in axes]
    alike = len(set(labels)) == 1 and axes[0]["kind"] == "random"
    return {"directions": labels[0] if alike else " and ".join(labels), "axes": list(axes)}


def _label(axis: Axis) -> str:
    if axis["kind"] == "random":
        return f"random, {axis['normalize']} normalisation"
    if axis["kind"] == "network":
        return "towards a network"
    return f"{axis['kind']} {axis['index']}" if "index" in axis else str(axis["kind"])


def resolved(
    function: Objective, given: Sequence[Direction], normalize: str, seed: int, eigen: Eigenvalues | None = None
) -> tuple[list[Point], list[Axis]]:
    """Turn what a caller named into a direction and its description (see `describe`), one for each axis.

    A name draws or computes: ``"random"`` (see `random_direction`; each axis has a seed of its own), ``"gradient"`` (of
    the mean loss, as long as it is: one unit is a step of ascent at learning rate 1), ``"eigenvectors"`` (the next of
    ``eigen``). A network lies at 1, a direction (name → tensor) is walked as it is. Nothing but a random direction
    is ever rescaled: a rescaled eigenvector is none.
    """
    steps, axes, next_vector = [], [], 0
    label: Axis
    for axis, part in enumerate(given):
        if isinstance(part, str) and part == "random":
            # seeds of the axes are spread out, so that seed=1 does not share a direction with seed=0
            step = random_direction(function.coordinates, seed * 1_000_003 + axis, normalize)
            label = {"kind": "random", "normalize": normalize}
        elif isinstance(part, str) and part == "gradient":
            step, label = function.gradient(), {"kind": "gradient"}
        elif isinstance(part, str | Eigenvalues):
            source = eigen if isinstance(part, str) else part
            assert source is not None
            step = eigenvector(function.coordinates, source, next_vector)
            next_vector += 1
            label = {"kind": "eigenvector", "index": next_vector}
        elif isinstance(part, nn.Module):
            _check_frozen(function, part)
            step, label = direction_to(function.coordinates, part), {"kind": "network"}
        else:
            step, label = checked_direction(function.coordinates, part), {"kind": "given"}
        steps.append(step)
        axes.append(label)
    return steps, axes


def _check_frozen(function: Objective, other: nn.Module) -> None:
    """Refuse a network whose frozen weights are not those of the first: no step along the line would reach it."""
    theirs = dict(getattr(other, "_orig_mod", other).named_parameters())
    for name, weight in function.model.named_parameters():
        frozen = not weight.requires_grad and name in theirs and name not in function.coordinates.centre
        if frozen and "quantizer" not in name and not torch.equal(weight, theirs[name].to(weight)):
            raise ValueError(f"{name} is frozen and differs between the networks: unfreeze it, or no line gets there")
