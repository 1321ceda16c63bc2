"""The databases that a test runs on, seen from outside: where they are, and what a second
connection finds there.
"""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, get_args

from tests.support.postgres import CHECKER, PostgresServer
from tests.support.wait import wait_until

Leg = Literal["sqlite", "pg18", "pgsystem"]
Mode = Literal["async", "sync"]
LEGS: tuple[Leg, ...] = get_args(Leg)
MODES: tuple[Mode, ...] = get_args(Mode)
POSTGRES_LEGS: tuple[Leg, ...] = ("pg18", "pgsystem")

Rows = list[tuple[Any, ...]]


class Backend(ABC):
    """A fresh, empty database for one test.

    `query` and `execute` use a connection of their own that has nothing to do with the code under
    test, so what they see was committed. `gate` is where an app under test looks for a held COMMIT
    (see `hold.py`).
    """

    name: Leg
    dialect: Literal["sqlite", "postgresql"]
    gate: Path

    @property
    @abstractmethod
    def database_url(self) -> str:
        """The URL as a user of the library writes it; it names a driver only where that driver is
        the point.
        """

    @abstractmethod
    def url(self, mode: Mode) -> str:
        """The URL with its driver: for `create_async_engine` ("async") or `create_engine`."""

    @abstractmethod
    def query(self, sql: str, params: Sequence[Any] = ()) -> Rows:
        """The rows that a second connection sees. Parameters are `?` on every engine."""

    @abstractmethod
    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        """Run a statement through a second connection and commit it; without parameters also
        several, set apart by `;`.
        """

    @abstractmethod
    def idle_in_transaction(self) -> int:
        """How many connections hold a transaction open and do nothing.

        SQLite cannot count: 1 says that somebody holds the write lock or an old snapshot, 0 that
        nobody does.
        """

    @abstractmethod
    def write_lock_free(self) -> bool:
        """Nobody is in the middle of a write: SQLite's write lock can be had at once, PostgreSQL
        has no open writer.
        """

    @abstractmethod
    def drop(self) -> None:
        """End the database, whoever still uses it."""

    def count(self, table: str) -> int:
        """How many rows of a table a second connection sees."""
        rows = self.query(f"SELECT count(*) FROM {table}")
        return int(rows[0][0])

    def environment(self, mode: Mode = "async") -> dict[str, str]:
        """What a test's own app in a server process reads: the URL, the mode, and where to look for
        a held COMMIT.
        """
        return {
            "TESTS_DATABASE_URL": self.url(mode),
            "TESTS_PLAIN_URL": self.database_url,
            "TESTS_MODE": mode,
            "TESTS_COMMIT_GATE": str(self.gate),
        }

    def wait_until_at_rest(self) -> None:
        """Return when nobody is idle in a transaction or in the middle of a write (a closed
        connection ends a bit later).
        """
        wait_until(
            lambda: self.idle_in_transaction() == 0 and self.write_lock_free(),
            f"{self.name} is at rest",
        )


class SqliteBackend(Backend):
    """A file of its own below the test's temporary folder."""

    name: Leg = "sqlite"
    dialect: Literal["sqlite", "postgresql"] = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "test.db"
        self.gate = folder / "commit-gate"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.path}"

    def url(self, mode: Mode) -> str:
        return f"sqlite+{'aiosqlite' if mode == 'async' else 'pysqlite'}:///{self.path}"

    def connect(self, *, busy_timeout: float = 30.0) -> sqlite3.Connection:
        """A connection of the tests' own in autocommit that waits `busy_timeout` seconds for locks;
        close it.
        """
        return sqlite3.connect(self.path, timeout=busy_timeout, isolation_level=None)

    def query(self, sql: str, params: Sequence[Any] = ()) -> Rows:
        with closing(self.connect()) as connection:
            return connection.execute(sql, params).fetchall()

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        with closing(self.connect()) as connection:
            if params:
                connection.execute(sql, params)
            else:
                connection.executescript(sql)

    def write_lock_free(self) -> bool:
        return self._at_once("BEGIN IMMEDIATE")

    def idle_in_transaction(self) -> int:
        return 0 if self.write_lock_free() and self._no_snapshot_held() else 1

    def drop(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal", "-keys"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)

    def _at_once(self, begin: str) -> bool:
        with closing(self.connect(busy_timeout=0)) as connection:
            return _lock_was_free(connection, begin)

    def _no_snapshot_held(self) -> bool:
        with closing(self.connect(busy_timeout=0)) as connection:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                return self._at_once("BEGIN EXCLUSIVE")
            # A checkpoint that must start the log again is refused while anybody reads from it, or
            # from a file that it would have to overwrite. It only looks if there is something to
            # copy: so the version is written anew.
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if not _lock_was_free(connection, f"PRAGMA user_version = {version}"):
                return False
            return int(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]) == 0


def _lock_was_free(connection: sqlite3.Connection, sql: str) -> bool:
    try:
        connection.execute(sql)
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True


class PostgresBackend(Backend):
    """A database of its own on one of the run's servers: asyncpg on `pg18`, psycopg for async too
    on `pgsystem`.
    """

    dialect: Literal["sqlite", "postgresql"] = "postgresql"

    def __init__(self, name: Leg, server: PostgresServer, folder: Path) -> None:
        self.name = name
        self.server = server
        self.dbname = server.create_database()
        self.gate = folder / "commit-gate"

    @property
    def database_url(self) -> str:
        return self.server.url(self.dbname, "psycopg" if self.name == "pgsystem" else None)

    def url(self, mode: Mode) -> str:
        return self.server.url(
            self.dbname, "asyncpg" if mode == "async" and self.name == "pg18" else "psycopg"
        )

    def query(self, sql: str, params: Sequence[Any] = ()) -> Rows:
        if not params:
            return self.server.query(self.dbname, sql)
        return self.server.query(self.dbname, sql.replace("%", "%%").replace("?", "%s"), params)

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        self.query(sql, params)

    def connections(self) -> int:
        """How many connections the code under test has to this database."""
        return self._count_backends("true")

    def idle_in_transaction(self) -> int:
        return self._count_backends("state LIKE 'idle in transaction%%'")

    def write_lock_free(self) -> bool:
        return self._count_backends("backend_xid IS NOT NULL") == 0

    def terminate_all_backends(self) -> int:
        """Cut every connection of the code under test, as a restart of the server would; return how
        many.
        """
        return self.server.terminate_all_backends(self.dbname)

    def drop(self) -> None:
        # A test may have left the server down; the run's other tests need it anyway.
        self.server.start()
        self.server.recycle_database(self.dbname)

    def wait_until_at_rest(self) -> None:
        at_work = "(state LIKE 'idle in transaction%%' OR backend_xid IS NOT NULL)"
        wait_until(lambda: self._count_backends(at_work) == 0, f"{self.name} is at rest")

    def _count_backends(self, condition: str) -> int:
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name <> %s"
            f" AND backend_type = 'client backend' AND {condition}"
        )
        return int(self.server.ask(sql, (self.dbname, CHECKER))[0][0])
