"""Checks of arguments: options that a `Literal` type lists, and numbers within bounds."""

from __future__ import annotations

import math
from collections.abc import Hashable
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin


def one_of(name: str, value: Any, options: Any) -> None:
    """Raise ValueError unless an argument is one of its options.

    Args:
        name: of the argument.
        value: what came.
        options: a ``Literal`` type, a union of one with None, or the options themselves.

    Raises:
        ValueError: it is not.

    Example:
        >>> from typing import Literal
        >>> one_of("units", "layer", Literal["raw", "filter"])
        Traceback (most recent call last):
        ValueError: units must be one of 'raw', 'filter', got 'layer'
    """
    allowed = _options(options)
    if not isinstance(value, Hashable) or value not in set(allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def numbers(
    *,
    whole: bool = False,
    finite: bool = True,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    optional: bool = False,
    note: str = "",
    **values: Any,
) -> None:
    """Raise ValueError unless all arguments given by name are numbers within the same bounds.

    Args:
        whole: integers only; True and False are none.
        finite: refuse infinity; NaN is refused in any case.
        above, at_least: lower bound, outside or inside of the range.
        below, at_most: upper bound, outside or inside of the range.
        optional: None is accepted as well.
        note: the reason for the bound, for the message.
        values: argument=value.

    Raises:
        ValueError: one is not; the message names the argument, the rule and the value that came.

    Example:
        >>> numbers(at_least=0, lr=0.1, momentum=0.9)
        >>> numbers(whole=True, at_least=2, note="for a standard error", num_probes=1)
        Traceback (most recent call last):
        ValueError: num_probes must be a whole number >= 2, for a standard error, got 1
    """
    for name, value in values.items():
        if value is None and optional:
            continue
        right = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
        right = right and not math.isnan(value) and not (finite and math.isinf(value))
        right = right and (above is None or value > above) and (at_least is None or value >= at_least)
        if not right or (below is not None and not value < below) or (at_most is not None and not value <= at_most):
            bounds = _range(above, at_least, below, at_most)
            unbounded = finite and not whole and below is None and at_most is None
            kind = "a whole number" if whole else "" if bounds else "a finite number" if finite else "a number"
            rule = " ".join(filter(None, [kind, bounds, "and finite" if unbounded and bounds else ""]))
            extra = (" or None" if optional else "") + (f", {note}" if note else "")
            raise ValueError(f"{name} must be {rule}{extra}, got {value!r}")


def seed_of(seed: Any) -> int:
    """Return a seed as Python's own whole number; numpy's are taken.

    Raises:
        ValueError: it is none.

    Example:
        >>> seed_of(3)
        3
    """
    numbers(whole=True, at_least=-(2**63), seed=seed)
    return int(seed)


def _options(options: Any) -> tuple[Any, ...]:
    if options is type(None):
        return (None,)
    if get_origin(options) is Literal:
        return get_args(options)
    if get_origin(options) is not None:  # a union
        return tuple(option for part in get_args(options) for option in _options(part))
    return tuple(options)


def _range(above: float | None, at_least: float | None, below: float | None, at_most: float | None) -> str:
    """Describe a range in words: ">= 1", "from 0 to below 1", "between 0 and 1"."""
    if above is not None and below is not None:
        return f"between {above} and {below}"
    if at_least is not None and at_most is not None:
        return f"from {at_least} to {at_most}"
    if at_least is not None and below is not None:
        return f"from {at_least} to below {below}"
    signs = ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
    return " and ".join(f"{sign} {bound}" for sign, bound in signs if bound is not None)
