"""The app's side of a held COMMIT on SQLite; the test's side is `hold.py`.

It stands alone, so that a test's app does not load what only tests need.
"""

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import Pool


def install_commit_gate(
    target: Engine | AsyncEngine | type[Pool] = Pool, path: Path | str | None = None
) -> None:
    """The app's side: connections that `target` opens from now on wait at COMMIT while the test
    holds the gate.

    Without arguments every pool of this process is gated, by the path in TESTS_COMMIT_GATE; without
    that variable, and for drivers other than SQLite's, nothing happens. So a test's app may call it
    always, before it makes its engines.
    """
    path = path or os.environ.get("TESTS_COMMIT_GATE")
    if not path:
        return
    pool = target.sync_engine if isinstance(target, AsyncEngine) else target
    event.listen(pool, "connect", _gate_of(Path(path)))


def _gate_of(path: Path) -> Callable[[Any, object], None]:
    def on_connect(connection: Any, _record: object) -> None:
        watcher = _Watcher(path)
        if hasattr(connection, "set_trace_callback"):
            connection.set_trace_callback(watcher.statement)
        elif hasattr(getattr(connection, "driver_connection", None), "set_trace_callback"):
            connection.run_async(lambda driver: driver.set_trace_callback(watcher.statement))

    return on_connect


class _Watcher:
    """Sees each statement of one SQLite connection as it begins to execute, and stands still in the
    COMMIT of a writer.
    """

    _WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE", "WITH")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wrote = False

    def statement(self, sql: str) -> None:
        verb = sql.lstrip().upper()
        if verb.startswith(("COMMIT", "END")) and self._wrote:
            self._wrote = False
            self._stand()
        elif verb.startswith("BEGIN") or (verb.startswith("ROLLBACK") and " TO " not in verb):
            self._wrote = False
        elif verb.startswith(self._WRITES):
            self._wrote = True

    def _stand(self) -> None:
        if not (self._path / "lock").exists():
            return
        marker = self._path / f"waiting-{os.getpid()}-{threading.get_ident()}"
        lock = os.open(self._path / "lock", os.O_RDONLY)
        try:
            if _try_lock(lock):
                return
            marker.touch()
            fcntl.flock(lock, fcntl.LOCK_SH)
            marker.unlink(missing_ok=True)
        finally:
            os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
