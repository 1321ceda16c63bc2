"""The transaction of one unit, as its session and the engine's events tell it.

Here is decided whether a unit can still commit. *Doomed* is a unit of which the database has refused a
statement outside of any savepoint that was rolled back; PostgreSQL would answer its COMMIT with a silent
ROLLBACK, other engines would commit the rest of it, and both would make a 2xx a lie.
"""

from __future__ import annotations

import logging
import re
from concurrent.futures import Future
from enum import Enum, auto
from time import perf_counter
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from . import _messages
from ._results import seal
from .engines import SECONDS_TO_BEGIN, TransactionState, driver_of
from .errors import OutcomeUnknown, UnitOfWorkDoomed
from .problems import Condition

if TYPE_CHECKING:
    from ._sessions import UnitSession
    from ._unit import Outcome, UnitOfWork

logger = logging.getLogger("uow")

_KEY = "uow_work"
_NEVER_CONTAINED = -1
_KEPT_RESULTS = 64
_ENDS_TRANSACTION = re.compile(
    r"\s*(commit|end|abort|prepare\s+transaction|rollback(?!\s+((work|transaction)\s+)?to\b))\b",
    re.IGNORECASE,
).match
_MAYBE_COMMITTED = (Condition.CONNECTION_LOST, Condition.COMMIT_UNKNOWN)


class Phase(Enum):
    """How far a unit has come."""

    OPEN = auto()
    SETTLING = auto()
    CLOSED = auto()


def work_of(connection: Connection | None) -> UnitTransaction | None:
    """The transaction that a connection is in, if it is a unit's."""
    return None if connection is None else connection.__dict__.get(_KEY)


def _pool_has_room(connection: Connection) -> bool:
    """Whether the pool keeps the connection when it comes back; closing one is a trip to the driver."""
    pool = connection.engine.pool
    return isinstance(pool, QueuePool) and pool.checkedin() < pool.size()


