"""Where training went: checkpoints on a plane through the final network, with what the plane leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import parallel
from ..checking import numbers
from ..model import (
    Along,
    BatchNorm,
    BatchObjective,
    Coordinates,
    Loss,
    Objective,
    Point,
    Space,
    copied,
    fingerprint,
    load_state,
    objective_of,
    principal_directions,
    stacked,
    step_to,
)
from ..progress import progress, stopwatch
from .axes import describe
from .grids import Directed, Surface

Checkpoint = nn.Module | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Trajectory(Directed):
    """Checkpoints on a plane through a network.

    Attributes:
        coordinates: (checkpoints, 2) steps along the plane's two directions to the point of the plane that is nearest.
        loss: (checkpoints,) of each checkpoint itself, with all its own tensors.
        plane_loss: (checkpoints,) at the nearest point of the plane: what a surface shows there.
        distance: (checkpoints,) of the checkpoint to the network at the centre.
        off_plane: (checkpoints,) of the checkpoint to the plane.
        explained: (2,) share of the squared distances to the centre along principal components 1 and 2; on a given
            surface, one number: the share that lies in its plane.
        stored: name → (2, *shape), the two directions; see `directions`.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(3, 2), (torch.randn(32, 3), torch.randint(2, (32,)))
        >>> path = landscape.trajectory(model, [torch.nn.Linear(3, 2) for _ in range(3)], data)
        >>> surface = landscape.surface(model, data, directions=path, span=path.span(), points=5)
        >>> figure = path.draw(surface=surface)
    """

    coordinates: Tensor
    loss: Tensor
    plane_loss: Tensor
    distance: Tensor
    off_plane: Tensor
    explained: Tensor
    stored: Point
    dims = dict.fromkeys(("loss", "plane_loss", "distance", "off_plane"), ("checkpoint",))
    dims |= {"coordinates": ("checkpoint", "axis"), "explained": ("component",)}
    columns = ("coordinates", "loss", "plane_loss", "distance", "off_plane")
    picture: ClassVar[str] = "trajectories.trajectory"

    def span(self, margin: float = 0.15) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the ends of both axes that hold the whole path and the centre, for `landscape.surface`."""
        ends = []
        numbers(at_least=0, margin=margin)
        for column in self.coordinates.T.tolist():
            low, high = min(0.0, *column), max(0.0, *column)
            ends.append((low - margin * (high - low), high + margin * (high - low)))
        # a path that hardly leaves one axis still gets a picture to stand in
        least = 0.1 * max(high - low for low, high in ends)
        wide = [(low, high) if high - low >= least else (low - least / 2, high + least / 2) for low, high in ends]
        return wide[0], wide[1]

    def check(self, surface: Surface) -> None:
        """Refuse a surface over another plane, on which these coordinates mean nothing."""
        for key in ("plane", "model"):
            if surface.about.get(key) != self.about[key]:
                raise ValueError(
                    f"surface must lie in the trajectory's plane, but its {key} is another one: measure it with "
                    "directions=trajectory, or the trajectory with surface=surface"
                )

    def _cells(self) -> dict[str, list[str]]:
        columns = {"loss": self.loss, "loss on the plane": self.plane_loss, "distance": self.distance}
        columns |= {"off the plane": self.off_plane}
        numbers = {name: [f"{value:.4g}" for value in column.tolist()] for name, column in columns.items()}
        return {"checkpoint": list(map(str, range(len(self.loss))))} | numbers

    def __repr__(self) -> str:
        share = 100 * float(self.explained.sum())
        return (
            f"Trajectory({len(self.loss)} checkpoints, {share:.3g} % of the squared distance in the plane, "
            f"loss {float(self.loss[0]):.4g} → {float(self.loss[-1]):.4g}, "
            f"at most {float((self.plane_loss - self.loss).abs().max()):.2g} from the plane's)"
        )


