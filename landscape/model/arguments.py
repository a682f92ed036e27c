"""What measuring functions take in place of a model: an objective that is there already."""

from __future__ import annotations

from typing import Any

from torch import nn

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
