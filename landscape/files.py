"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a scratch file beside a path; when the block ends without an error, it is on the disk and takes its place.

    A reader never sees half a file, and two processes never write into one: the scratch file's name holds the process.

    Args:
        path: what is to be written; its folder is made.

    Example:
        >>> import pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with atomic(pathlib.Path(folder.name) / "deep" / "numbers.txt") as scratch:
        ...     _ = scratch.write_text("1 2 3")
        >>> [file.name for file in (pathlib.Path(folder.name) / "deep").iterdir()]
        ['numbers.txt']
        >>> folder.cleanup()
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield scratch
        with scratch.open("rb+") as file, contextlib.suppress(OSError):  # some network drives cannot
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
