"""Progress bars for what takes longer than two seconds, functions that can pause, and a stopwatch."""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_DELAY = 2  # seconds until a bar is shown
_showing = False  # whether one is on the screen


def progress(iterable: Iterable, description: str, total: int | None = None) -> Iterator:
    """Show a progress bar once an iteration has taken two seconds; inside another one, show none.

    It leaves nothing behind, however the iteration ends: no line in a terminal, no output in a notebook's file.
    """
    global _showing
    if _showing or "TQDM_DISABLE" in os.environ:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    bar, _showing = _bar()(total=total, desc=description, delay=_DELAY, leave=False), True
    try:
        for item in iterable:
            yield item
            bar.update()
    finally:
        _showing = False
        bar.close()


@functools.cache
def _bar() -> type:
    """Return tqdm's bar without its lock, which an interrupt can leave taken: other threads would wait forever.

    In a notebook it is an output that ends empty: tqdm's own widget would be red where a loop ends early, and an error
    in the saved file.
    """
    from tqdm import tqdm

    lock = contextlib.nullcontext()
    vars(lock).update(acquire=lambda: True, release=lambda: None)

    class Bar(tqdm):
        _lock, monitor_interval, _output = lock, 0, None

        def display(self, msg: str | None = None, pos: int | None = None) -> Any:
            if not in_notebook():
                return super().display(msg, pos)
            from IPython.display import display

            data = dict.fromkeys(("text/plain", "text/html"), "")
            if msg is None:
                text = self.format_meter(**self.format_dict | {"ncols": 0})
                share = f'<progress value="{self.n}" max="{self.total}"></progress> ' if self.total else ""
                data = {"text/plain": text, "text/html": share + html.escape(text)}
            if self._output is None:
                self._output = display(data, raw=True, display_id=True)
            else:
                self._output.update(data, raw=True)

    return Bar


def in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


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
        vars(run).update(steps=function, __signature__=signature.replace(return_annotation=returns))
        return cast(Resumable[P, T], run)

    return decorate


def stopwatch() -> Callable[[], float]:
    """Start a clock; calling it returns the seconds since."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def announce(products: int, seconds: float, bytes: float, vectors: float, processes: int = 1, passes: int = 0) -> None:
    """Print the cost of a measurement that takes more than 30 s: to stderr, in notebooks (red there) to stdout."""
    if seconds > 30 and "TQDM_DISABLE" not in os.environ:
        graphs, others = (f"{b / 1e9:.1f} GB" if b >= 1e9 else f"{b / 1e6:.0f} MB" for b in (bytes, vectors))
        forwards = f"{passes} passes over the data and " if passes else ""
        cost = f"{forwards}{products} matrix-vector products, {duration(seconds)}"
        where = f" in each of {processes} processes" if processes > 1 else ""
        held = f"graphs hold {graphs}, vectors {others}"
        print(f"ahead: about {cost}; {held}{where}", file=sys.stdout if in_notebook() else sys.stderr)


def duration(seconds: float) -> str:
    """Format seconds as 'M min S s'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
