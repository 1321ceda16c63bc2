"""Ways to fill the disk of a server that runs, and to make its file unwritable, each of which can be undone.

Some need rights that not everybody has; those skip and say why. A limit on the size of its files
(RLIMIT_FSIZE, see setrlimit(2)) can be put on any process of one's own and be taken off again, so one way
is always there: the kernel refuses the byte beyond it, as it does on a full disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import struct
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of linux/fs.h
_IMMUTABLE = 0x10  # FS_IMMUTABLE_FL
SMALL_DISK = "16m"  # the log alone may grow to 4 MiB before it is written back


class Disk(ABC):
    """Where the database is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def fill(self, pid: int) -> None:
        """From now on the server with this process id finds no room for more."""

    @abstractmethod
    def empty(self, pid: int) -> None:
        """There is room again."""


class Limited(Disk):
    """No file of the server may become larger than the largest one of the database is."""

    def fill(self, pid: int) -> None:
        self.limit(pid, max(path.stat().st_size for path in self.folder.iterdir()))

    def limit(self, pid: int, size: int) -> None:
        """No file of the server may become larger than so many bytes."""
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))

    def empty(self, pid: int) -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


class Small(Disk):
    """A small file system, filled to its last byte by another file."""

    def fill(self, pid: int) -> None:
        with (self.folder / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            for size in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while ballast.write(b"x" * size) == size:
                        pass

    def empty(self, pid: int) -> None:
        (self.folder / "ballast").unlink()


@contextlib.contextmanager
def disk(way: str, folder: Path) -> Iterator[Disk]:
    """A folder on a disk that can be filled: "limited" or "small"."""
    folder.mkdir()
    if way == "limited":
        yield Limited(folder)
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tests", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount(8) to make a small file system with")
    if mounted.returncode != 0:
        pytest.skip(f"a small file system needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield Small(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def immutable(*paths: Path) -> Iterator[None]:
    """Nobody may write to these files, also who has them open, until the end of the block."""
    with contextlib.ExitStack() as undo:
        for path in paths:
            undo.enter_context(_immutable(path))
        yield


@contextlib.contextmanager
def _immutable(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            before = fcntl.ioctl(handle, _GET_FLAGS, struct.pack("l", 0))
            flags = struct.unpack("l", before)[0] | _IMMUTABLE
            fcntl.ioctl(handle, _SET_FLAGS, struct.pack("l", flags))
        except OSError as error:
            pytest.skip(
                f"an immutable file needs CAP_LINUX_IMMUTABLE and a file system that knows it: {error}"
            )
        try:
            yield
        finally:
            fcntl.ioctl(handle, _SET_FLAGS, before)
    finally:
        os.close(handle)
