"""PostgreSQL through psycopg: one connection of libpq below, for sync and async alike."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq import ExecStatus, TransactionStatus

from ._errors import INJECTED, sqlstate
from ._faults import Fault
from ._home import Home
from ._lease import Lease, Rows, Steps, drive
from ._postgresql import PostgresWire

_GOOD = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


class PsycopgWire(PostgresWire):
    """The libpq connection of a test, inside a transaction."""

    def __init__(self, driver: Any) -> None:
        self.pgconn = driver.pgconn
        self.run("BEGIN")

    def run(self, sql: str) -> Rows:
        """Blocks, as it does no longer than the server takes for a savepoint."""
        result = self.pgconn.exec_(sql.encode())
        if result.status not in _GOOD:
            raise psycopg.errors.error_from_result(result)
        return [
            [result.get_value(row, column) for column in range(result.nfields)]
            for row in range(result.ntuples)
        ]

    def perform(self, steps: Steps) -> None:
        drive(steps, self.run)

    def in_transaction(self) -> bool:
        return self.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def status(self) -> TransactionStatus:
        return TransactionStatus(self.pgconn.transaction_status)

    def closed(self) -> Exception:
        return psycopg.OperationalError("the connection is closed")

    def error(self, fault: Fault) -> BaseException:
        if fault.drops:
            return psycopg.OperationalError("server closed the connection unexpectedly")
        if isinstance(fault.error, BaseException):
            return fault.error
        return psycopg.errors.lookup(sqlstate(fault.error))(INJECTED)

    def connect(self, lease: Lease, adapters: Any) -> Any:
        return _prepared(_Connection(self.pgconn), self, lease, adapters)

    async def connect_async(self, lease: Lease, adapters: Any) -> Any:
        return _prepared(_AsyncConnection(self.pgconn), self, lease, adapters)

    def close(self) -> None:
        self.run("ROLLBACK")


def _prepared(connection: Any, wire: PsycopgWire, lease: Lease, adapters: Any) -> Any:
    connection.uow_wire = wire
    connection.uow_lease = lease
    connection.prepare_threshold = None  # two of these would give their statements the same names
    connection._adapters = AdaptersMap(adapters)
    return connection


class _Info(psycopg.ConnectionInfo):
    """Tells of the unit's transaction, and not of the test's around it."""

    def __init__(self, wire: PsycopgWire, lease: Lease) -> None:
        super().__init__(wire.pgconn)
        self._wire = wire
        self._lease = lease

    @property
    def transaction_status(self) -> TransactionStatus:
        return self._wire.status() if self._lease.open else TransactionStatus.IDLE


class _Leased(psycopg.BaseConnection[Any]):
    """What differs in both kinds of connection."""

    uow_wire: PsycopgWire
    uow_lease: Lease

    def __del__(self, *_: Any) -> None:
        """Nothing: the real connection is not this one's to close."""

    @property
    def closed(self) -> bool:
        return self.uow_lease.gone

    @property
    def broken(self) -> bool:
        return self.uow_lease.dropped

    @property
    def info(self) -> _Info:
        return _Info(self.uow_wire, self.uow_lease)

    def _check_intrans_gen(self, attribute: str) -> Generator[Any, Any, None]:
        """Let the settings of the next transaction be changed: there is one around all the time."""
        yield from ()

    def _look(self) -> None:
        self.uow_lease.failed = self.uow_wire.status() == TransactionStatus.INERROR

    def _start_query(self) -> Generator[Any, Any, None]:
        """psycopg begins a transaction here, before each statement."""
        self._look()
        drive(self.uow_lease.before_statement(autocommit=self.autocommit), self.uow_wire.run)
        yield from ()


class _Connection(_Leased, psycopg.Connection[Any]):
    """For a sync session."""

    def commit(self) -> None:
        drive(self.uow_lease.commit(), self.uow_wire.run)

    def rollback(self) -> None:
        drive(self.uow_lease.rollback(), self.uow_wire.run)

    def close(self) -> None:
        self._look()
        drive(self.uow_lease.end(), self.uow_wire.run)


class _AsyncConnection(_Leased, psycopg.AsyncConnection[Any]):
    """For an async one."""

    async def commit(self) -> None:
        """In a thread: deferred triggers may take their time."""
        await asyncio.to_thread(drive, self.uow_lease.commit(), self.uow_wire.run)

    async def rollback(self) -> None:
        drive(self.uow_lease.rollback(), self.uow_wire.run)

    async def close(self) -> None:
        self._look()
        drive(self.uow_lease.end(), self.uow_wire.run)


def wire(driver: Any, home: Home) -> PsycopgWire:
    """The wire over a connection of psycopg, sync or async."""
    return PsycopgWire(driver)
