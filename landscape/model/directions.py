"""Directions in weight space: random, gradient, eigenvectors, between networks, principal ones of a trajectory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import parallel
from .adapters import rounded_in_use, rounded_weights
from .batches import moved
from .coordinates import Coordinates, Point, coordinates, gaussian
from .errors import translated
from .measuring import measurement_mode
from .objective import Objective
from .walking import Along

NAMES = ("random", "gradient", "eigenvectors")
Axis = dict[str, str | int]
NORMALIZATIONS = ("filter", "layer", "none")


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


def resolve_directions(
    function: Objective, given: Sequence[Any], normalize: str, seed: int, eigen: Any = None
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
            step = random_axis(function.coordinates, seed, axis, normalize)
            label = {"kind": "random", "normalize": normalize}
        elif isinstance(part, str) and part == "gradient":
            step, label = function.gradient(), {"kind": "gradient"}
        elif isinstance(part, str) or hasattr(part, "vector"):
            source = eigen if isinstance(part, str) else part
            assert source is not None
            step = eigenvector(function.coordinates, source, next_vector)
            next_vector += 1
            label = {"kind": "eigenvector", "index": next_vector}
        elif isinstance(part, nn.Module):
            step, label = step_to(function, part), {"kind": "network"}
        else:
            step, label = checked_direction(function.coordinates, part), {"kind": "given"}
        steps.append(step)
        axes.append(label)
    return steps, axes


def step_to(function: Objective, network: nn.Module, *, reached: bool = True) -> Point:
    """Return the step from a function's weights to another network's, each as its forward pass uses them.

    Args:
        function: where it begins, and what of it varies.
        network: of the same architecture; whether its weights are frozen does not matter.
        reached: whether the step must get there.

    Raises:
        ValueError: weights of other names or shapes; frozen ones that differ, or others that are pruned.
    """
    centre, there = function.coordinates, _all_weights(function, network)
    here = _all_weights(function, function.model)
    _check_alike(here, {name: there.shape(name) for name in there.names})
    trainable = {name for name, weight in function.model.named_parameters() if weight.requires_grad}
    for name, weight in here.centre.items() if reached else ():
        target = there.centre[name].to(weight)
        if name not in centre.centre and name not in trainable and not torch.equal(weight, target):
            raise ValueError(f"{name} is frozen and differs between the networks: unfreeze it, or no line gets there")
        if name.endswith("_orig") and (target * (here.masks.get(name, 1) == 0)).any():
            raise ValueError(f"{name} is pruned by other masks in the two networks: no line gets from one to the other")
    return direction_to(centre, there)


def _all_weights(function: Objective, network: nn.Module) -> Coordinates:
    """Return the coordinates of a network of this architecture, over frozen weights as well."""
    network = getattr(network, "_orig_mod", network)
    space: Any = None if function.coordinates.space == "float" else function.coordinates.space
    rounded = function.rounded
    if network is not function.model and not function.coordinates.layouts:
        device = next((weight.device for weight in network.parameters()), function.device)
        batch = moved(next(iter(function.batches())), device, None)
        with measurement_mode(network), translated("the forward pass of another network", network):
            rounded = rounded_weights(network)
            names = coordinates(network, "latent", rounded=rounded, frozen=True).names if space != "latent" else []
            rounded |= rounded_in_use(network, lambda: function.network.call(network, batch), names) if names else {}
    return coordinates(network, space, rounded=rounded, frozen=True)


def random_axis(centre: Coordinates, seed: int, axis: int, normalize: str) -> Point:
    """Draw the direction of an axis; seeds are spread out, so that seed=1 does not share one with seed=0."""
    return random_direction(centre, seed * 1_000_003 + axis, normalize)


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
    return {
        name: _rescaled(centre, name, centre.masked(name, draw), normalize)
        for name, draw in gaussian(weights, seed, centre.layouts)
    }


def eigenvector(centre: Coordinates, eigenvalues: Any, index: int) -> Point:
    """Return an eigenvector of `top_eigenvalues` as a step in weights, not rescaled.

    Where the result is in filter-relative units (of D·H·D), the step is D times the vector.

    Raises:
        ValueError: fewer vectors than that, or vectors of another network or space.
    """
    if index >= (count := len(eigenvalues.values)):
        raise ValueError(f"directions need eigenvector {index + 1}, but the result has {count}: raise k")
    space = eigenvalues.about.get("space", centre.space)
    if space != centre.space:
        raise ValueError(f"the eigenvectors were found in {space} space, the surface is in {centre.space}: pass space=")
    vector = checked_direction(centre, eigenvalues.vector(index))
    if eigenvalues.about.get("units") != "filter":
        return vector
    scale = centre.filter_scale()
    return {name: scale[name] * part for name, part in vector.items()}


def direction_to(centre: Coordinates, there: Coordinates) -> Point:
    """Return the step from one network to another of the same architecture, over all that varies in the first.

    Raises:
        ValueError: the two networks' weights differ in name or shape.
    """
    _check_alike(centre, {name: there.shape(name) for name in there.names if name in centre.centre})
    target = {name: w if there.layouts else centre.cut(name, w) for name, w in there.centre.items()}
    return {name: target[name].to(w) - w for name, w in centre.centre.items()}


def _check_alike(here: Coordinates, theirs: Mapping[str, torch.Size]) -> None:
    expected = {name: here.shape(name) for name in here.names}
    if expected != theirs:
        odd = sorted(set(expected.items()) ^ set(theirs.items()))
        raise ValueError(f"no line between networks of different weights: {odd[0][0]} and {len(odd) - 1} more differ")


def checked_direction(centre: Coordinates, direction: Point) -> Point:
    """Bring a user's direction to the network's device, dtype and shards.

    Raises:
        ValueError: a name or shape that the network does not have; nothing that moves, or not finite.
    """
    if not direction:
        raise ValueError("directions must move something, got one without tensors")
    for name, step in direction.items():
        if name not in centre.centre:
            raise ValueError(
                f"the direction moves {name!r}, which does not vary here; what varies: {centre.names[:5]} …"
            )
        if step.shape != centre.shape(name):
            have = tuple(centre.shape(name))
            raise ValueError(f"the direction of {name!r} must have shape {have}, got {tuple(step.shape)}")
    steps = {name: centre.cut(name, step.detach()) for name, step in direction.items()}
    if not 0 < float(centre.length(steps)) < math.inf:
        raise ValueError("directions must move the network: the direction given is zero, or holds NaN or infinity")
    return {name: step.to(centre.centre[name]) for name, step in steps.items()}


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
        directions.append(dict(Along(differences, mix.tolist())))
    return directions, values / values.sum()


def stacked(steps: Sequence[Point], centre: Coordinates | None = None) -> Point:
    """Lay directions side by side, name → (axes, *shape), as results keep them; unmoved names are zero.

    Without a centre they are as results keep them already.
    """
    shapes = {name: part for step in steps for name, part in step.items()}
    stacks = {n: torch.stack([step.get(n, torch.zeros_like(like)) for step in steps]) for n, like in shapes.items()}
    return centre.results(stacks, 1) if centre else stacks


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a short hash of names, shapes and every bit of the values."""
    return _hash((name, tuple(tensors[name].shape), [tensors[name]]) for name in sorted(tensors))


