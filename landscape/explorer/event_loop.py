"""Work on a kernel's event loop, between the messages that it answers: all explorers take turns.

Never in a second thread, where the global switches that a measurement sets (random numbers, precision) would reach the
cells that run meanwhile. Front ends may deliver clicks in threads of their own: these only ask, and the loop acts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

_SLICE, _PAUSE = 0.05, 0.005  # seconds of work, and for messages, in turn
_COVERS = {"draw": {"begin"}, "slice": {"begin", "draw"}}  # what need not be done when more is asked for


class Worker:
    """Does what it is asked for, once for all who asked meanwhile, and goes on with a long job in between.

    Attributes:
        live: whether there is an event loop; if not, what is asked for is done at once, to its end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._asked: dict[str, Callable[[], Any]] = {}
        self._job: Iterator[int] | None = None  # gives the cost of each step
        self._done, self._inside = 0, False

    @property
    def live(self) -> bool:
        """Whether work goes on in the background, on the event loop of the kernel that a front end talks to."""
        return self._loop is not None

    def _ask(self, name: str, action: Callable[[], Any]) -> None:
        self._asked[name] = action
        if self._loop is not None:
            _TURNS.join(self, self._loop)
        elif not self._inside:
            self.wait()

    def wait(self) -> Any:
        """Work until all is done."""
        while self.advance():
            pass

    def advance(self) -> bool:
        """Do what is asked, or work for a moment; tell whether anything is left."""
        asked = {name: self._asked.pop(name) for name in list(self._asked)}
        self._inside = True
        try:
            for name, action in asked.items():
                if not _COVERS.get(name, set()) & asked.keys():
                    self._guarded(action)
            if not asked and self._job is not None:
                self._guarded(self._work)
            if asked or self._job is None:
                self._guarded(self._changed)
        finally:
            self._inside = False
        return bool(self._asked) or self._job is not None

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Show what goes wrong: an error in the background is seen nowhere else."""
        try:
            action()
        except KeyboardInterrupt:
            self._end_job()
            self._worked(True)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
            if not self.live:
                raise

    def _work(self) -> None:
        """Take steps for a moment."""
        until = time.perf_counter() + _SLICE
        for cost in self._job or ():
            self._done += cost
            if time.perf_counter() >= until:
                return self._worked(False)
        self._job = None
        self._worked(True)

    def _end_job(self) -> None:
        if self._job is not None:
            self._job.close()  # type: ignore[attr-defined]
        self._job = None

    def _worked(self, done: bool) -> None:
        raise NotImplementedError

    def _changed(self) -> None:
        raise NotImplementedError

    def _say(self, text: str) -> None:
        raise NotImplementedError


class _Turns:
    """Who came last goes first, and the others wait: two at once would both be slow, and neither is looked at."""

    def __init__(self) -> None:
        self._waiting: list[Worker] = []
        self._task: asyncio.Task[None] | None = None

    def join(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        """Put a worker first in the line."""
        loop.call_soon_threadsafe(self._begin, worker)

    def _begin(self, worker: Worker) -> None:
        self._waiting = [*(other for other in self._waiting if other is not worker), worker]
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                first = self._waiting[-1]
                if not first.advance():
                    self._waiting = [other for other in self._waiting if other is not first]
                await asyncio.sleep(_PAUSE)
        finally:
            self._waiting = []


_TURNS = _Turns()
