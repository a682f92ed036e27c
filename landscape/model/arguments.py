"""What measuring functions take in place of a model: an objective that is there already, or one about other weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .adapters import rounded_weights
from .objective import Objective


def objective_of(model: nn.Module | Objective, data: Any = None, **arguments: Any) -> Objective:
    """Return the objective given in place of a model, or make one.

    Raises:
        ValueError: an objective together with arguments of an objective.
    """
    if not isinstance(model, Objective):
        return Objective(model, data, **{name: value for name, value in arguments.items() if value is not None})
    defaults = {"batchnorm": "fixed", "precision": "fp32"}
    if given := [n for n, v in {"data": data, **arguments}.items() if v is not None and v != defaults.get(n)]:
        raise ValueError(
            f"an objective has its own {', '.join(given)}: pass it to landscape.Objective, or a model here"
        )
    return model


def recentred(objective: Objective) -> Objective:
    """Return the same function about the weights and buffers that its model has now, after steps of a training, say.

    What was found out about network, loss and derivatives is kept, and the data as they were read.

    Cost: a forward pass over the data, and a copy of the tensors.
    """
    other = copy.copy(objective)
    with objective.measurement_mode() as held:
        other.rounded = {} if objective.coordinates.layouts else rounded_weights(objective.model)
        other.network = objective.network.recentred(other.rounded)
        if objective._is_adapted:
            other.rounded |= other._rounded_in_use({}, next(other.batches()))
            held.renew()
            other.network = objective.network.recentred(other.rounded)
        other.coordinates = other.network.coordinates
        other._evaluate_centre(objective._factor)
    return other


def load_state(network: nn.Module, known: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Load a state dict, and of what it leaves out what is known: no tensor that it has under another, tied name.

    Raises:
        RuntimeError: names or shapes that the network does not have; tensors that neither has.
    """
    own = network.state_dict(keep_vars=True)
    given = {id(own[name]) for name in state.keys() & own.keys()}
    tied = {name for name in own if name not in state and id(own[name]) in given}
    filled = {name: tensor for name, tensor in known.items() if name not in tied} | dict(state)
    missing, unexpected = network.load_state_dict(filled, strict=False)
    if odd := [*(set(missing) - tied), *unexpected]:
        raise RuntimeError(f"names that only one of network and state dict has: {', '.join(sorted(odd)[:5])}")
