"""PostgreSQL through asyncpg: its connection lives in a loop of its own, and is used from any other."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Coroutine
from functools import partial
from typing import Any

import asyncpg
from asyncpg.cursor import Cursor
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy.util import await_only

from ._errors import INJECTED, sqlstate
from ._faults import Fault
from ._home import Home
from ._lease import Lease, Rows, Steps, drive, drive_async
from ._postgresql import PostgresWire


class AsyncpgWire(PostgresWire):
    """The connection of a test, inside a transaction."""

    def __init__(self, driver: Any, home: Home) -> None:
        self.driver = driver
        self.home = home
        self._transaction = driver.transaction()
        home.call(self._transaction.start)

    def run(self, sql: str) -> Rows:
        return self.home.call(partial(self._fetch, sql))

    async def run_async(self, sql: str) -> Rows:
        return await self.home.go(partial(self._fetch, sql))

    def perform(self, steps: Steps) -> None:
        await_only(drive_async(steps, self.run_async))

    def in_transaction(self) -> bool:
        return bool(self.driver.is_in_transaction())

    def closed(self) -> Exception:
        return asyncpg.InterfaceError("connection is closed")

    def error(self, fault: Fault) -> BaseException:
        if fault.drops:
            return asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        if isinstance(fault.error, BaseException):
            return fault.error
        code = sqlstate(fault.error)
        fields = {"S": "ERROR", "V": "ERROR", "C": code, "M": INJECTED}
        error: BaseException = asyncpg.PostgresError.new(fields)
        return error

    async def connect_async(self, lease: Lease, adapters: Any) -> Any:
        return _Connection(self, lease)

    def close(self) -> None:
        self.home.call(self._transaction.rollback)

    async def _fetch(self, sql: str) -> Rows:
        if not sql.lstrip().startswith("SELECT"):
            await self.home.in_turn(self.driver.execute(sql))
            return []
        rows: Rows = await self.home.in_turn(self.driver.fetch(sql))
        return rows


class _Homed:
    """An object of asyncpg's whose calls are awaited at its home."""

    def __init__(self, real: Any, wire: AsyncpgWire, lease: Lease) -> None:
        self._real = real
        self._wire = wire
        self.uow_lease = lease

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        return partial(self._call, value) if callable(value) else value

    def _call(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        self.uow_lease.check()
        answer = method(*args, **kwargs)
        if not inspect.isawaitable(answer):
            return answer
        return self._answer(answer if inspect.iscoroutine(answer) else _awaited(answer))

    async def _answer(self, answer: Coroutine[Any, Any, Any]) -> Any:
        wire, lease = self._wire, self.uow_lease
        try:
            await drive_async(lease.before_statement(autocommit=True), wire.run_async)
        except BaseException:
            answer.close()
            raise
        try:
            value = await wire.home.go(lambda: wire.home.in_turn(answer))
        except BaseException:
            lease.failed = True
            raise
        return _Homed(value, wire, lease) if isinstance(value, (PreparedStatement, Cursor)) else value


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


class _Connection(_Homed):
    """What a unit has for an `asyncpg.Connection`: its transaction is a savepoint of the real one's."""

    _uow_reads_tags = True  # RELEASE of a failed savepoint is refused, and never answered with ROLLBACK

    def __init__(self, wire: AsyncpgWire, lease: Lease) -> None:
        super().__init__(wire.driver, wire, lease)

    def is_in_transaction(self) -> bool:
        return self.uow_lease.open

    def is_closed(self) -> bool:
        return self.uow_lease.gone

    def transaction(self, **_: Any) -> _Transaction:
        """All levels are that of the test's transaction: it was chosen when that began."""
        return _Transaction(self._wire, self.uow_lease)

    async def close(self, **_: Any) -> None:
        await drive_async(self.uow_lease.end(), self._wire.run_async)

    def terminate(self) -> None:
        drive(self.uow_lease.end(), self._wire.run)


class _Transaction:
    """asyncpg's own kind has these three as well."""

    def __init__(self, wire: AsyncpgWire, lease: Lease) -> None:
        self._wire = wire
        self._lease = lease

    async def start(self) -> None:
        await drive_async(self._lease.begin(), self._wire.run_async)

    async def commit(self) -> None:
        await drive_async(self._lease.commit(), self._wire.run_async)

    async def rollback(self) -> None:
        await drive_async(self._lease.rollback(), self._wire.run_async)


def wire(driver: Any, home: Home) -> AsyncpgWire:
    """The wire over a connection of asyncpg, which lives at this home."""
    return AsyncpgWire(driver, home)
