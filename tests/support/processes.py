"""Child processes that end with the test run, and loopback ports for them."""

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.support import reaper
from tests.support.forked import Fork
from tests.support.wait import LIMIT

PORTS = range(20_000, 32_000)
"""Below the range from which the kernel takes ports for outgoing connections: a server can come
back to its port.
"""


def free_port() -> int:
    """A loopback port that nothing listens on; another process may take it first, so a caller must
    be ready to retry.
    """
    for _ in range(1000):
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise OSError("no free loopback port")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would steer a server or a driver behind a test's
    back, plus `extra`.
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "UOW_", "UVICORN_"))
    }
    return {**kept, **(extra or {})}


class _Reaper:
    """Tells `reaper.py`, started with the first child, what has to end when this process does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def tell(self, line: str) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(reaper.__file__))],
                stdin=subprocess.PIPE,
                text=True,
                # A Ctrl-C at the terminal is for the test run; the reaper must live to see the end
                # of it.
                start_new_session=True,
            )
            atexit.register(self.close)
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None


_reaper = _Reaper()


def temporary_folder(prefix: str) -> Path:
    """A new folder; the caller removes it, and the end of the test run does so if the caller could
    not.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _reaper.tell(f"folder {folder}")
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder and all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def python_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The clean environment for a Python process: its output comes at once, its start is quick."""
    quick = {}
    if "PYTHONDONTWRITEBYTECODE" in os.environ:
        # Without compiled files each start compiles all of its imports: seconds instead of tenths.
        quick = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(_compiled_files())}
    return clean_environment({"PYTHONUNBUFFERED": "1", **quick, **(extra or {})})


@cache
def _compiled_files() -> Path:
    return temporary_folder("tests-pyc-")


def is_running(pid: int) -> bool:
    """There is a process with this number, and it has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    # A process keeps its number after its end until its parent, or its heir, has asked how it ended.
    return not status.exists() or "\nState:\tZ" not in status.read_text()


class Child:
    """One child process in a process group of its own, writing to a log file; it never outlives the
    test run.

    `emergency` is the signal that its group gets if the test run dies before it has stopped the
    child. One that is forked does not import again what forks have imported once; its command is
    `[sys.executable, "-m", module, ...]`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        owner: tuple[int, int] | None = None,
        emergency: signal.Signals = signal.SIGKILL,
        forked: bool = False,
    ) -> None:
        self._process: subprocess.Popen[bytes] | Fork
        if forked:
            self._process = Fork(*command[2:], env=env, cwd=cwd or Path.cwd(), log=log)
        else:
            self._process = _popen(command, log, env, cwd, owner)
        self._stopped = False
        self.pid = self._process.pid
        _reaper.tell(f"start {self.pid} {int(emergency)}")

    @property
    def alive(self) -> bool:
        """The process itself still runs."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """How it ended, as `subprocess` tells it (a negative number names the signal), or None
        while it runs.
        """
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, and to none of its children."""
        if self.alive:
            os.kill(self.pid, number)

    def stop(self, *signals: signal.Signals, limit: float = LIMIT) -> int:
        """Send one signal after the other until the process ends, at last SIGKILL to the group;
        return how it ended.
        """
        if self._stopped:
            return self._process.wait(LIMIT)
        for number in signals:
            self.send(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(limit)
                break
        # The group still exists when worker processes have outlived their parent.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()  # it need not lead its group yet
        returncode = self._process.wait(LIMIT)
        # From here on the number may belong to somebody else.
        self._stopped = True
        _reaper.tell(f"gone {self.pid}")
        return returncode


def _popen(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    cwd: Path | None,
    owner: tuple[int, int] | None,
) -> subprocess.Popen[bytes]:
    uid, gid = owner or (None, None)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            user=uid,
            group=gid,
            extra_groups=None if owner is None else [],
            start_new_session=True,
        )
