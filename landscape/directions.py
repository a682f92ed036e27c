"""Directions in weight space: random ones, normalised to the network's own filters or layers, and between networks."""

from __future__ import annotations

from torch import Tensor, nn

from .coordinates import Coordinates, Point, coordinates, filter_norms, gaussian

NORMALIZATIONS = ("filter", "layer", "none")


def random_direction(centre: Coordinates, seed: int, normalize: str = "filter") -> Point:
    """Draw a Gaussian direction, zero on biases and norm parameters, rescaled to the weights' norms.

    ``"filter"`` gives each filter (slice along dimension 0) of the direction the norm of the weight's filter,
    ``"layer"`` each tensor the norm of the weight, ``"none"`` leaves the Gaussian. The draw depends on name, shape and
    seed alone, so two networks of one architecture get the same draw, each scaled by its own norms.

    Source: Li et al. 2018, §4 (filter normalisation).
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}")
    weights = {name: w for name, w in centre.centre.items() if w.ndim > 1}
    if not weights:
        raise ValueError(
            "no weight of two or more dimensions: random directions move nothing; pass directions yourself"
        )
    return {name: _rescaled(draw, weights[name], normalize) for name, draw in gaussian(weights, seed)}


def direction_to(centre: Coordinates, other: nn.Module) -> Point:
    """Return the step from one network to another of the same architecture, over all that varies.

    Raises:
        ValueError: the two networks' weights differ in name or shape.
    """
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
    for name, step in direction.items():
        if name not in centre.centre:
            raise ValueError(
                f"the direction moves {name!r}, which does not vary here; what varies: {centre.names[:5]} …"
            )
        if step.shape != centre.centre[name].shape:
            have = tuple(centre.centre[name].shape)
            raise ValueError(f"the direction of {name!r} must have shape {have}, got {tuple(step.shape)}")
    return {name: step.detach().to(centre.centre[name]) for name, step in direction.items()}


def _rescaled(draw: Tensor, weight: Tensor, normalize: str) -> Tensor:
    if normalize == "filter":
        return draw * (filter_norms(weight) / filter_norms(draw))
    if normalize == "layer":
        return draw * (weight.norm() / draw.norm())
    return draw
