"""How the transaction of a unit ends: committed, rolled back or unknown, its connection clean or gone."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from time import perf_counter
from typing import TYPE_CHECKING

from greenlet import getcurrent
from sqlalchemy import Connection
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.pool import QueuePool

from . import _messages
from ._results import seal
from ._watch import Phase, Watch
from .engines import TransactionState, driver_of
from .errors import OutcomeUnknown
from .problems import Condition

if TYPE_CHECKING:
    from ._sessions import UnitSession
    from ._unit import Outcome

logger = logging.getLogger("uow")

_MAYBE_COMMITTED = (Condition.CONNECTION_LOST, Condition.COMMIT_UNKNOWN)


def _pool_has_room(connection: Connection) -> bool:
    """Whether the pool keeps the connection when it comes back; closing one is a trip to the driver."""
    pool = connection.engine.pool
    return isinstance(pool, QueuePool) and pool.checkedin() < pool.size()


class UnitTransaction(Watch):
    """The transaction of one unit, from its first SQL to its settled end."""

    __slots__ = ()

    def before_commit(self, connection: Connection) -> None:
        """Refuse a COMMIT that is not the unit's own, or that cannot be what it says."""
        if not self._committing:
            error = _messages.settle_refused(self.name, "commit() on the transaction or the connection")
            self.doom(error, for_good=True)
            self._clean(connection)  # SQLAlchemy forgets the transaction when this listener raises
            raise error
        state = self.adapter.transaction_state(driver_of(connection))
        if state is TransactionState.FAILED or self.failure is not None:  # one of a listener's just now
            raise self.doomed() from self.failure
        if state is TransactionState.IDLE and self.statements and self.unit.database.begins_visibly:
            raise _messages.ended_by_text(self.name)
        self._identify(connection)  # not before: listeners of the session may have written just now
        if self.is_limited:
            self.adapter.lift_limit(connection)
        self.commit_sent = True  # before the look at abandoned: see abandon()
        if self.abandoned:
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
        self.check_committable()
        if (self.in_savepoint or session.in_nested_transaction()) and not self.read_only:
            raise _messages.savepoint_open(self.name)  # its block is half done
        session.flush()
        self.check_committable()
        if not (self.connections or self.must_commit) or (self.read_only and self.unit.database.own):
            return  # a reader that the user brought may be a writer
        self._committing = True
        began = perf_counter()
        try:
            session.really_commit()
        except BaseException as error:
            if not self._acknowledged:
                self._raise_if_unknown(error)
                raise
            if not isinstance(error, Exception):
                raise
            logger.exception("%s: a listener failed after COMMIT; the work is kept", self.name)
        finally:
            self.tell(perf_counter() - began)

    def _identify(self, connection: Connection) -> None:
        """Learn the name of the transaction, by which others can say later what became of it."""
        asking = self.unit.asking
        if asking is not None and self.adapter.over_a_link and not self.read_only:  # that may be a standby
            self.transaction = asking.identify(connection)

    def _raise_if_unknown(self, error: BaseException) -> None:
        """Raise what a failed COMMIT means where its own error does not say it."""
        condition = self.adapter.condition(error)
        if condition is Condition.ABORTED:
            raise self.doomed() from error
        if isinstance(
            error, PendingRollbackError
        ):  # it was not sent: the connection is gone since a statement
            raise self.doomed() from self.failure
        refused = condition is not None and condition not in _MAYBE_COMMITTED
        if self.commit_failed and not refused:
            raise _messages.commit_unanswered(self.name, "the connection was lost") from error

    def learnt(self, unknown: OutcomeUnknown, *, kept: bool | None) -> None:
        """Somebody has asked what became of the COMMIT: raise unless it was kept."""
        if kept is None:
            raise unknown
        self.outcome = "committed" if kept else "rolled_back"
        logger.warning("%s: the answer to COMMIT was lost; the database says: %s", self.name, self.outcome)
        if not kept:
            raise self.doomed() from unknown.__cause__

    def abandon(self) -> None:
        """Nobody waits for the end any more: from here on no COMMIT may be sent.

        The settling thread says that it sends COMMIT and then looks whether it was abandoned; here it is
        the other way round, so that at least one of the two sees the other.
        """
        self.abandoned = True
        if self.outcome is None:
            self.outcome = "unknown" if self.commit_sent else "rolled_back"

    def _check_not_ended_by_driver(self) -> None:
        """A transaction that is to be rolled back was ended behind SQLAlchemy's back."""
        if self.read_only or self.ended or self.failure is not None or not self.statements or self.is_cut:
            return
        if any(self.lost_transaction(connection) for connection in self._live()):
            raise _messages.ended_by_text(self.name)

    def check_committable(self) -> None:
        """Raise UnitOfWorkDoomed if what was done cannot be committed any more."""
        if self.failure is not None:
            raise self.doomed() from self.failure
        if self.ended:
            raise self.doomed()
        for connection in self.connections:
            if connection.invalidated or self.is_cut:
                raise self.doomed()

    def _leave_clean(self, session: UnitSession) -> None:
        """Close results and session; a connection that cannot be made clean is thrown away."""
        try:
            for result in self._results:
                seal(result, self.name)
            if self.is_limited:
                self._forget_limit()
            while (savepoint := session.get_nested_transaction()) is not None:
                savepoint.close()  # while there still is one: closing the session is too late for it
            for connection in self._live():
                self._clean(connection)
            session.really_close()
            for connection in self.connections:
                connection.close()  # does nothing unless the session has lost sight of it
        except Exception:
            logger.exception("%s: closing the session failed; its connection is thrown away", self.name)
            self.throw_away()

    def _forget_limit(self) -> None:
        """It may never have been sent: then it must not be, with the BEGIN of somebody else."""
        for connection in self._live():
            self.adapter.adopt(driver_of(connection))

    def _clean(self, connection: Connection) -> None:
        """Roll back what the driver still has open: after a failed COMMIT, SQLAlchemy would not."""
        if self.is_cut:
            connection.invalidate()
            return
        try:
            if not (self.read_only and self._is_idle(connection)):
                began = perf_counter()
                connection.connection.rollback()
                self.tell(perf_counter() - began)
            if (
                self.read_only
                and self.unit.database.own
                and not self.adapter.still_read_only(driver_of(connection))
            ):
                connection.invalidate()
        except BaseException:
            logger.warning("%s: ROLLBACK failed; the connection is thrown away", self.name, exc_info=True)
            connection.invalidate()

    def cut_off(self, left: Future[None]) -> None:
        """Give up on a thread that is still inside: nobody may close a connection under its hands.

        The statement is interrupted where that can be done, and the thread itself, when it leaves, throws
        the connection away.
        """
        left.add_done_callback(lambda _: self.throw_away())
        for connection in self._live():
            self.adapter.interrupt(connection)

    def throw_away(self) -> None:
        """Drop the connections, whatever state they are in; the server rolls back what they had open."""
        if self.asynchronous:
            self.hang_up()  # closing it in good order would wait for an answer
        for connection in self._live():
            connection.invalidate()

    @property
    def closes_without_waiting(self) -> bool:
        """Whether closing a reader needs no trip to the driver: nothing was begun and nothing broke."""
        return (
            self.read_only
            and self.unit.database.own
            and (self.in_autocommit or not self.adapter.needs_transaction_to_read())
            and self.failure is None
            and not self.is_cut
            and not self.streams
            and all(
                not connection.closed
                and not connection.invalidated
                and self.adapter.still_read_only(driver_of(connection))
                and _pool_has_room(connection)
                for connection in self.connections
            )
        )
