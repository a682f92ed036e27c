"""Checks of arguments: by their annotation, options that a `Literal` type lists, and numbers within bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import reprlib
import sys
import types
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])
_UNIONS = (Union, types.UnionType)
_FOREIGN = {"Axes": "matplotlib.axes", "Figure": "matplotlib.figure"}  # imported by whoever has one
# what an annotation means → what fits, and how a message calls it
_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "True or False"),
    int: (lambda value: isinstance(value, Integral) and not isinstance(value, bool), "a whole number"),
    float: (lambda value: isinstance(value, Real) and not isinstance(value, bool), "a number"),
    str: (lambda value: isinstance(value, str), "a text"),
    type(None): (lambda value: value is None, "None"),
    Path: (lambda value: isinstance(value, os.PathLike | str) and value != "" and "\0" not in str(value), "a path"),
    torch.device: (lambda value: _is_device(value), "a device that is there"),
    nn.Module: (lambda value: isinstance(value, nn.Module), "a network (nn.Module)"),
}


class ArgumentError(TypeError, ValueError):
    """An argument is of another type than its annotation says; whoever expects a ValueError catches it as well."""


def check_public(package: Any, agree: Callable[..., None]) -> None:
    """Check, from now on, the arguments of everything that a package names in its ``__all__``.

    Functions, how classes are made, and the methods of dataclasses; see `checked`. Nothing else is: what runs in loops
    calls the functions inside. `agree` is `landscape.parallel.check_agreement`, in which processes that were given good
    arguments wait for those that were not.
    """
    for name in package.__all__:
        item = getattr(package, name)
        if inspect.isfunction(item):
            wrapped = checked(item, agree=agree)
            setattr(package, name, wrapped)
            setattr(sys.modules[item.__module__], name, wrapped)  # where pickle looks
        for owner in inspect.getmro(item) if inspect.isclass(item) else ():
            if owner.__module__.partition(".")[0] != package.__name__:
                continue
            for key, method in list(vars(owner).items()):
                public = key == "__init__" or (dataclasses.is_dataclass(item) and not key.startswith("_"))
                if public and inspect.isfunction(method) and not hasattr(method, "__wrapped__"):
                    setattr(owner, key, checked(method, owner, agree))


def checked(function: F, owner: type | None = None, agree: Callable[..., None] | None = None) -> F:
    """Return a function whose arguments are checked by their annotations, and whose numbers are Python's own.

    Args:
        function: to be checked.
        owner: the class of a method; what a dataclass holds may be NaN.
        agree: see `check_public`.

    Example:
        >>> @checked
        ... def half(number: float) -> float:
        ...     return number / 2
        >>> import numpy as np
        >>> half(np.float32(3))
        1.5
        >>> half("3")
        Traceback (most recent call last):
        landscape.checking.ArgumentError: number must be a number, got '3'
    """
    signature, inner = inspect.signature(function), inspect.unwrap(function)

    @functools.cache
    def hint(name: str, imported: int) -> Any:
        annotation = signature.parameters[name].annotation
        # nothing is one of theirs before they are imported
        loaded = {k: getattr(sys.modules.get(m), k, type(k, (), {"__module__": m})) for k, m in _FOREIGN.items()}
        inherited = (vars(sys.modules[part.__module__]) for part in inspect.getmro(owner or object))
        names = ChainMap(loaded, inner.__globals__, *inherited)
        return eval(annotation, {}, names) if isinstance(annotation, str) else Any

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which names itself in Python's own error
        imported = sum(module in sys.modules for module in _FOREIGN.values())
        try:
            for name, value in bound.arguments.items():
                parameter = signature.parameters[name]
                several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                if value is not parameter.default and not several:
                    made = function.__name__ == "__init__"
                    bound.arguments[name] = argument(name, value, hint(name, imported), nan=made)
        except ValueError:
            if agree and "check_agreement" in inner.__code__.co_names:
                bound.apply_defaults()
                agree(**bound.arguments)
            raise
        return function(*bound.args, **bound.kwargs)

    return cast(F, call)


def argument(name: str, value: Any, hint: Any, *, nan: bool = False) -> Any:
    """Return an argument whose type is that of its annotation, with numpy's numbers and arrays as Python's own.

    Args:
        name: of the argument.
        value: what came.
        hint: the annotation; functions have to take as many arguments as it says.
        nan: whether a number may be NaN.

    Raises:
        ArgumentError: it is of another type.

    Example:
        >>> import numpy as np
        >>> argument("radii", np.array([0.1, 0.2]), Sequence[float])
        [0.1, 0.2]
        >>> argument("radii", 0.1, Sequence[float])
        Traceback (most recent call last):
        landscape.checking.ArgumentError: radii must be a list (each a number), got 0.1
    """
    try:
        value = _fitted(value, hint)
        if isinstance(value, float) and math.isnan(value) and not nan and hint is not Any:
            raise TypeError(value)
        return value
    except TypeError:
        if all(get_origin(part) is Literal for part in {*_parts(hint)} - {type(None)}):
            one_of(name, value, hint)
        shown = " ".join(reprlib.repr(value).split())
        listed = any(get_origin(part) is Sequence for part in _parts(hint)) and isinstance(value, str)
        advice = f": write [{value!r}]" * listed
        raise ArgumentError(f"{name} must be {_described(hint)}, got {shown}{advice}") from None


def _fitted(value: Any, hint: Any) -> Any:
    """Return a value as its annotation has it; raise TypeError where it does not fit."""
    origin, parts = get_origin(hint), get_args(hint)
    value = value.item() if isinstance(value, np.generic) else value
    if origin in _UNIONS:
        for part in _parts(hint):
            with contextlib.suppress(TypeError):
                return _fitted(value, part)
    elif origin is Literal:
        if any(type(value) is type(option) and value == option for option in parts):
            return value
    elif origin in (Sequence, list, tuple):
        rows = value.tolist() if isinstance(value, np.ndarray | Tensor) and value.ndim == 1 and len(value) else value
        if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
            several = origin is not tuple or parts[1:] == (...,)
            hints = parts[:1] * len(rows) if several else parts
            if len(hints) == len(rows):
                items = tuple(map(_fitted, rows, hints))
                same = all(a is b for a, b in zip(items, rows, strict=True))
                fits = same and (origin is not tuple or isinstance(rows, tuple))
                return rows if fits else items if origin is tuple else list(items)
    elif origin in (Mapping, dict):
        if isinstance(value, origin):
            made = {_fitted(key, parts[0]): _fitted(part, parts[1]) for key, part in value.items()}
            return value if all(part is value[key] for key, part in made.items()) else made
    elif hint is Any:
        return value
    elif hint in _KINDS:
        number = hint in (bool, int, float) and isinstance(value, np.ndarray | Tensor) and value.ndim == 0
        value = value.item() if number else value
        if _KINDS[hint][0](value):
            return value
    elif hint is Tensor and isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    elif _takes(value, parts[0]) if origin is Callable else not isinstance(hint, type) or isinstance(value, hint):
        return value
    raise TypeError(type(value))


def _parts(hint: Any) -> list[Any]:
    """Return what a union is made of; texts that name a path or a device are none of their own."""
    parts = list(get_args(hint)) if get_origin(hint) in _UNIONS else [hint]
    return [part for part in parts if part is not str] if Path in parts or torch.device in parts else parts


def _takes(function: Any, arguments: Any) -> bool:
    """Return whether something can be called; raise TypeError where it says that it takes other arguments."""
    if callable(function) and arguments is not ...:
        with contextlib.suppress(ValueError):  # some built-in functions do not say
            inspect.signature(function).bind(*arguments)
    return callable(function)


def _is_device(value: Any) -> bool:
    try:
        there = isinstance(value, str | torch.device) and torch.empty(0, device=value)
        return isinstance(there, Tensor) and (isinstance(value, torch.device) or not there.is_meta)
    except (RuntimeError, AssertionError):
        return False


def _described(hint: Any) -> str:
    """Return in words what fits an annotation."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        return " or ".join(map(_described, _parts(hint)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is Callable:
        count = "" if parts[0] is ... else f" of {len(parts[0])} argument{'s' * (len(parts[0]) != 1)}"
        return f"a function{count}"
    if origin is tuple:
        return f"a tuple ({', '.join('…' if part is ... else _described(part) for part in parts)})"
    if origin in (Sequence, list):
        return f"a list (each {_described(parts[0])})"
    if origin in (Mapping, dict):
        return "a mapping" if parts[1] is Any else f"a mapping (each value {_described(parts[1])})"
    return _KINDS[hint][1] if hint in _KINDS else f"a {hint.__module__.partition('.')[0]}.{hint.__name__}"


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
    if not isinstance(value, str | Real | None) or value not in allowed:
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
    numbers(whole=True, at_least=-(2**63), at_most=2**63 - 1, seed=seed)
    return int(seed)


def is_logger(log: Any) -> bool:
    """Return whether something has a method log(row); that of a tensor is a logarithm, others take more than a row."""
    try:
        return not isinstance(log, Tensor | np.ndarray) and _takes(getattr(log, "log", None), [{}])
    except TypeError:
        return False


def check_draws(num_samples: int, seed: int) -> None:
    """Raise if there are fewer than two draws, or a seed is none."""
    numbers(whole=True, at_least=2, note="for a standard error", num_samples=num_samples)
    seed_of(seed)


def _options(options: Any) -> tuple[Any, ...]:
    if get_origin(options) in _UNIONS:
        return tuple(option for part in get_args(options) for option in _options(part))
    return (None,) if options is type(None) else tuple(get_args(options) or options)


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
