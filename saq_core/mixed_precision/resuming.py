"""What a search has found so far, in a file: one that was killed goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from landscape.checking import seed_of
from landscape.parallel import fingerprints

from .. import files, processes
from ..contexts import seeded


class Checkpoint:
    """The rows of a search, and the state that they led to.

    Args:
        path: Of the file; None keeps nothing.
        arguments: All that decide the numbers, "seed" among them; a file of others is refused.
        device: Of the network.

    Raises:
        ValueError: If the file is damaged, or belongs to a search with other arguments.
    """

    def __init__(self, path: str | Path | None, arguments: dict[str, Any], device: torch.device) -> None:
        self.path, self.seed, self.device = path, seed_of(arguments["seed"]), device
        self.content: dict[str, Any] = {"rows": {}, "state": {}, "seconds": 0.0}
        if path is not None:
            self.content["arguments"] = fingerprints(arguments)
            if Path(path).exists():
                stored = files.read(path, "search")
                files.check_same_settings(path, stored["arguments"], self.content["arguments"], "arguments")
                self.content = stored
        self.start = time.perf_counter() - self.content["seconds"]

    @property
    def seconds(self) -> float:
        """Wall-clock time, with that of the searches that were killed, up to their last row."""
        return time.perf_counter() - self.start

    def rows(self, name: str, count: int, make: Callable[[int], Any], **parts: Any) -> list[Any]:
        """Return ``make(0) … make(count - 1)``, those in the file as they are there; each is written when it is made.

        Each draws from a seed of its own. `parts`, what `make` changes, have a state dict.
        """
        rows: list[Any] = self.content["rows"].setdefault(name, [])
        if rows:
            for key, part in parts.items():
                part.load_state_dict(self.content["state"][key])
        for k in processes.bar(range(len(rows), count), "searching"):
            with seeded((self.seed * 1_000_003 + k) % 2**63, self.device):
                rows.append(make(k))
            if self.path is not None:
                self.content["state"] |= {key: part.state_dict() for key, part in parts.items()}
                files.write(self.path, "search", self.content | {"seconds": self.seconds})
        return rows