def plane_of(steps: Sequence[Point], centre: Coordinates) -> str:
    """Return the `fingerprint` of directions laid side by side, see `stacked`, without laying them so."""

    def rows(name: str) -> Iterator[Tensor]:
        for step in steps:
            part = step[name] if name in step else torch.zeros_like(centre.centre[name])
            yield centre.results({name: part})[name]

    names = sorted({name for step in steps for name in step})
    return _hash((name, (len(steps), *centre.shape(name)), rows(name)) for name in names)


def _hash(tensors: Iterable[tuple[str, tuple[int, ...], Iterable[Tensor]]]) -> str:
    digest = hashlib.sha256()
    for name, shape, parts in tensors:
        for index, part in enumerate(parts):
            value = parallel.whole(part).detach().cpu().contiguous()
            digest.update(b"" if index else f"{name}:{value.dtype}:{shape}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _rescaled(centre: Coordinates, name: str, draw: Tensor, normalize: str) -> Tensor:
    weight = centre.centre[name]
    if normalize == "filter":
        return draw.mul_(_ratio(centre.filter_norms(name, weight), centre.filter_norms(name, draw)))
    if normalize == "layer":
        draw, weight = centre.whole(name, draw), centre.whole(name, weight)
        # nn.MultiheadAttention packs q, k and v in one tensor: three layers, each with a norm of its own
        parts = 3 if name.rpartition(".")[2] == "in_proj_weight" and len(weight) % 3 == 0 else 1
        pairs = zip(draw.chunk(parts), weight.chunk(parts), strict=True)
        return centre.cut(name, torch.cat([part * _ratio(w.norm(), part.norm()) for part, w in pairs]))
    return draw


def _ratio(wanted: Tensor, drawn: Tensor) -> Tensor:
    """Return wanted/drawn, zero where nothing was drawn: a filter without elements or of zeros is no reason for NaN."""
    return torch.where(drawn > 0, wanted / drawn.clamp(min=torch.finfo(drawn.dtype).tiny), 0.0)
