"""SQLite: who works on a key, in whichever process: a lock on one byte of a file beside the database.

What is not committed cannot be seen there, and the one writer may be at work on anything: only such a lock
says that it is this key. The kernel takes it back with the process, however that ends. It decides nothing
but what a repeat is told; that a request is done once is the work of the key's row.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import sys
from hashlib import blake2b
from typing import Final

from ..database import Database

logger = logging.getLogger("uow")

_SUFFIX: Final = "-keys"
_FIRST_PAUSE: Final = 0.002  # seconds between two looks at a lock that is taken; doubled each time
_LONGEST_PAUSE: Final = 0.05


class KeyLock:
    """A lock on one byte; `end` gives it back. Without a file it is none."""

    __slots__ = ("_file", "_offset")

    def __init__(self, file: int | None = None, offset: int = 0) -> None:
        self._file = file
        self._offset = offset

    def end(self) -> None:
        """Somebody else may have it; a second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            try:
                # Closing is not enough: a process that was forked meanwhile has the file open as well.
                _set_lock(file, self._offset, locked=False)
            finally:
                os.close(file)


def lock_file(database: Database) -> str | None:
    """The file that the processes with this database lock; None where there is nothing to be locked.

    That is where the database is not one file for all of them, and where the system has no locks that belong
    to an open file. Linux has, since 3.15: https://man7.org/linux/man-pages/man2/F_GETLK.2const.html
    """
    path = database.adapter.shared_file(database.url)
    return None if path is None or sys.platform != "linux" else path + _SUFFIX


async def lock_key(path: str, owner: str, key: str, until: float) -> KeyLock | None:
    """Wait for the lock on a key until then, in the time of the event loop; None if it was not to be had.

    Where the file cannot be locked, it is a lock that holds nobody out, and the log says so.
    """
    loop = asyncio.get_running_loop()
    offset = _offset_of(owner, key)
    pause = _FIRST_PAUSE
    while True:
        try:
            if (lock := _try(path, offset)) is not None:
                return lock
        except OSError as error:
            logger.warning("no lock for idempotency keys, their repeats wait for the writer: %s", error)
            return KeyLock()
        if (left := until - loop.time()) <= 0:
            return None
        await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _try(path: str, offset: int) -> KeyLock | None:
    # Opened for this lock alone: it can be removed at any time, and nobody has to close it in the end.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _set_lock(file, offset, locked=True)
    except BaseException as error:
        os.close(file)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return KeyLock(file, offset)


def _set_lock(file: int, offset: int, *, locked: bool) -> None:
    """Lock one byte for all but this open file, or unlock it; BlockingIOError if somebody else has it."""
    import fcntl  # noqa: PLC0415 - not every system has it

    kind = fcntl.F_WRLCK if locked else fcntl.F_UNLCK
    # struct flock: type, whence, start, length, and the process, which has to be 0.
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, offset, 1, 0))


def _offset_of(owner: str, key: str) -> int:
    """One of 2**62 bytes: two keys that share one would only wait for each other."""
    text = f"{len(owner)} {owner}{key}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest()) >> 2
