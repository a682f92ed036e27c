"""Progress bars for what takes longer than two seconds, and a stopwatch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

_showing = False  # whether a progress bar is on the screen


def progress(iterable: Iterable, description: str, total: int | None = None) -> Iterator:
    """Show a progress bar once something has taken two seconds; inside another one, show none."""
    global _showing
    if _showing:
        yield from iterable
        return
    from tqdm.auto import tqdm

    _showing = True
    try:
        # tqdm's bars for notebooks do not ask for its own switch
        off = "TQDM_DISABLE" in os.environ
        yield from tqdm(iterable, description, total=total, delay=2, leave=False, disable=off)
    finally:
        _showing = False


def finished(steps: Generator[Any, None, Any], description: str, total: int | None = None) -> Any:
    """Run what works in steps to its end under a progress bar, and return what it returns."""
    result: list[Any] = []

    def run() -> Iterator[Any]:
        result.append((yield from steps))

    for _ in progress(run(), description, total):
        pass
    return result[0]


def stopwatch() -> Callable[[], float]:
    """Start a clock; calling it gives the seconds since."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def announce(products: int, seconds: float, bytes: float) -> None:
    """Say on stderr what is ahead where it takes longer than half a minute."""
    if seconds > 30 and "TQDM_DISABLE" not in os.environ:
        held = f"{bytes / 1e9:.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:.0f} MB"
        ahead = f"{products} matrix-vector products, {duration(seconds)}"
        print(f"ahead: about {ahead}; graphs hold {held}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Write a time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
