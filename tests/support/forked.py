"""`python -m MODULE ...` as a fork of a process that has imported most of it already.

To import the service takes two seconds of a processor, and to run most of its commands a tenth of that; the
suite starts some hundreds of servers. What is a matter of the interpreter's own start, or of processes that
it starts in turn, is tested with a new interpreter.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import chdir
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

from tests.support.pages import ROOT

_FORKS = multiprocessing.get_context("forkserver")
_imported = [__name__]


def import_once(*modules: str) -> None:
    """What the forks need not import: to be said before the first of them."""
    _imported.extend(modules)
    _FORKS.set_forkserver_preload(_imported)


class Fork:
    """`python -m MODULE ...` that goes on, with its output in a file; as `subprocess.Popen` would have it.

    It leads a session and a process group of its own.
    """

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str], cwd: Path, log: Path) -> None:
        _start_server()
        given = (module, arguments, dict(env), cwd, log, log)
        self._process = _FORKS.Process(target=_main, args=given)
        self._process.start()
        atexit.register(self.kill)  # multiprocessing would wait for it, where a run breaks off
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """How it ended, or None."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Wait for its end; raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL to the process itself, if it is there: its number may be somebody else's later."""
        if self._process.is_alive():
            self._process.kill()


def run_forked(
    package: str, *arguments: str, env: Mapping[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run the package to its end, in a process of its own with this environment and folder.

    Raises subprocess.TimeoutExpired, and ends the process, after so many seconds.
    """
    _start_server()
    with tempfile.TemporaryDirectory(prefix="tests-forked-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        for path in (out, err):
            path.touch()
        process = _FORKS.Process(target=_main, args=(package, arguments, dict(env), cwd, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(
                [package, *arguments], timeout, out.read_bytes(), err.read_bytes()
            )
        ended = subprocess.CompletedProcess(
            [package, *arguments], process.exitcode, out.read_text(), err.read_text()
        )
        process.close()
        return ended


@cache
def _start_server() -> None:
    """Start what is forked, in the folder where it finds what it is to import.

    On Python 3.11 it has no other path, and says nothing of what it has not found:
    https://github.com/python/cpython/issues/117378
    """
    with chdir(ROOT):
        forkserver.ensure_running()


def _main(
    package: str, arguments: tuple[str, ...], env: dict[str, str], cwd: Path, out: Path, err: Path
) -> None:
    os.setsid()
    for path, number in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    for stream in (sys.stdout, sys.stderr):  # as PYTHONUNBUFFERED has it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(write_through=True)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    sys.argv[1:] = arguments  # the first becomes the file of the package
    runpy.run_module(package, run_name="__main__", alter_sys=True)
