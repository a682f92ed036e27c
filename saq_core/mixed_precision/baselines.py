"""Baselines of a search: the same bits everywhere, random bits, the trace of the Hessian, measured loss increases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape import Objective, Sensitivity, trace
from landscape.checking import seed_of
from landscape.model import quantized_layers

from ..quantization import QuantizerName, parse_bits, quantize
from .resuming import Checkpoint
from .space import MILLION, Space

SLACK = 0.02  # a random policy costs at most this share less than the budget
TRIES = 100_000  # draws before a random search gives up
TRACE_RTOL = 0.05  # standard error of the whole trace, at which the probes stop
LARGEST_COST = 1e6  # of the integer programme: its solver stops within 1e-6 of the optimum


def uniform(space: Space, budget: float) -> Tensor:
    """Return the costliest single candidate, everywhere, that fits into the budget."""
    choices = torch.stack([space.everywhere(k) for k in range(len(space.candidates))])
    costs = space.bops(choices)
    if not (costs <= budget).any():
        least = int(costs.min())
        raise ValueError(
            f"budget must be >= {least} for the same bits everywhere, got {budget}: {least / MILLION:,.1f} M BOPs"
        )
    return choices[costs.where(costs <= budget, -1).argmax()]


def at_random(space: Space, budget: float, seed: int, *, slack: float = SLACK, tries: int = TRIES) -> Tensor:
    """Return a random choice that costs from (1 - slack)·budget to budget.

    Every layer draws alike, candidate k of v bit operations per multiplication with ``p ∝ exp(-θ·v)``, θ such that the
    mean cost is the middle of the window; the first draw inside is taken. Uniform probabilities (θ = 0) would hardly
    ever meet a budget away from their mean where there are many layers.
    """
    low = (1 - slack) * budget
    probabilities = _tilted(space, (low + budget) / 2)
    random = torch.Generator().manual_seed(seed_of(seed))
    drawn = torch.multinomial(probabilities, tries * len(space.groups), replacement=True, generator=random)
    choices = drawn.view(tries, -1)
    costs = space.bops(choices)
    inside = ((costs >= low) & (costs <= budget)).nonzero()[:, 0]
    if not len(inside):
        drawn_costs = f"{int(costs.min()) / MILLION:,.1f} … {int(costs.max()) / MILLION:,.1f} M BOPs"
        rule = f"budget must be one that random bits can meet, got {budget}: none of {tries:,} draws cost"
        raise ValueError(f"{rule} {low / MILLION:,.1f} … {budget / MILLION:,.1f} M, they cost {drawn_costs}")
    return choices[inside[0]]


def _tilted(space: Space, target: float) -> Tensor:
    """Return the probabilities (candidates,) under which the mean cost is nearest to the target."""
    values = space.table.sum(0).double()  # of one candidate everywhere
    scale = values / values.max()
    low, high = -500.0, 500.0
    for _ in range(60):
        middle = (low + high) / 2
        probabilities = (-middle * scale).softmax(0)
        low, high = (middle, high) if probabilities @ values + space.fixed > target else (low, middle)
    return probabilities


def by_hessian(
    space: Space,
    model: nn.Module,
    data: Any,
    budget: float,
    seed: int,
    quantizer: QuantizerName,
    checkpoint: Checkpoint,
    **functions: Any,
) -> tuple[Tensor, Any]:
    """Return the choice of least ``Σ mean trace(H_layer) · ‖Q_b(w) - w‖²`` within the budget, and the traces.

    H is the Hessian of the loss of the float network on `data`, in raw units, because the error is in raw units; the
    `functions` are those of `Objective`.
    Where candidates differ in what the measure does not see (the bits of inputs, any bits of a layer without
    curvature), those that use most of the budget are taken (ours).

    Source: Dong et al., HAWQ-V2 (2020), eq. 8. Departures: exact, as an integer programme, where they pick from a
    Pareto front; a trace whose estimate is negative counts as 0.
    """

    def traces(_: int) -> dict[str, float]:
        float_loss = Objective(model, data, **functions)
        estimates = trace(float_loss, per_layer=True, rtol=TRACE_RTOL, seed=seed).layers
        return {name: value for name, (value, _) in estimates.items()}

    (estimates,) = checkpoint.rows("traces", 1, traces)
    errors = _errors(space, model, quantizer)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    frozen = sorted(set(errors) - set(estimates))
    if frozen:
        raise ValueError(f"model must have trainable weights for method='hessian', got frozen {frozen}")
    mean = {name: max(estimates[name], 0.0) / sizes[name] for name in errors}
    rows = {name: k for k, group in enumerate(space.groups.values()) for name in group}
    sensitivity = torch.zeros_like(space.table, dtype=torch.float64)
    for name, error in errors.items():
        sensitivity[rows[name.rpartition(".")[0]]] += mean[name] * error
    return _least(space, sensitivity, budget), {"mean_traces": mean, "rises": _listed(space, sensitivity)}


def by_sensitivity(space: Space, sensitivity: Sensitivity, budget: float) -> tuple[Tensor, Any]:
    """Return the choice of least sum of measured loss increases within the budget, and these.

    A candidate "W4A4" costs a layer its increase at the format "W4A4", or at "W4" where there is no such. What is
    measured has errors: an increase below 0 counts as 0, and fewer bits never cost less than more, of weights and
    inputs; of equal sums the one that uses most of the budget is taken.
    """
    formats = [bits if bits in sensitivity.formats else bits.partition("A")[0] for bits in space.candidates]
    names = [[n for n in group if not n.endswith(".products")] for group in space.groups.values()]  # which have weights
    lacking = [f"format {form!r}" for form in formats if form not in sensitivity.formats]
    lacking += [f"layer {name!r}" for group in names for name in group if name not in sensitivity.layers]
    if lacking:
        raise ValueError(f"sensitivity must have all candidates and layers of the search, got none of {lacking[0]}")
    increases = {(row["layer"], row["format"]): row["increase"] for row in sensitivity.rows}
    measured = [[sum(max(increases[n, form], 0.0) for n in group) for form in formats] for group in names]
    if not all(math.isfinite(increases[n, form]) for group in names for n in group for form in formats):
        raise ValueError("sensitivity must be finite at all candidates, got NaN or infinity: leave these bits out")
    bits = [parse_bits(label) for label in space.candidates]
    more = [[w >= own[0] and a >= own[1] for w, a in bits] for own in bits]  # [candidate, one of no fewer bits]
    costs = torch.tensor(measured, dtype=torch.float64)[:, None, :].where(torch.tensor(more), 0.0).amax(2)
    return _least(space, costs, budget), {"rises": _listed(space, costs)}


def _least(space: Space, costs: Tensor, budget: float) -> Tensor:
    """Return the choice of least cost within the budget, of equals the one that uses most of it."""
    room = budget - space.fixed
    unused = (space.table.amax(1, keepdim=True) - space.table).double()
    equal = costs == costs.gather(1, solve(costs, space.table, room)[:, None])
    return solve(unused.where(equal, 1 + unused.sum()), space.table, room)


def _listed(space: Space, costs: Tensor) -> dict[str, list[float]]:
    return dict(zip(space.groups, costs.tolist(), strict=True))


def _errors(space: Space, model: nn.Module, quantizer: QuantizerName) -> dict[str, Tensor]:
    """Return weight's name -> (candidates,) squared error of its quantization."""
    errors: dict[str, list[Tensor]] = {}
    for k in range(len(space.candidates)):
        quantized = quantize(model, space.bits(space.everywhere(k)), quantizer=quantizer)
        free = {name for group in space.groups.values() for name in group}
        for layer_name, layer in quantized_layers(quantized).items():
            for name, (value, _, _) in layer.quantized_weights().items() if layer_name in free else ():
                error = (value - layer.get_parameter(name).detach()).double().square().sum()
                errors.setdefault(f"{layer_name}.{name}", []).append(error.cpu())
    return {name: torch.stack(column) for name, column in errors.items()}


def solve(costs: Tensor, sizes: Tensor, room: float) -> Tensor:
    """Return the choice (rows,) of one column per row with least total cost and total size <= room.

    Args:
        costs: (rows, columns), to be minimised.
        sizes: (rows, columns), whole numbers.
        room: For the sizes; some choice has to fit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows, columns = costs.shape
    unit = int(np.gcd.reduce(sizes.flatten().numpy()))
    one_each = np.kron(np.eye(rows), np.ones(columns))
    # half a unit of room more: the solver's tolerance then never decides
    most = np.floor(room / unit) + 0.5
    total = LinearConstraint((sizes.flatten().numpy() // unit)[None], -np.inf, most)
    scale = (float(costs.abs().max()) or 1.0) / LARGEST_COST
    solution = milp(
        (costs / scale).flatten().numpy(),
        integrality=np.ones(rows * columns),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), total],
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        raise RuntimeError(f"the integer programme was not solved: {solution.message}")
    choice = torch.from_numpy(solution.x).view(rows, columns).argmax(1)
    over = int(sizes.gather(1, choice[:, None]).sum()) - math.floor(room)  # the solver's ones and zeros are so nearly
    return choice if over <= 0 else solve(costs, sizes, math.floor(room) - over)
