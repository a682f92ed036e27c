"""Directions in weight space: random, gradient, eigenvectors, between networks, principal ones of a trajectory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import parallel
from .coordinates import Coordinates, Point, coordinates, filter_norms, gaussian
from .curvature import Eigenvalues, top_eigenvalues
from .objective import Objective
from .timing import stopwatch

NORMALIZATIONS = ("filter", "layer", "none")
NAMES = ("random", "gradient", "eigenvectors")
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
    steps, labels = resolved(function, given, normalize, seed, eigen)
    label = labels[0] if len(set(labels)) == 1 and given[0] == "random" else " and ".join(labels)
    function.centre()
    drawn = any(isinstance(part, str) and part != "gradient" for part in given)
    about = {"directions": label if plane is None else plane.about["directions"], "seed": seed if drawn else None}
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


def resolved(
    function: Objective, given: Sequence[Direction], normalize: str, seed: int, eigen: Eigenvalues | None = None
) -> tuple[list[Point], list[str]]:
    """Turn what a caller named into a direction and its description, one for each axis.

    A name draws or computes: ``"random"`` (see `random_direction`; each axis has a seed of its own), ``"gradient"`` (of
    the mean loss, as long as it is: one unit is a step of ascent at learning rate 1), ``"eigenvectors"`` (the next of
    ``eigen``). A network lies at 1, a direction (name → tensor) is walked as it is. Nothing but a random direction
    is ever rescaled: a rescaled eigenvector is none.
    """
    steps, labels, next_vector = [], [], 0
    for axis, part in enumerate(given):
        if isinstance(part, str) and part == "random":
            # seeds of the axes are spread out, so that seed=1 does not share a direction with seed=0
            step = random_direction(function.coordinates, seed * 1_000_003 + axis, normalize)
            label = f"random, {normalize} normalisation"
        elif isinstance(part, str) and part == "gradient":
            step, label = function.gradient(), "gradient"
        elif isinstance(part, str | Eigenvalues):
            source = eigen if isinstance(part, str) else part
            assert source is not None
            step = eigenvector(function.coordinates, source, next_vector)
            next_vector += 1
            label = f"eigenvector {next_vector}"
        elif isinstance(part, nn.Module):
            _check_frozen(function, part)
            step, label = direction_to(function.coordinates, part), "towards a network"
        else:
            step, label = checked_direction(function.coordinates, part), "given"
        steps.append(step)
        labels.append(label)
    return steps, labels


def random_direction(centre: Coordinates, seed: int, normalize: str = "filter") -> Point:
    """Draw a Gaussian direction, zero on biases and norm parameters, rescaled to the weights' norms.

    ``"filter"`` gives each filter (slice along dimension 0) of the direction the norm of the weight's filter,
    ``"layer"`` each tensor the norm of the weight (packed q, k, v apart), ``"none"`` leaves the Gaussian. The draw
    depends on name, shape and seed alone, so two networks of one architecture get the same draw, each scaled by its
    own norms.

    Source: Li et al. 2018, §4 (filter normalisation).
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    weights = {name: w for name, w in centre.centre.items() if w.ndim > 1}
    if not weights:
        raise ValueError(
            "no weight of two or more dimensions: random directions move nothing; pass directions yourself"
        )
    return {name: _rescaled(name, draw, weights[name], normalize) for name, draw in gaussian(weights, seed)}


def eigenvector(centre: Coordinates, found: Eigenvalues, number: int) -> Point:
    """Return an eigenvector of `top_eigenvalues` as a step in weights, not rescaled.

    Where the result is in filter-relative units (of D·H·D), the step is D times the vector.

    Raises:
        ValueError: fewer vectors than that, or vectors of another network or space.
    """
    if number >= len(found.values):
        raise ValueError(f"directions need eigenvector {number + 1}, but the result has {len(found.values)}: raise k")
    space = found.about.get("space", centre.space)
    if space != centre.space:
        raise ValueError(f"the eigenvectors were found in {space} space, the surface is in {centre.space}: pass space=")
    vector = checked_direction(centre, found.vector(number))
    if found.about.get("units") != "filter":
        return vector
    scale = centre.filter_scale()
    return {name: scale[name] * part for name, part in vector.items()}


def _check_frozen(function: Objective, other: nn.Module) -> None:
    """Refuse a network whose frozen weights are not those of the first: no step along the line would reach it."""
    theirs = dict(getattr(other, "_orig_mod", other).named_parameters())
    for name, weight in function.model.named_parameters():
        frozen = not weight.requires_grad and name in theirs and name not in function.coordinates.centre
        if frozen and "quantizer" not in name and not torch.equal(weight, theirs[name].to(weight)):
            raise ValueError(f"{name} is frozen and differs between the networks: unfreeze it, or no line gets there")


