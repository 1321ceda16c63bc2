"""What a unit does on its connection, as its session and the engine's events tell it.

Here is decided whether a unit can still commit. *Doomed* is a unit of which the database has refused a
statement outside of any savepoint that was rolled back; PostgreSQL would answer its COMMIT with a silent
ROLLBACK, other engines would commit the rest of it, and both would make a 2xx a lie.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum, auto
from time import perf_counter
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from . import _messages
from ._results import take_turns
from ._turns import Turns
from .engines import SECONDS_TO_BEGIN, TransactionState, driver_of, is_exhausted
from .errors import UnitOfWorkDoomed

if TYPE_CHECKING:
    from ._deadlines import Clock
    from ._flushing import Flushing
    from ._sessions import UnitSession
    from ._transaction import UnitTransaction
    from ._unit import Outcome, UnitOfWork

_KEY = "uow_work"
_NEVER_CONTAINED = -1
_KEPT_RESULTS = 64
_ENDS_TRANSACTION = re.compile(
    r"\s*(commit|end|abort|prepare\s+transaction|rollback(?!\s+((work|transaction)\s+)?to\b))\b",
    re.IGNORECASE,
).match

_UNLOCKS = re.compile(r"\s*(set|start|begin)\b.*\bread\s+write\b", re.IGNORECASE | re.DOTALL).match
_NEVER_ENDS = frozenset("ISUDWisudw")  # how INSERT, SELECT, UPDATE, DELETE and WITH begin


class Phase(Enum):
    """How far a unit has come."""

    OPEN = auto()
    SETTLING = auto()
    CLOSED = auto()


def work_of(connection: Connection | None) -> UnitTransaction | None:
    """The transaction that a connection is in, if it is a unit's."""
    return None if connection is None else connection.__dict__.get(_KEY)


