"""A unit's use of the one connection of a test: its transaction is a savepoint there.

What has to be sent is written once, as generators of statements, and run by each driver in its way.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Connection

if TYPE_CHECKING:
    from ._faults import Fault, Faults

Rows = list[Any]
Steps = Generator[str, Rows, None]

SAVEPOINT = "uow_unit"
SET = f"SAVEPOINT {SAVEPOINT}"
RELEASE = f"RELEASE SAVEPOINT {SAVEPOINT}"
UNDO = f"ROLLBACK TO SAVEPOINT {SAVEPOINT}"

_BEGINS = re.compile(r"\s*(begin|start\s+transaction)\b", re.IGNORECASE).match
_COMMITS = re.compile(r"\s*(commit|end)\b(?!\s+prepared)", re.IGNORECASE).match
_ROLLS_BACK = re.compile(
    r"\s*(abort\b|rollback\b(?!\s+prepared)(?!\s+((work|transaction)\s+)?to\b))", re.IGNORECASE
).match

is_about_savepoints = re.compile(
    r"\s*(savepoint|release|rollback\s+((work|transaction)\s+)?to)\b", re.IGNORECASE
).match
"""Whether a statement sets or ends a savepoint of the app's own."""


def drive(steps: Steps, run: Callable[[str], Rows]) -> None:
    """Run the statements; what one of them raises is raised where it was asked for."""
    try:
        sql = next(steps)
        while True:
            try:
                rows = run(sql)
            except Exception as error:
                sql = steps.throw(error)
            else:
                sql = steps.send(rows)
    except StopIteration:
        return


async def drive_async(steps: Steps, run: Callable[[str], Awaitable[Rows]]) -> None:
    """The same, each statement awaited."""
    try:
        sql = next(steps)
        while True:
            try:
                rows = await run(sql)
            except Exception as error:
                sql = steps.throw(error)
            else:
                sql = steps.send(rows)
    except StopIteration:
        return


class Wire(Protocol):
    """The real connection below, as its driver has it."""

    refusal_ends: bool
    """Whether the database ends a transaction whose COMMIT it refuses."""

    def run(self, sql: str) -> Rows:
        """Send one statement and return its rows; blocks."""
        ...

    def perform(self, steps: Steps) -> None:
        """Run steps where SQLAlchemy calls its listeners: in a thread, or in a greenlet of an event loop."""
        ...

    def in_transaction(self) -> bool:
        """Whether the test's transaction is still there."""
        ...

    def begins_unseen(self) -> bool:
        """Whether the driver begins with the first statement, at a place where nobody can look on."""
        ...

    def enter(self, lease: Lease) -> Steps:
        """What holds a reader to reading; sent when it is given the connection, or inside its savepoint."""
        ...

    def leave(self, lease: Lease) -> Steps:
        """Take that back, where no savepoint does it."""
        ...

    def check(self) -> Steps:
        """Look at what waits for COMMIT: deferred constraints."""
        ...

    def spoil(self) -> Steps:
        """Put the transaction into the state in which a refused statement leaves it."""
        ...

    def closed(self) -> Exception:
        """The driver's exception for the use of a connection that is closed."""
        ...

    def error(self, fault: Fault) -> BaseException:
        """The driver's exception for it."""
        ...

    def connect(self, lease: Lease, adapters: Any) -> Any:
        """What a sync engine's pool gets."""
        ...

    async def connect_async(self, lease: Lease, adapters: Any) -> Any:
        """What an async engine's pool gets."""
        ...

    def close(self) -> None:
        """Roll the test's transaction back, and close the connection."""
        ...


class Lease:
    """From a unit's checkout to the return of its connection.

    Its savepoint is what the unit takes for its transaction; `open` tells whether it has begun one.
    """

    def __init__(self, wire: Wire, faults: Faults, *, read_only: bool, over: Callable[[], None]) -> None:
        self.wire = wire
        self.read_only = read_only
        self.open = False
        self.guarded = False  # a statement in autocommit is held in a savepoint of its own
        self.failed = False  # drivers say so where the database then refuses all but the end of a savepoint
        self.dropped = False
        self.over = False
        self._faults = faults
        self._tell_over = over

    @property
    def gone(self) -> bool:
        """Whether the connection looks closed to the unit."""
        return self.over or self.dropped

    def check(self) -> None:
        """Raise what the driver says of a connection that is closed."""
        if self.gone:
            raise self.wire.closed()

    def begin(self) -> Steps:
        """BEGIN."""
        self.check()
        yield from self._unguard()
        yield SET
        yield from self.wire.enter(self)
        self.open = True

    def before_statement(self, *, autocommit: bool) -> Steps:
        """What the driver, or the database, does by itself around a statement outside a transaction."""
        self.check()
        if self.open:
            return
        if not autocommit:
            yield from self.begin()
            return
        if not self.read_only or self.failed:
            yield from self._unguard()
        if not self.guarded:
            yield SET
            self.guarded = True
            yield from self.wire.enter(self)

    def commit(self) -> Steps:
        """COMMIT: refused where a deferred constraint, or the test, says so."""
        self.check()
        if not self.open:
            return
        fault = self._faults.at_commit()
        try:
            if fault is not None and not fault.kept:
                self.raise_fault(fault)
            yield from self.wire.check()
            yield RELEASE
            self.open = False
        except Exception:
            if self.wire.refusal_ends:
                yield from self._close()
            raise
        if fault is not None:
            self.raise_fault(fault)

    def rollback(self) -> Steps:
        """ROLLBACK."""
        self.check()
        yield from self._close()

    def end(self) -> Steps:
        """The connection comes back, or is thrown away: what is open is rolled back."""
        if self.over:
            return
        self.over = True
        try:
            yield from self._close()
            yield from self._unguard()
            yield from self.wire.leave(self)
        finally:
            self._tell_over()

    def by_text(self, sql: str) -> Steps | None:
        """What BEGIN, COMMIT or ROLLBACK as text mean here; None for any other statement.

        Sent as it is, COMMIT would end the transaction of the test, and what it has written would stay.
        """
        if _COMMITS(sql):
            return self.commit()
        if _ROLLS_BACK(sql):
            return self.rollback()
        if _BEGINS(sql) and not self.open:
            return self.begin()
        return None

    def raise_fault(self, fault: Fault) -> None:
        """Raise what the driver would, and look like it."""
        self.dropped = self.dropped or fault.drops
        raise self.wire.error(fault)

    def abandon(self) -> None:
        """The test is over, and the unit is not: all that it still asks for is refused."""
        self.over = True

    def _close(self) -> Steps:
        if self.open:
            yield from self._undo()
            self.open = False

    def _unguard(self) -> Steps:
        if self.guarded:
            self.guarded = False
            if self.read_only or self.failed:
                yield from self._undo()
            else:
                yield RELEASE

    def _undo(self) -> Steps:
        yield UNDO
        self.failed = False
        yield RELEASE


def lease_of(connection: Connection) -> Lease | None:
    """The lease that a connection of SQLAlchemy's has, if it is a test's."""
    lease: Lease | None = getattr(connection.connection.driver_connection, "uow_lease", None)
    return lease
