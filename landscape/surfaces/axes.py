"""The axes of a picture: an objective, its directions, and what is to be said of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..curvature import top_eigenvalues
from ..linalg import Eigenvalues
from ..model import (
    NAMES,
    NORMALIZATIONS,
    Objective,
    Point,
    describe,
    fingerprint,
    generator,
    objective_of,
    plane_of,
    resolve_directions,
    stacked,
)


@runtime_checkable
class Plane(Protocol):
    """A result that has directions: a line, a surface, a trajectory."""

    axes_count: int

    def directions(self) -> list[Point]: ...  # noqa: D102


Direction = str | nn.Module | Point | Eigenvalues
Directions = Direction | Plane | Sequence[Direction]


def setup_axes(
    model: nn.Module | Objective, data: Any, directions: Any, count: int, normalize: str, seed: int, **arguments: Any
) -> tuple[Objective, list[Point], Point, dict[str, Any]]:
    """Return the objective of a picture, its directions, those that are stored, and what the result says of them.

    Args:
        model, data, arguments: of `Objective`; ``batchnorm`` None stands for recomputed between networks and fixed
            otherwise.
        directions: see `landscape.line`; a result that has directions hands on its own.
        count: of axes.
        normalize, seed: of random directions.
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    plane = directions if hasattr(directions, "directions") else None
    if plane is not None and plane.axes_count < count:
        kind, kept = type(plane).__name__, plane.axes_count
        raise ValueError(f"directions must be a result that holds {count}, got a {kind} with {kept}")
    parts = _one_per_axis(directions, count) if plane is None else plane.directions()[:count]
    if not isinstance(model, Objective) and arguments["batchnorm"] is None:
        policy = "recomputed" if any(isinstance(part, nn.Module) for part in parts) else "fixed"
        arguments["batchnorm"] = policy if plane is None else plane.about.get("batchnorm", policy)
    function = objective_of(model, data, **arguments)
    eigenvectors = sum(part == "eigenvectors" for part in parts if isinstance(part, str))
    eigen = _eigenvectors(model, function, data, eigenvectors, seed, arguments) if eigenvectors else None
    steps, axes = resolve_directions(function, parts, normalize, seed, eigen)
    label = describe(axes) if plane is None else {k: plane.about[k] for k in ("directions", "axes") if k in plane.about}
    label |= _end_points(function, [(p, s) for p, s in zip(parts, steps, strict=True) if isinstance(p, nn.Module)])
    drawn = any(isinstance(part, str) and part != "gradient" for part in parts)
    about = label | {"seed": seed if drawn else None}
    about |= {"loss": function.criterion.name, "batch_size": function.batch_size}
    centre = function.coordinates
    about |= {"plane": plane_of(steps, centre), "model": fingerprint(centre.results(centre.centre))}
    can_draw = not centre.layouts and all(weight.output is None for weight in function.rounded.values())
    seeded = [can_draw and isinstance(part, str) and part == "random" for part in parts]
    if any(seeded):
        about["generator"] = generator()
    stored = stacked([step for step, is_seeded in zip(steps, seeded, strict=True) if not is_seeded], centre)
    return function, steps, stored, about


def _end_points(function: Objective, ends: Sequence[tuple[nn.Module, Point]]) -> dict[str, Any]:
    """Return the loss of each network at an end, its own and that of the picture; warn of state that is left out.

    A line moves weights. Buffers of the other network (frozen statistics, say) stay those of the first; BatchNorm's
    statistics as well, unless they are recomputed.
    """
    if not ends:
        return {}
    own = [float(function.of(other).variant(batchnorm="fixed").centre.loss) for other, _ in ends]
    there = [float(function.evaluate(step).loss) for _, step in ends]
    for (other, _), expected, shown in zip(ends, own, there, strict=True):
        left_out = _left_out(function, other)
        if left_out and not abs(shown - expected) <= 1e-3 * abs(expected):
            names = ", ".join(left_out[:3]) + (" …" if len(left_out) > 3 else "")
            warnings.warn(
                f"the end of the line has loss {shown:.4g}, the network itself {expected:.4g}: a line moves "
                f"weights, and buffers that differ stay those of the first ({names})",
                stacklevel=5,
            )
    return {"end_losses": own, "end_losses_shown": there}


def _left_out(function: Objective, other: nn.Module) -> list[str]:
    """Name what differs between two networks and does not vary: buffers, and steps and clips of quantizers."""
    norms = function.network.norms if function.network.batchnorm == "recomputed" else ()
    recomputed = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
    other = getattr(other, "_orig_mod", other)
    theirs = dict(other.named_buffers()) | dict(other.named_parameters())
    varied = {*function.coordinates.tensors, *function.coordinates.tensors.values()}
    return [
        name
        for name, tensor in (*function.model.named_buffers(), *function.model.named_parameters())
        if id(tensor) not in recomputed and name not in varied and tensor.is_floating_point()
        if name in theirs and not torch.equal(tensor, theirs[name].to(tensor))
    ]


def _eigenvectors(
    model: Any, function: Objective, data: Any, k: int, seed: int, arguments: Mapping[str, Any]
) -> Eigenvalues:
    """Return the top eigenvectors, with fixed statistics and in full precision, whatever the picture has."""
    if isinstance(model, Objective):
        return top_eigenvalues(function.variant(batchnorm="fixed", precision="fp32"), k=k, seed=seed)
    asked = {name: arguments[name] for name in ("space", "loss", "objective")}
    return top_eigenvalues(model, data, k=k, seed=seed, **asked)


def _one_per_axis(directions: Any, count: int) -> list[Direction]:
    given: list[Direction]
    if isinstance(directions, str | Eigenvalues):
        given = [directions] * count  # one name or one result of eigenvectors serves all axes
    else:
        given = [directions] if isinstance(directions, nn.Module | dict) else list(directions)
    if len(given) != count or any(isinstance(part, str) and part not in NAMES for part in given):
        shown = repr(directions) if isinstance(directions, str) else " and ".join(map(_described, given))
        names = ", ".join(f'"{name}"' for name in NAMES)
        raise ValueError(
            f"directions must be one of {names}, or {count} of names, directions and networks, got {shown}"
        )
    return given


def _described(part: Direction) -> str:
    return repr(part) if isinstance(part, str) else "towards a network" if isinstance(part, nn.Module) else "given"
