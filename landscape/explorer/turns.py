"""All explorers of a kernel take turns on its event loop, between the messages that it answers."""

from __future__ import annotations

import asyncio
from typing import Protocol

_PAUSE = 0.005  # seconds for messages, in turn with work


class Worker(Protocol):
    """What can work for a moment, and then tells whether anything is left."""

    def advance(self) -> bool: ...  # noqa: D102


class Turns:
    """Who came last goes first, and the others wait: two at once would both be slow, and neither is looked at."""

    def __init__(self) -> None:
        self._waiting: list[Worker] = []
        self._task: asyncio.Task[None] | None = None

    def join(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        """Put a worker first in the line."""
        self._leave(worker)
        self._waiting.append(worker)
        loop.call_soon_threadsafe(self._begin)

    def _leave(self, worker: Worker) -> None:
        if worker in self._waiting:
            self._waiting.remove(worker)

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                if not (first := self._waiting[-1]).advance():
                    self._leave(first)
                await asyncio.sleep(_PAUSE)
        finally:
            self._waiting.clear()


TURNS = Turns()
