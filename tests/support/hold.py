"""COMMIT held open from outside, on every engine: it has been sent, and it does not return until
the test lets it.

PostgreSQL: a deferred constraint trigger, which COMMIT runs, waits for an advisory lock that the
test holds. SQLite: the driver reports each statement as it begins to execute, in the thread that
executes it; there the app under test (`gate.install_commit_gate`) waits for a file lock that the
test holds. An event loop stays free meanwhile. Both hold only transactions that have changed rows.
"""

import contextlib
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from psycopg import Connection
from psycopg.rows import TupleRow

from tests.support.backends import Backend, PostgresBackend, SqliteBackend
from tests.support.processes import is_running
from tests.support.wait import wait_until, wait_until_async

_KEY = 7_301_944
_SETUP = f"""
CREATE OR REPLACE FUNCTION tests_hold() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock_shared({_KEY}); RETURN NULL; END $$;
DROP TRIGGER IF EXISTS tests_hold ON {{table}};
CREATE CONSTRAINT TRIGGER tests_hold AFTER INSERT OR UPDATE OR DELETE ON {{table}}
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION tests_hold();
"""


class CommitHold(ABC):
    """Holds every COMMIT of a writer from `hold()` to `release()`; both may be called again and
    again.
    """

    @abstractmethod
    def hold(self) -> None:
        """From here on no COMMIT gets through."""

    @abstractmethod
    def release(self) -> None:
        """Let the waiting COMMITs, and all later ones, through."""

    @abstractmethod
    def waiting(self) -> int:
        """How many COMMITs stand held at this moment."""

    @abstractmethod
    def close(self) -> None:
        """Release, and give back what the hold itself needs."""

    def wait_until_waiting(self, number: int = 1) -> None:
        """Return when `number` COMMITs stand held. It blocks: the writers must be in other threads
        or processes.
        """
        wait_until(lambda: self.waiting() >= number, self._what(number))

    async def wait_until_waiting_async(self, number: int = 1) -> None:
        """Do the same with writers on this event loop."""
        await wait_until_async(lambda: self.waiting() >= number, self._what(number))

    def _what(self, number: int) -> str:
        return f"{number} COMMIT(s) held open (on SQLite the app has to call install_commit_gate)"


class PostgresHold(CommitHold):
    """COMMITs of one database that have changed rows of one table wait inside the server."""

    def __init__(self, backend: PostgresBackend, table: str) -> None:
        self._backend = backend
        self._holder: Connection[TupleRow] | None = None
        backend.execute(_SETUP.format(table=table))

    def hold(self) -> None:
        if self._holder is None:
            self._holder = self._backend.server.connect(self._backend.dbname)
            self._holder.execute(b"SELECT pg_advisory_lock(%s)", (_KEY,))

    def release(self) -> None:
        # The lock goes with its connection, and so it does if the server has gone meanwhile.
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()

    def close(self) -> None:
        self.release()

    def waiting(self) -> int:
        return len(self.waiting_pids())

    def waiting_pids(self) -> list[int]:
        """The server processes that are inside a held COMMIT, to be cut off for instance."""
        sql = (
            "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE l.locktype = 'advisory' AND NOT l.granted AND l.objid = ? AND d.datname = ?"
        )
        return [int(row[0]) for row in self._backend.query(sql, (_KEY, self._backend.dbname))]

    def terminate_waiting(self) -> int:
        """Cut the connections that are inside a held COMMIT: the work is lost, and its client
        cannot know. Their number.
        """
        pids = self.waiting_pids()
        for pid in pids:
            self._backend.query("SELECT pg_terminate_backend(?, 30000)", (pid,))
        return len(pids)


class CommitGate(CommitHold):
    """The test's side of a file lock before which the writers of an app stand; the app's side is
    `install_commit_gate`.

    `path` is a folder. If the process of the test ends, the lock is gone and the writers go on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = None

    def hold(self) -> None:
        if self._lock is None:
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def close(self) -> None:
        self.release()

    def waiting(self) -> int:
        return sum(is_running(int(marker.name.split("-")[1])) for marker in self.path.glob("waiting-*"))


@contextlib.contextmanager
def hold_commits(backend: Backend, table: str) -> Iterator[CommitHold]:
    """Hold COMMITs of transactions that change `table` (on SQLite: any table) until `release()` or
    the end of the block.

    On PostgreSQL this works on any app. On SQLite the app under test has to call
    `install_commit_gate`, in a server process with the environment of `backend.environment()`.
    """
    hold: CommitHold
    if isinstance(backend, PostgresBackend):
        hold = PostgresHold(backend, table)
    elif isinstance(backend, SqliteBackend):
        hold = CommitGate(backend.gate)
    else:
        raise TypeError(f"no way to hold a COMMIT of {backend!r}")
    try:
        hold.hold()
        yield hold
    finally:
        hold.close()