def trajectory(
    model: nn.Module | Objective,
    checkpoints: Sequence[Checkpoint],
    data: Any = None,
    *,
    surface: Surface | None = None,
    batchnorm: BatchNorm | None = None,
    space: Space | None = None,
    loss: Loss | None = None,
    objective: BatchObjective | None = None,
) -> Trajectory:
    """Project checkpoints onto a plane through the model, and measure what the projection hides.

    Coordinates are least squares, min_c ‖w_k − w − Σ c_i d_i‖: in multiples of the directions, which need be neither
    orthogonal nor of unit length. By default the plane is that of the two principal components of the differences
    to the model, which lies at (0, 0). Then ``surface(model, directions=trajectory, span=trajectory.span())`` draws it.

    Args:
        model: the network at the centre, usually the last checkpoint; not touched.
        checkpoints: networks, or their state dicts, in the order of training. A state dict with some of the tensors
            takes the others from ``model``.
        data: ``(x, y)`` or batches; default ``model.probe``.
        surface: project onto its plane.
        batchnorm: ``"fixed"`` (on the plane those of ``model``, at the checkpoints their own) or ``"recomputed"``;
            default that of the surface, else recomputed.
        space: ``"quantized"`` (default) or ``"latent"``; of the surface where one is given. Between quantized
            networks only what varies is projected: on the plane, steps and clips are those of ``model``.
        loss, objective: see `Objective`.

    Raises:
        ValueError: no checkpoints, other weights than the model's, a surface of another network, checkpoints that span
            no plane.

    Cost: two forward passes per checkpoint (four with recomputed statistics); memory for all differences.
    Source: Li et al. 2018, §7.2 (principal components of a trajectory); Lorch 2016.

    Example:
        >>> import copy, torch, landscape
        >>> model = torch.nn.Linear(3, 2)
        >>> model.probe = torch.randn(32, 3), torch.randint(2, (32,))
        >>> optimizer, checkpoints = torch.optim.SGD(model.parameters(), lr=0.1), []
        >>> for _ in range(4):
        ...     checkpoints.append(copy.deepcopy(model.state_dict()))
        ...     torch.nn.functional.cross_entropy(model(model.probe[0]), model.probe[1]).backward()
        ...     optimizer.step()
        >>> path = landscape.trajectory(model, checkpoints)
        >>> path.coordinates.shape
        torch.Size([4, 2])
    """
    parallel.check_agreement(**locals())
    elapsed = stopwatch()
    if not checkpoints:
        raise ValueError("checkpoints must hold at least one network or state dict, got none")
    if not isinstance(model, Objective):
        there: dict[str, Any] = {} if surface is None else surface.about
        batchnorm = batchnorm or there.get("batchnorm") or "recomputed"
        space = space or (None if there.get("space") == "float" else there.get("space"))
    function = objective_of(model, data, loss=loss, objective=objective, space=space, batchnorm=batchnorm)
    if function.coordinates.layouts:
        raise ValueError("checkpoints of a sharded network are not projected: pass whole networks and state dicts")
    other, centre = copied(function.model), function.coordinates.centre
    differences, losses = [], []
    for checkpoint in progress(checkpoints, "checkpoints"):
        network = _network(other, function.model, checkpoint)
        differences.append(step_to(function, network, reached=False))
        losses.append(function.of(network).centre.loss)
    if surface is None:
        steps, shares = principal_directions(differences)
        explained, axes = shares[:2], describe([{"kind": "principal component", "index": i} for i in (1, 2)])
    else:
        if surface.about.get("model") != fingerprint(centre):
            raise ValueError("surface must be one of this very model: its weights at the centre are others")
        steps = [{k: part.to(centre[k]) for k, part in step.items()} for step in surface.directions(function)]
        axes = {key: surface.about[key] for key in ("directions", "axes") if key in surface.about}
    coordinates, off_plane, distance = project(function.coordinates, differences, steps)
    if surface is not None:
        explained = 1 - (off_plane.square().sum() / distance.square().sum())[None]
    plane = [function.evaluate(Along(steps, row)).loss for row in coordinates.tolist()]
    kept = stacked(steps, function.coordinates)
    about = function.about(**axes, plane=fingerprint(kept), model=fingerprint(centre))
    about["seconds"] = elapsed()
    losses_there, plane_losses = (torch.stack(part).cpu() for part in (losses, plane))
    return Trajectory(about, coordinates, losses_there, plane_losses, distance, off_plane, explained, kept)


def project(centre: Coordinates, differences: Sequence[Point], steps: Sequence[Point]) -> tuple[Tensor, Tensor, Tensor]:
    """Return least-squares coordinates (k, axes), the distances that they leave, and the whole distances, float64."""
    zeros = {name: torch.zeros_like(value) for name, value in centre.centre.items()}
    plane = torch.stack([centre.flatten(zeros | step) for step in steps], 1).double()
    projections = []
    for difference in differences:
        whole = centre.flatten(zeros | difference).double()
        # by QR, not the normal equations: two networks' directions may be nearly parallel
        row = torch.linalg.lstsq(plane, whole[:, None]).solution[:, 0]
        projections.append((row, (whole - plane @ row).norm(), whole.norm()))
    rows, off, distance = (torch.stack(part).cpu() for part in zip(*projections, strict=True))
    return rows, off, distance


def _network(other: nn.Module, model: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    if isinstance(checkpoint, nn.Module):
        return checkpoint
    state = model.state_dict()
    checkpoint = {name.removeprefix("_orig_mod."): tensor for name, tensor in checkpoint.items()}  # of a compiled model
    if unknown := sorted(checkpoint.keys() - state.keys()):
        raise ValueError(f"a checkpoint holds {unknown[0]!r}, which the model does not have: pass its own state dicts")
    try:
        load_state(other, state, checkpoint)
    except RuntimeError as error:
        raise ValueError(f"checkpoints must fit the model: {' '.join(str(error).split())}") from error
    return other
