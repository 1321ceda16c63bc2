"""SQLite: one `sqlite3` connection below, for pysqlite and aiosqlite alike."""

from __future__ import annotations

import sqlite3
from typing import Any

from ..problems import Condition
from ._errors import sqlite_error
from ._faults import Fault
from ._home import Home
from ._lease import Lease, Rows, Steps, drive


class SqliteWire:
    """The `sqlite3` connection of a test, inside a transaction."""

    refusal_ends = False

    def __init__(self, driver: Any) -> None:
        self._raw: sqlite3.Connection = getattr(driver, "_conn", driver)  # aiosqlite holds one inside
        self._raw.execute("BEGIN IMMEDIATE")
        self._violations = self._broken_references()

    def run(self, sql: str) -> Rows:
        return self._raw.execute(sql).fetchall()

    def perform(self, steps: Steps) -> None:
        drive(steps, self.run)

    def in_transaction(self) -> bool:
        return self._raw.in_transaction

    def begins_unseen(self) -> bool:
        return self._raw.isolation_level is not None

    def enter(self, lease: Lease) -> Steps:
        """Nothing: `connect` has done it."""
        yield from ()

    def leave(self, lease: Lease) -> Steps:
        if lease.read_only:
            yield "PRAGMA query_only=OFF"

    def check(self) -> Steps:
        """SQLite looks at deferred foreign keys only at the end of the outermost transaction."""
        if (yield "PRAGMA foreign_keys")[0][0] and self._broken_references() - self._violations:
            raise sqlite_error(Condition.FOREIGN_KEY, "FOREIGN KEY constraint failed")

    def spoil(self) -> Steps:
        """Nothing: an error leaves the rest of a transaction usable."""
        yield from ()

    def closed(self) -> Exception:
        return sqlite3.ProgrammingError("Cannot operate on a closed database.")

    def error(self, fault: Fault) -> BaseException:
        if fault.drops:
            return self.closed()
        if isinstance(fault.error, BaseException):
            return fault.error
        return sqlite_error(fault.error)

    def connect(self, lease: Lease, adapters: Any) -> Any:
        if lease.read_only:
            self._raw.execute("PRAGMA query_only=ON")
        return _Connection(self._raw, lease)

    async def connect_async(self, lease: Lease, adapters: Any) -> Any:
        import aiosqlite  # noqa: PLC0415 - who has only sync sessions need not have it

        driver: Any = aiosqlite.Connection(lambda: self.connect(lease, adapters), 64)
        driver.uow_lease = lease
        return await driver

    def close(self) -> None:
        self._raw.execute("ROLLBACK")

    def _broken_references(self) -> set[Any]:
        try:
            return set(self._raw.execute("PRAGMA foreign_key_check"))
        except sqlite3.Error:  # a reference to something that is no key: every write tells of it
            return set()


class _Connection:
    """What a unit has for a `sqlite3.Connection`: its transaction is a savepoint of the real one's."""

    def __init__(self, raw: sqlite3.Connection, lease: Lease) -> None:
        self._raw = raw
        self.uow_lease = lease

    def __getattr__(self, name: str) -> Any:
        self.uow_lease.check()
        return getattr(self._raw, name)

    @property
    def in_transaction(self) -> bool:
        return self.uow_lease.open

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        self.uow_lease.check()
        steps = self.uow_lease.by_text(sql)
        if steps is None:
            return self._raw.execute(sql, *parameters)
        drive(steps, self._run)
        return self._raw.cursor()

    def executescript(self, script: str) -> sqlite3.Cursor:
        raise sqlite3.NotSupportedError(
            "executescript() commits, and would end the transaction of the test: send one statement at a time"
        )

    def commit(self) -> None:
        drive(self.uow_lease.commit(), self._run)

    def rollback(self) -> None:
        drive(self.uow_lease.rollback(), self._run)

    def interrupt(self) -> None:
        """Stop a statement that reads; an interrupted write would cost the test its transaction."""
        if self.uow_lease.read_only:
            self._raw.interrupt()

    def close(self) -> None:
        drive(self.uow_lease.end(), self._run)

    def _run(self, sql: str) -> Rows:
        return self._raw.execute(sql).fetchall()


def wire(driver: Any, home: Home) -> SqliteWire:
    """The wire over a connection of pysqlite or aiosqlite."""
    return SqliteWire(driver)
