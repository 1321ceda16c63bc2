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
from functools import cache
from hashlib import blake2b
from typing import Final

from ..database import Database

logger = logging.getLogger("uow")

_SUFFIX: Final = "-keys"
_FIRST_PAUSE: Final = 0.002  # seconds between two looks at a lock that is taken; doubled each time
_LONGEST_PAUSE: Final = 0.05
_NONE: Final = -1


class KeyLock:
    """A lock on one byte; `end` gives it back. Without a file it holds nobody out."""

    __slots__ = ("_file", "_offset")

    def __init__(self, file: int = _NONE, offset: int = 0) -> None:
        self._file = file
        self._offset = offset
        if file != _NONE:
            _held.add(self)

    def end(self) -> None:
        """Somebody else may have it; a second call does nothing."""
        if self._file != _NONE:
            try:
                # Closing is not enough: a process that is just being forked may have the file open as well.
                _set_lock(self._file, self._offset, locked=False)
            finally:
                self.close()

    def close(self) -> None:
        """Have no part in it any more; whoever shares the open file still has the lock."""
        file, self._file = self._file, _NONE
        _held.discard(self)
        os.close(file)


_held: Final[set[KeyLock]] = set()


def lock_file(database: Database) -> str | None:
    """The file that the processes with this database lock; None where there is nothing to be locked.

    That is where the database is not one file for all of them, and where the system has no locks that belong
    to an open file. Linux has, since 3.15: https://man7.org/linux/man-pages/man2/F_GETLK.2const.html
    """
    path = database.adapter.shared_file(database.url)
    return None if path is None or sys.platform != "linux" else path + _SUFFIX


async def lock_key(path: str, owner: str, key: str, until: float) -> KeyLock | None:
    """Wait for the lock on a key until then, in the time of the event loop; None if it was not to be had.

    Where the file cannot be locked, it is a lock that holds nobody out, and the log says so once.
    """
    loop = asyncio.get_running_loop()
    offset = _offset_of(owner, key)
    pause = _FIRST_PAUSE
    while True:
        try:
            if (lock := _try(path, offset)) is not None:
                return lock
        except OSError as error:
            _warn(path, str(error))
            return KeyLock()
        if (left := until - loop.time()) <= 0:
            return None
        await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _try(path: str, offset: int) -> KeyLock | None:
    # Opened for this lock alone: it can be removed at any time, and nobody has to close it in the end.
    file = _open(path)
    try:
        _set_lock(file, offset, locked=True)
    except BaseException as error:
        os.close(file)
        if isinstance(error, BlockingIOError):
            return None
        raise
    _watch_forks()
    return KeyLock(file, offset)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # As SQLite makes its own: whoever may write the database, and nobody else, may lock it.
        like = os.stat(path.removesuffix(_SUFFIX))
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                os.fchown(file, like.st_uid, like.st_gid)
            os.fchmod(file, like.st_mode & 0o777)
        except OSError:
            os.close(file)
            raise
        return file


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


@cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    """No child keeps what its parent has locked: it may outlive it."""
    for lock in [*_held]:
        lock.close()


@cache
def _warn(path: str, why: str) -> None:
    logger.warning("%s: no lock for idempotency keys, so their repeats wait for the writer: %s", path, why)
