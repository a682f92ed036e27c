"""Files that are written whole or not at all, and end in a checksum of what stands before it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

_MARK = b"\nsha256:"  # behind the content, where readers of netCDF and of zip archives do not look
_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPERM)
_PLACE = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_LENGTH = len(_MARK) + 64


@contextlib.contextmanager
def atomic(path: str | Path, *, sealed: bool = False) -> Iterator[Path]:
    """Give a scratch file beside a path; when the block ends without an error, it is on the disk and takes its place.

    A reader never sees half a file, and two processes never write into one: the scratch file's name holds the process.
    What a process that was killed left behind is deleted.

    Args:
        path: what is to be written; its folder is made.
        sealed: whether a checksum is added, which `unsealed` looks at.

    Raises:
        OSError: a full or read-only disk, with the path and the cause.

    Example:
        >>> import pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with atomic(pathlib.Path(folder.name) / "deep" / "numbers.txt") as scratch:
        ...     _ = scratch.write_text("1 2 3")
        >>> [file.name for file in (pathlib.Path(folder.name) / "deep").iterdir()]
        ['numbers.txt']
        >>> folder.cleanup()
    """
    path, host = Path(path), re.sub(r"\W", "_", socket.gethostname())
    scratch = path.with_name(f".{path.name}.{host}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path, host)
        yield scratch
        with scratch.open("rb+") as file:
            if sealed:
                file.write(_MARK + hashlib.file_digest(file, "sha256").hexdigest().encode())
            with contextlib.suppress(OSError):  # some network drives cannot
                file.flush()
                os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # of a folder that is none
            scratch.unlink(missing_ok=True)
        if (cause := _cause(error)) is None:
            raise
        raise OSError(f"{path} could not be written ({cause}); what was there before still is") from error


def _cause(error: BaseException) -> str | None:
    """Return why a disk took no more, None for any other error."""
    if isinstance(error, OSError) and error.errno in (*_DISK, *_PLACE):
        return os.strerror(error.errno)
    written = isinstance(error, RuntimeError) and ("PytorchStreamWriter" in str(error) or "enforce fail" in str(error))
    return "no space left, probably" if written else None


def unsealed(path: str | Path) -> bytes:
    """Return the content of a file, after a look at its checksum where it has one (files of version 0.1 have none).

    Raises:
        ValueError: the checksum is that of another content.
    """
    content = Path(path).read_bytes()
    if content[-_LENGTH:-64] != _MARK:
        if _MARK in content[-_LENGTH:]:
            raise ValueError(f"{path} is damaged, or cut short: its checksum is not whole")
        return content
    content, digest = content[:-_LENGTH], content[-64:]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError(f"{path} is damaged: its checksum is that of another content")
    return content


def is_sealed(path: str | Path) -> bool:
    """Return whether a file ends in a checksum."""
    with Path(path).open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LENGTH))
        return file.read(len(_MARK)) == _MARK


def _sweep(path: Path, host: str) -> None:
    """Delete the scratch files that processes of this machine left when they were killed."""
    if os.name != "posix":  # elsewhere signal 0 is none that asks
        return
    for left in path.parent.glob(f".{path.name}.{host}.*.part"):
        number = left.name.rsplit(".", 2)[1]
        if number.isdigit() and not _is_alive(int(number)):
            left.unlink(missing_ok=True)


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