def direction_to(centre: Coordinates, other: nn.Module) -> Point:
    """Return the step from one network to another of the same architecture, over all that varies.

    Raises:
        ValueError: the two networks' weights differ in name or shape, or weights that do not vary in value.
    """
    other = getattr(other, "_orig_mod", other)
    target = coordinates(other, None if centre.space == "float" else centre.space).centre
    mine = {name: w.shape for name, w in centre.centre.items()}
    theirs = {name: w.shape for name, w in target.items()}
    if mine != theirs:
        odd = sorted(set(mine.items()) ^ set(theirs.items()))
        raise ValueError(f"no line between networks of different weights: {odd[0][0]} and {len(odd) - 1} more differ")
    return {name: target[name].to(w) - w for name, w in centre.centre.items()}


def checked_direction(centre: Coordinates, direction: Point) -> Point:
    """Bring a user's direction to the network's device and dtype.

    Raises:
        ValueError: a name or shape that the network does not have.
    """
    if not direction:
        raise ValueError("directions must move something, got one without tensors: `compare` does not keep its own")
    for name, step in direction.items():
        if name not in centre.centre:
            raise ValueError(
                f"the direction moves {name!r}, which does not vary here; what varies: {centre.names[:5]} …"
            )
        if step.shape != centre.centre[name].shape:
            have = tuple(centre.centre[name].shape)
            raise ValueError(f"the direction of {name!r} must have shape {have}, got {tuple(step.shape)}")
    return {name: step.detach().to(centre.centre[name]) for name, step in direction.items()}


def principal_directions(differences: Sequence[Point], count: int = 2) -> tuple[list[Point], Tensor]:
    """Return the directions of unit length in which points lie farthest from the centre, and their shares.

    The top eigenvectors of ΔᵀΔ, found from the small Gram matrix ΔΔᵀ in float64. Differences are to the centre, not to
    the points' mean: the plane passes through the model. Share i is λ_i/Σλ, of the squared distances to the centre.

    Raises:
        ValueError: the points span fewer than ``count`` dimensions.

    Cost: memory for the differences, and one matrix of points × points.
    """
    gram = torch.zeros(len(differences), len(differences), dtype=torch.float64)
    for name in differences[0]:
        rows = torch.stack([difference[name].flatten() for difference in differences]).double()
        gram += (rows @ rows.T).cpu()
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = int((values > 1e-12 * values[0]).sum()) if values[0] > 0 else 0
    if rank < count:
        raise ValueError(f"the checkpoints span {rank} dimensions, and {count} are needed: pass more that differ")
    directions = []
    for i in range(count):
        # the checkpoint farthest along it lies on the positive side: an eigenvector's sign means nothing
        mix = vectors[:, i] * vectors[vectors[:, i].abs().argmax(), i].sign() / values[i].sqrt()
        directions.append(combined(differences, mix.tolist()))
    return directions, values / values.sum()


def combined(steps: Sequence[Point], coefficients: Sequence[float]) -> Point:
    """Return Σ coefficient·step, over all names that any step moves."""
    total: Point = {}
    for step, coefficient in zip(steps, coefficients, strict=True):
        for name, part in step.items():
            total[name] = total[name] + coefficient * part if name in total else coefficient * part
    return total


def stacked(steps: Sequence[Point]) -> Point:
    """Lay directions side by side on the CPU, name → (axes, *shape), as results keep them; unmoved names are zero."""
    shapes = {name: part for step in steps for name, part in step.items()}
    return {
        name: torch.stack([step.get(name, torch.zeros_like(like)).cpu() for step in steps])
        for name, like in shapes.items()
    }


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a short hash of names, shapes and every bit of the values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def centre_fingerprint(function: Objective) -> str:
    """Return a hash of where the network stands: its point, in the surface's space."""
    return fingerprint(function.coordinates.centre)


def _rescaled(name: str, draw: Tensor, weight: Tensor, normalize: str) -> Tensor:
    if normalize == "filter":
        return draw * _ratio(filter_norms(weight), filter_norms(draw))
    if normalize == "layer":
        # nn.MultiheadAttention packs q, k and v in one tensor: three layers, each with a norm of its own
        parts = 3 if name.rpartition(".")[2] == "in_proj_weight" and len(weight) % 3 == 0 else 1
        pairs = zip(draw.chunk(parts), weight.chunk(parts), strict=True)
        return torch.cat([part * _ratio(w.norm(), part.norm()) for part, w in pairs])
    return draw


def _ratio(wanted: Tensor, drawn: Tensor) -> Tensor:
    """Return wanted/drawn, zero where nothing was drawn: a filter without elements or of zeros is no reason for NaN."""
    return torch.where(drawn > 0, wanted / drawn.clamp(min=torch.finfo(drawn.dtype).tiny), 0.0)
