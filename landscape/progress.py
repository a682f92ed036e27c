"""Progress bars for what takes longer than two seconds, functions that can pause, and a stopwatch."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_showing = False  # whether a progress bar is on the screen


def progress(iterable: Iterable, description: str, total: int | None = None) -> Iterator:
    """Show a progress bar once an iteration has taken two seconds; inside another one, show none."""
    global _showing
    if _showing:
        yield from iterable
        return
    _showing = True
    try:
        # tqdm's bars for notebooks do not ask for its own switch
        off = "TQDM_DISABLE" in os.environ
        yield from _bar()(iterable, description, total=total, delay=2, leave=False, disable=off)
    finally:
        _showing = False


@functools.cache
def _bar() -> type:
    """Return tqdm's bar without its lock, which an interrupt can leave taken: other threads would wait forever."""
    from tqdm.auto import tqdm

    lock = contextlib.nullcontext()
    vars(lock).update(acquire=lambda: True, release=lambda: None)
    return type("Bar", (tqdm,), {"_lock": lock, "monitor_interval": 0})


class Resumable(Protocol[P, T_co]):
    """A function that runs to completion, and as a generator, ``.steps``, that pauses after every product."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...  # noqa: D102

    def steps(self, *args: P.args, **kwargs: P.kwargs) -> Generator[None, None, T_co]: ...  # noqa: D102


def resumable(
    description: str, total: str | None = None
) -> Callable[[Callable[P, Generator[None, None, T]]], Resumable[P, T]]:
    """Turn a generator function into one that runs to completion under a progress bar.

    The generator itself is its ``.steps``, for callers that attend to other things between two steps.

    Args:
        description: of the progress bar.
        total: name of the argument that says how many steps there are at most.

    Example:
        >>> @resumable("sum", total="n")
        ... def add_up(n: int) -> Generator[None, None, int]:
        ...     for _ in range(n):
        ...         yield
        ...     return n * (n - 1) // 2
        >>> add_up(5)
        10
        >>> len(list(add_up.steps(5)))
        5
    """

    def decorate(function: Callable[P, Generator[None, None, T]]) -> Resumable[P, T]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            results: list[T] = []

            def steps() -> Iterator[None]:
                results.append((yield from function(*args, **kwargs)))

            arguments = signature.bind(*args, **kwargs)
            arguments.apply_defaults()
            for _ in progress(steps(), description, arguments.arguments[total] if total else None):
                pass
            return results[0]

        returns = str(signature.return_annotation).removeprefix("Generator[None, None, ").removesuffix("]")
        run.__annotations__ = function.__annotations__ | {"return": returns}
        attributes: dict[str, Any] = {"steps": function, "__signature__": signature.replace(return_annotation=returns)}
        vars(run).update(attributes)
        return cast(Resumable[P, T], run)

    return decorate


def stopwatch() -> Callable[[], float]:
    """Start a clock; calling it returns the seconds since."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def announce(products: int, seconds: float, bytes: float) -> None:
    """Print to stderr the expected cost of a measurement that takes longer than 30 s."""
    if seconds > 30 and "TQDM_DISABLE" not in os.environ:
        memory = f"{bytes / 1e9:.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.0f} MB"
        cost = f"{products} matrix-vector products, {duration(seconds)}"
        print(f"ahead: about {cost}; graphs hold {memory}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Format seconds as 'M min S s'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