class Watch(Turns):
    """What a unit has done on its connection, and whether that can still be committed."""

    __slots__ = (
        "_acknowledged", "_asked", "_committing", "_depth", "_failure_depth", "_internal", "_results",
        "_settler", "abandoned", "adapter", "commit_failed", "commit_sent", "connections", "ended", "failure",
        "flushing", "in_autocommit", "is_cut", "is_limited", "must_commit", "outcome", "phase", "read_only",
        "statements", "streams", "transaction", "unit",
    )  # fmt: skip

    def __init__(self, unit: UnitOfWork, *, in_autocommit: bool, asynchronous: bool) -> None:
        super().__init__(unit.name, asynchronous=asynchronous)
        self.unit = unit
        self.adapter = unit.database.adapter
        self.read_only = unit.options.read_only
        self.in_autocommit = in_autocommit
        self.phase = Phase.OPEN
        self.connections: list[Connection] = []
        self.failure: BaseException | None = None
        self.ended = False
        self.outcome: Outcome | None = None
        self.commit_sent = False
        self.commit_failed = False  # in the driver; a listener of somebody's may fail before it is asked
        self._asked = 0.0  # when the session asked for its connection, for the observer
        self._committing = False
        self._acknowledged = False
        self.abandoned = False
        self.must_commit = False  # though it has no connection: somebody writes in `before_commit`
        self.is_cut = False  # somebody has ended the link under its connection
        self.is_limited = False  # by what its request has left of its deadline
        self.statements = 0
        self.transaction: Any = None  # its name, for whoever asks what became of its COMMIT
        self.streams = False
        self.flushing: Flushing | None = None
        self._failure_depth = 0
        self._depth = 0
        self._internal = False
        self._results: list[Any] = []
        self._settler: object = None

    # -- the session's way in and out

    def may_touch(self) -> bool:
        """Whether the unit is open, or the caller is settling it."""
        if self.phase is Phase.OPEN:
            return not self.ended
        return self.phase is Phase.SETTLING and self._settler is getcurrent()

    def check_open(self) -> None:
        """Raise UnitOfWorkClosed unless the unit is open, or the caller is settling it."""
        if self.may_touch():
            return
        raise _messages.rolled_back(self.name) if self.phase is Phase.OPEN else _messages.closed(self.name)

    def doomed(self) -> UnitOfWorkDoomed:
        """The error of a unit that cannot be committed, naming the reason."""
        return _messages.doomed(self.name, self.failure, ended=self.ended)

    def enter(self) -> None:
        """Let a call of the session through to the database, when it is its turn."""
        self.take()  # before the look at the phase: who settles waits for whoever is inside
        try:
            if self.phase is not Phase.OPEN or self.ended:
                self.check_open()
            elif self.failure is not None:
                raise self.doomed() from self.failure
            if not self.connections:
                self.unit.check_outer()
                self._line_up()
        except BaseException:
            self.give()
            raise

    def _line_up(self) -> None:
        """Wait for a connection from here on, unless too many do so already."""
        self._asked = perf_counter()
        database = self.unit.database
        if self.unit.clock is not None and not self.unit.clock.is_over:
            self.unit.clock.holders.add(self)
        if database.max_waiting is None:
            return
        if len(database.waiting) >= database.max_waiting and self._is_one_too_many(database.max_waiting):
            error = _messages.too_many_waiting(self.name, database.max_waiting)
            self.doom(error)
            raise error
        database.waiting.add(self)

    def _is_one_too_many(self, most: int) -> bool:
        """Whether so many wait for a connection of the same kind, and none of them is free."""
        database = self.unit.database
        before = sum(other.read_only == self.read_only for other in tuple(database.waiting))
        return before >= most and is_exhausted(
            database.engine(self.unit.options, asynchronous=self.asynchronous).pool
        )

    def give(self) -> None:
        """Go outside, and let the next one in; who has got no connection by now waits for none."""
        if self.unit.database.max_waiting is not None:
            self.unit.database.waiting.discard(self)
        super().give()

    def enter_open(self) -> None:
        """Let in what changes no more than the session itself, also when the unit is doomed."""
        if not self.take():
            return
        try:
            self.check_open()
        except BaseException:
            self.give()
            raise

    def stop_entering(self) -> Future[None] | None:
        """Close the way in; a future of the moment when the last call has left, if one is inside."""
        self.phase = Phase.SETTLING
        return self.whoever_is_inside()

    def note(self, error: Exception) -> None:
        """Doom the unit for an error that came before it had a connection: no event tells of those."""
        if not self.connections and isinstance(error, (DBAPIError, PoolTimeout, OSError)):
            self.doom(error)

    def keep(self, result: Any) -> None:
        """Remember a result, so that it ends with the unit."""
        if self.streams or not self.asynchronous:
            take_turns(getattr(result, "_real_result", None) or result, self)
        results = self._results
        if len(results) >= _KEPT_RESULTS:
            results[:] = [kept for kept in results if not getattr(kept, "_soft_closed", False)]
        results.append(getattr(result, "_real_result", None) or result)

    # -- what the engine's events tell

    def began(self, connection: Connection) -> None:
        """The session has a connection."""
        if connection in self.connections:  # inside a savepoint now
            return
        if self.connections:
            raise _messages.second_connection(self.name)
        self.connections.append(connection)
        connection.__dict__[_KEY] = self
        self.adapter.adopt(driver_of(connection))
        if self.abandoned:  # the pool handed it over to a call that nobody waited for any more
            connection.invalidate()
            raise _messages.closed(self.name)
        if self.unit.clock is not None:
            self._heed(self.unit.clock, connection)
        if self.unit.database.max_waiting is not None:
            self.unit.database.waiting.discard(self)
        self.unit.database.telling.connected(self.unit, perf_counter() - self._asked)
        if SECONDS_TO_BEGIN in connection.__dict__:
            self.tell(connection.__dict__[SECONDS_TO_BEGIN])

    def _heed(self, clock: Clock, connection: Connection) -> None:
        """Let the deadline of the request reach the database; a stream outlives it."""
        if not self.read_only and not clock.is_over and (left := clock.left):
            self.is_limited = True
            self.adapter.limit(connection, left)

    def _live(self) -> list[Connection]:
        return [held for held in self.connections if not held.closed and not held.invalidated]

    def hang_up(self) -> None:
        """End the link of the connection: what waits for an answer fails, and it serves nobody again."""
        for connection in self._live():
            self.is_cut = True
            if self.asynchronous:
                self.adapter.hang_up(driver_of(connection))
            else:  # a thread may be inside of the driver
                self.adapter.interrupt(connection)

    def cut(self) -> bool:
        """Do so for whoever is inside of the session, which COMMIT is not (L13); False if nobody is."""
        if not self.is_busy:
            return False
        self.hang_up()
        return True

    def forget_connections(self) -> None:
        """The unit is over: what refers to this in circles would wait for a garbage collection."""
        for connection in self.connections:
            connection.__dict__.pop(_KEY, None)
        self.connections.clear()
        self._results.clear()

    def tell(self, seconds: float) -> None:
        """Tell the observer of something that was sent to the database."""
        self.unit.database.telling.statement(self.unit, seconds)

    def doom(self, error: BaseException, *, for_good: bool = False) -> None:
        """The database refused a statement: remember the error that lies outermost."""
        depth = _NEVER_CONTAINED if for_good else self._depth
        if self.failure is None or depth < self._failure_depth:
            self.failure, self._failure_depth = error, depth

    def savepoint_set(self) -> None:
        """A savepoint is about to be set; that of a connection would not keep other tasks out."""
        if self.asynchronous and not self.is_inside():
            raise _messages.settle_refused(self.name, "connection.begin_nested()")
        self._depth += 1

    @property
    def in_savepoint(self) -> bool:
        """Whether a savepoint is open."""
        return self._depth > 0

    def savepoint_undone(self) -> None:
        """Errors inside the savepoint are contained."""
        if self.failure is not None and self._failure_depth >= self._depth:
            self.failure = None
        self._depth -= 1

    def savepoint_released(self, connection: Connection, name: str) -> None:
        """An error that was swallowed inside the savepoint undoes it, and is raised again here.

        PostgreSQL would refuse the RELEASE, SQLite would keep what came before the error.
        """
        error = self.failure
        if error is not None and self._failure_depth >= self._depth:
            connection.dialect.do_rollback_to_savepoint(connection, name)
            self.savepoint_undone()
            raise error
        self._depth -= 1

    def sent(self, connection: Connection, statement: str) -> None:
        """A statement has run; if it was COMMIT or ROLLBACK as text, nobody knows what was kept."""
        self.statements += 1
        if self.in_autocommit:
            if not self.adapter.still_read_only(driver_of(connection)):
                self.doom(_messages.read_only(self.name), for_good=True)
        elif statement[:1] in _NEVER_ENDS and not self.read_only:
            if self.lost_transaction(connection):
                self.doom(_messages.ended_by_text(self.name), for_good=True)
        else:
            self._look_at(connection, statement)

    def _look_at(self, connection: Connection, statement: str) -> None:
        """Judge what is no plain INSERT, SELECT, UPDATE or DELETE of a writer."""
        if self.read_only and _UNLOCKS(statement):
            self.doom(_messages.read_only(self.name), for_good=True)
        elif _ENDS_TRANSACTION(statement) or (not self.read_only and self.lost_transaction(connection)):
            self.doom(_messages.ended_by_text(self.name), for_good=True)

    def lost_transaction(self, connection: Connection) -> bool:
        """Whether the transaction has ended though nobody ended it here.

        A stock SQLite engine of the user's begins none before the first write, and cannot be asked.
        """
        return self.unit.database.begins_visibly and self._is_idle(connection)

    def _is_idle(self, connection: Connection) -> bool:
        return self.adapter.transaction_state(driver_of(connection)) is TransactionState.IDLE

    def execute(self, execute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a statement of the session's own, which may be one of a flush."""
        if self.flushing is None:
            return execute(*args, **kwargs)
        answer, changed = self.flushing.watching(execute, *args, **kwargs)
        if changed is not None:
            error = _messages.changed_meanwhile(self.name, f"a {type(changed).__name__}")
            self.doom(error, for_good=True)
            raise error
        return answer

    def rolled_back(self) -> None:
        """The transaction was rolled back, by the unit itself or by somebody else."""
        if self.phase is Phase.OPEN and not self._internal and self.failure is None:
            self.end_early()

    def end_early(self) -> None:
        """Nothing can be done in this unit any more."""
        self.ended = True

    def begin_to_read(self, session: UnitSession) -> None:
        """Leave autocommit for a read-only transaction: streams and savepoints live in one."""
        self.in_autocommit = False
        session.bind = self.unit.database.transactional_reader(session)
        transaction = session.get_transaction()
        if transaction is not None and self.connections:
            self._internal = True
            try:
                transaction.close()  # gives the connection back; the objects stay
            finally:
                self._internal = False
            self.connections.clear()
