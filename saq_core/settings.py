"""Settings that are checked where they are made: options by their `Literal`, numbers by a table of ranges."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

RANGES: dict[str, Callable[[Any], bool]] = {
    ">= 0 and finite": lambda value: value >= 0,
    "> 0": lambda value: value > 0,
    "from 0 to 1": lambda value: 0 <= value <= 1,
    "from 0 to below 1": lambda value: 0 <= value < 1,
    "above 0 and at most 1": lambda value: 0 < value <= 1,
    "above 0 and below 1": lambda value: 0 < value < 1,
}


def check_option(name: str, value: Any, options: Any) -> None:
    """Raise unless `value` is one of the options of a `Literal`."""
    if value not in get_args(options):
        raise ValueError(f"{name} must be one of {list(get_args(options))}, got {value!r}")


def check_number(name: str, value: Any, rule: int | str, *, optional: bool = False) -> None:
    """Raise unless `value` is a whole number >= `rule`, an int, or a finite number in the range that `rule` names."""
    if value is None and optional:
        return
    if isinstance(rule, int):
        fits, text = isinstance(value, int) and value >= rule, f"a whole number >= {rule}"
    else:
        fits, text = isinstance(value, Real) and math.isfinite(value) and RANGES[rule](value), rule
    if not fits or isinstance(value, bool):
        raise ValueError(f"{name} must be {text}{' or None' if optional else ''}, got {value!r}")


def check_fields(settings: Any, **rules: int | str) -> None:
    """Check the fields of a dataclass: all that are `Literal`, and those that `rules` names as in `check_number`.

    What has the range of a float becomes Python's: numpy's would not come back from a file.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(hint) is Literal:
            check_option(name, value, hint)
        elif name in rules:
            check_number(name, value, rules[name], optional=type(None) in get_args(hint))
            if isinstance(rules[name], str) and value is not None:
                object.__setattr__(settings, name, float(value))