class UnitTransaction:
    """What a unit has done on its connection, and how it ends there."""

    __slots__ = (
        "_abandoned",
        "_acknowledged",
        "_committing",
        "_depth",
        "_failure_depth",
        "_idle",
        "_inside",
        "_internal",
        "_results",
        "_settler",
        "adapter",
        "commit_sent",
        "connections",
        "ended",
        "failure",
        "in_autocommit",
        "name",
        "outcome",
        "phase",
        "read_only",
        "statements",
        "unit",
    )  # fmt: skip

    def __init__(self, unit: UnitOfWork, *, in_autocommit: bool) -> None:
        self.unit = unit
        self.name = unit.name
        self.adapter = unit.database.adapter
        self.read_only = unit.options.read_only
        self.in_autocommit = in_autocommit
        self.phase = Phase.OPEN
        self.connections: list[Connection] = []
        self.failure: BaseException | None = None
        self.ended = False
        self.outcome: Outcome | None = None
        self.commit_sent = False
        self._committing = False
        self._acknowledged = False
        self._abandoned = False
        self.statements = 0
        self._failure_depth = 0
        self._depth = 0
        self._inside = 0
        self._internal = False
        self._idle: Future[None] | None = None
        self._results: list[Any] = []
        self._settler: object = None

    # -- the session's way in and out

    def check_open(self) -> None:
        """Raise UnitOfWorkClosed unless the unit is open, or the caller is settling it."""
        if self.phase is Phase.OPEN and not self.ended:
            return
        if self.phase is Phase.SETTLING and self._settler is getcurrent():
            return
        raise _messages.rolled_back(self.name) if self.phase is Phase.OPEN else _messages.closed(self.name)

    def doomed(self) -> UnitOfWorkDoomed:
        """The error of a unit that cannot be committed, naming the reason."""
        return _messages.doomed(self.name, self.failure, ended=self.ended)

    def enter(self) -> None:
        """Let a call of the session through to the database."""
        self.check_open()
        if self.failure is not None and self.phase is Phase.OPEN:
            raise self.doomed() from self.failure
        if not self.connections:
            self.unit.check_outer()
        self._inside += 1

    def leave(self) -> None:
        """The call is over."""
        self._inside -= 1
        if self._idle is not None and not self._inside and not self._idle.done():
            self._idle.set_result(None)

    def stop_entering(self) -> Future[None] | None:
        """Close the way in; a future of the moment when the last call has left, if one is inside."""
        self.phase = Phase.SETTLING
        if self._inside and self._idle is None:
            self._idle = Future()
        return self._idle

    def note(self, error: Exception) -> None:
        """Doom the unit for an error that came before it had a connection: no event tells of those."""
        if not self.connections and isinstance(error, (DBAPIError, PoolTimeout, OSError)):
            self.doom(error)

    def keep(self, result: Any) -> None:
        """Remember a result, so that it ends with the unit."""
        results = self._results
        if len(results) >= _KEPT_RESULTS:
            results[:] = [kept for kept in results if not getattr(kept, "_soft_closed", False)]
        results.append(getattr(result, "_real_result", None) or result)

    # -- what the engine's events tell

    def began(self, connection: Connection) -> None:
        """The session has a connection."""
        self.connections.append(connection)
        connection.__dict__[_KEY] = self
        if SECONDS_TO_BEGIN in connection.__dict__:
            self.tell(connection.__dict__[SECONDS_TO_BEGIN])

    def tell(self, seconds: float) -> None:
        """Tell the observer of something that was sent to the database."""
        self.unit.database.tell_statement(self.unit, seconds)

    def doom(self, error: BaseException, *, for_good: bool = False) -> None:
        """The database refused a statement: remember the error that lies outermost."""
        depth = _NEVER_CONTAINED if for_good else self._depth
        if self.failure is None or depth < self._failure_depth:
            self.failure, self._failure_depth = error, depth

    def savepoint_set(self) -> None:
        self._depth += 1

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
        if not self.read_only and (_ENDS_TRANSACTION(statement) or self._is_idle(connection)):
            self.doom(_messages.ended_by_text(self.name), for_good=True)

    def _is_idle(self, connection: Connection) -> bool:
        return self.adapter.transaction_state(driver_of(connection)) is TransactionState.IDLE

    def rolled_back(self) -> None:
        """The transaction was rolled back, by the unit itself or by somebody else."""
        if self.phase is Phase.OPEN and not self._internal and self.failure is None:
            self.end_early()

    def end_early(self) -> None:
        """Nothing can be done in this unit any more."""
        self.ended = True

    def before_commit(self, connection: Connection) -> None:
        """Refuse a COMMIT that is not the unit's own, or that cannot be what it says."""
        if not self._committing:
            error = _messages.settle_refused(self.name, "commit() on the transaction or the connection")
            self.doom(error, for_good=True)
            self._clean(connection)  # SQLAlchemy forgets the transaction when this listener raises
            raise error
        state = self.adapter.transaction_state(driver_of(connection))
        if state is TransactionState.FAILED:
            raise self.doomed()
        if state is TransactionState.IDLE and self.statements:
            raise _messages.ended_by_text(self.name)
        self.commit_sent = True  # before the look at _abandoned: see abandon()
        if self._abandoned:
            raise self.doomed()

    def committed(self) -> None:
        """The database has acknowledged COMMIT; whatever fails from here on changes nothing."""
        self._acknowledged = self.commit_sent

    # -- settling: sync code that runs in a greenlet or a thread of its own

    def settle(self, session: UnitSession, *, commit: bool) -> None:
        """Commit or roll back and close the session; raises what refused the commit.

        Whatever happens, the connection goes back clean or is thrown away.
        """
        self._settler = getcurrent()
        outcome: Outcome = "rolled_back"
        try:
            if isinstance(self.failure, OutcomeUnknown):
                raise self.failure
            if commit:
                self._commit(session)
                outcome = "committed"
            else:
                self._check_not_ended_by_driver()
        except BaseException as error:
            outcome = "committed" if self._acknowledged else outcome
            outcome = "unknown" if isinstance(error, OutcomeUnknown) else outcome
            raise
        finally:
            self._leave_clean(session)
            self._settler = None
            self.phase = Phase.CLOSED
            self.outcome = self.outcome or outcome

    def _commit(self, session: UnitSession) -> None:
        self._check_committable()
        session.flush()
        self._check_committable()
        if self.read_only or not self.connections:
            return
        self._committing = True
        began = perf_counter()
        try:
            session.really_commit()
        except BaseException as error:
            if not self._acknowledged:
                raise self._refusal_of_commit(error) from error
            if not isinstance(error, Exception):
                raise
            logger.exception("%s: a listener failed after COMMIT; the work is kept", self.name)
        finally:
            self.tell(perf_counter() - began)

    def _refusal_of_commit(self, error: BaseException) -> BaseException:
        """What a failed COMMIT means: refused for certain, or nobody knows."""
        condition = self.adapter.condition(error)
        if condition is Condition.ABORTED:
            return self.doomed()
        refused = condition is not None and condition not in _MAYBE_COMMITTED
        if refused or not self.commit_sent:
            return error
        return _messages.commit_unanswered(self.name, "the connection was lost")

    def abandon(self) -> None:
        """Nobody waits for the end any more: from here on no COMMIT may be sent.

        The settling thread says that it sends COMMIT and then looks whether it was abandoned; here it is
        the other way round, so that at least one of the two sees the other.
        """
        self._abandoned = True
        if self.outcome is None:
            self.outcome = "unknown" if self.commit_sent else "rolled_back"

    def _check_not_ended_by_driver(self) -> None:
        """A transaction that is to be rolled back was ended behind SQLAlchemy's back."""
        if self.read_only or self.ended or self.failure is not None or not self.statements:
            return
        for connection in self.connections:
            if not connection.closed and not connection.invalidated and self._is_idle(connection):
                raise _messages.ended_by_text(self.name)

    def _check_committable(self) -> None:
        if self.failure is not None:
            raise self.doomed() from self.failure
        if self.ended:
            raise self.doomed()

    def _leave_clean(self, session: UnitSession) -> None:
        """Close results and session; a connection that cannot be made clean is thrown away."""
        for result in self._results:
            try:
                seal(result, self.name)
            except Exception:
                logger.warning("%s: closing a result failed", self.name, exc_info=True)
        self._results.clear()
        for connection in self.connections:
            self._clean(connection)
        try:
            session.really_close()
            for connection in self.connections:
                connection.close()  # does nothing unless the session has lost sight of it
        except Exception:
            logger.exception("%s: closing the session failed; its connection is thrown away", self.name)
            self.throw_away()

    def _clean(self, connection: Connection) -> None:
        """Roll back what the driver still has open: after a failed COMMIT, SQLAlchemy would not."""
        if connection.closed or connection.invalidated:
            return
        try:
            if not (self.read_only and self._is_idle(connection)):
                began = perf_counter()
                connection.connection.rollback()
                self.tell(perf_counter() - began)
            if self.read_only and not self.adapter.still_read_only(driver_of(connection)):
                connection.invalidate()
        except BaseException:
            logger.warning("%s: ROLLBACK failed; the connection is thrown away", self.name, exc_info=True)
            connection.invalidate()

    def throw_away(self) -> None:
        """Drop the connections, whatever state they are in; the server rolls back what they had open."""
        for connection in self.connections:
            if not connection.closed and not connection.invalidated:
                connection.invalidate()

    @property
    def closes_without_waiting(self) -> bool:
        """Whether closing a reader needs no trip to the driver: nothing was begun and nothing broke."""
        return (
            self.read_only
            and self.failure is None
            and not self._results_open()
            and all(
                not connection.closed
                and not connection.invalidated
                and self.adapter.still_read_only(driver_of(connection))
                and _pool_has_room(connection)
                for connection in self.connections
            )
        )

    def _results_open(self) -> bool:
        return any(not getattr(result, "_soft_closed", True) for result in self._results)

    # -- a reader's transaction

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
