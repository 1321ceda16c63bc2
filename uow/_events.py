"""SQLAlchemy's engine events, passed on to the unit whose connection they speak of."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anyio
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.pool import ConnectionPoolEntry

from ._liveness import watch_over_idle
from ._messages import read_only
from ._watch import Watch, work_of
from .engines import Adapter, TransactionState
from .errors import UnitOfWorkError
from .problems import Condition

if TYPE_CHECKING:
    from .observe import UnitObserver

logger = logging.getLogger("uow")

_STARTED = "uow_started"


def listen(engine: Engine, adapter: Adapter, observer: UnitObserver | None) -> None:
    """Make the units of this engine know what happens on their connections."""

    def handle_error(context: ExceptionContext) -> BaseException | None:
        return _handle_error(context, adapter)

    event.listen(engine, "handle_error", handle_error, retval=True)
    event.listen(engine, "savepoint", _savepoint)
    event.listen(engine, "rollback_savepoint", _rollback_savepoint)
    event.listen(engine, "release_savepoint", _release_savepoint)
    event.listen(engine, "commit", _commit)
    event.listen(engine, "rollback", _rollback)
    event.listen(engine, "after_cursor_execute", _after_cursor_execute)
    event.listen(engine, "reset", partial(_reset, adapter))
    if adapter.over_a_link:
        watch_over_idle(engine, adapter)
    if observer is not None:
        event.listen(engine, "before_cursor_execute", _before_cursor_execute)


def _reset(adapter: Adapter, connection: Any, record: ConnectionPoolEntry | None, state: object) -> None:
    """The last line of defence: nothing goes back to the pool with a transaction open.

    An error here makes SQLAlchemy throw the connection away.
    """
    driver = None if record is None else record.driver_connection  # a detached one is closed anyway
    if driver is not None and adapter.transaction_state(driver) is not TransactionState.IDLE:
        connection.rollback()
        if adapter.transaction_state(driver) is not TransactionState.IDLE:
            raise UnitOfWorkError("a connection came back with a transaction that ROLLBACK did not end")


def _handle_error(context: ExceptionContext, adapter: Adapter) -> BaseException | None:
    connection = context.connection
    work = work_of(connection)
    if work is None or connection is None:
        return None
    original = context.original_exception
    is_commits = work.commit_sent and context.statement is None
    work.commit_failed = is_commits and not isinstance(original, PendingRollbackError)  # which sends nothing
    wrapped = context.sqlalchemy_exception
    stopped = not isinstance(original, Exception)  # cancelled while the statement ran
    if not (
        stopped or context.is_disconnect or isinstance(wrapped, DBAPIError) or adapter.is_drivers(original)
    ):
        return None  # it never left SQLAlchemy: a missing parameter, a row that a type cannot read
    _tell(connection, work)
    # A listener of somebody's runs statements after the last look at the unit: then no COMMIT may follow.
    too_late = work.commit_sent and not is_commits and not work.in_savepoint
    if (stopped or too_late) and not connection.invalidated and not connection.closed:
        _throw_away(connection, adapter)
    error: BaseException = wrapped or original
    if work.read_only and adapter.condition(error) is Condition.READ_ONLY:
        error = read_only(work.name)
    elif adapter.over_a_link and adapter.condition(error) is Condition.READ_ONLY:
        context.is_disconnect = True  # after a failover: the pool must not hand out the old server
    elif adapter.over_a_link and _is_of_rollback(context, work):
        context.is_disconnect = True  # psycopg's, in a pipeline, has no name for it
    lost = stopped or context.is_disconnect or _transaction_is_gone(connection, work)
    work.doom(error, for_good=lost)
    return error if error is not wrapped and error is not original else None


def _is_of_rollback(context: ExceptionContext, work: Watch) -> bool:
    """Whether it was ROLLBACK that failed, which only a lost connection makes it do."""
    # A row that cannot be fetched has no statement either. BEGIN is none: drivers send it by themselves.
    return context.statement is None and context.execution_context is None and not work.commit_sent


def _throw_away(connection: Connection, adapter: Adapter) -> None:
    """End a statement that nobody waits for, and its connection; SQLAlchemy would do so in a moment.

    In a cancelled scope anyio cancels at each step, so what is awaited here would be left in the middle. A
    failure must not take the place of the cancellation.
    """
    shield = anyio.CancelScope(shield=True) if connection.dialect.is_async else nullcontext()
    try:
        with shield:
            adapter.interrupt(connection)
            connection.invalidate()
    except Exception:
        logger.warning("a cancelled statement could not be interrupted", exc_info=True)


def _transaction_is_gone(connection: Connection, work: Watch) -> bool:
    """Whether the error cost the whole transaction, as a full disk does on SQLite."""
    if connection.closed or connection.invalidated:
        return True
    return not work.read_only and work.lost_transaction(connection)


def _savepoint(connection: Connection, name: str | None) -> None:
    if (work := work_of(connection)) is not None:
        work.savepoint_set()


def _rollback_savepoint(connection: Connection, name: str, context: None) -> None:
    if (work := work_of(connection)) is not None:
        work.savepoint_undone()


def _release_savepoint(connection: Connection, name: str, context: None) -> None:
    if (work := work_of(connection)) is not None:
        work.savepoint_released(connection, name)


def _commit(connection: Connection) -> None:
    if (work := work_of(connection)) is not None:
        work.before_commit(connection)


def _rollback(connection: Connection) -> None:
    if (work := work_of(connection)) is not None:
        work.rolled_back()


def _before_cursor_execute(connection: Connection, *_: Any) -> None:
    connection.__dict__[_STARTED] = perf_counter()


def _after_cursor_execute(connection: Connection, cursor: object, statement: str, *_: object) -> None:
    if (work := work_of(connection)) is not None:
        work.sent(connection, statement)
        _tell(connection, work)


def _tell(connection: Connection, work: Watch) -> None:
    started = connection.__dict__.pop(_STARTED, None)
    if started is not None:
        work.tell(perf_counter() - started)
