"""The errors of a unit, each with what to write instead; one place, so that they speak alike."""

from __future__ import annotations

from sqlalchemy.exc import TimeoutError as PoolTimeout

from .errors import (
    ConcurrentUse,
    DeadlineExceeded,
    MixedSessions,
    OutcomeUnknown,
    ReadOnlyUnitOfWork,
    SendRefused,
    SettleRefused,
    UnitOfWorkClosed,
    UnitOfWorkDoomed,
    WouldDeadlock,
)


def settle_refused(name: str, call: str) -> SettleRefused:
    """A handler called what only the unit may call."""
    return SettleRefused(
        f"{name}: {call} is not the handler's to call: the unit of work commits when the answer is 2xx or "
        f"3xx, and rolls back otherwise. Write flush() to get an id, begin_nested() around a part that may "
        f"fail, set_rollback_only() to keep nothing"
    )


def closed(name: str) -> UnitOfWorkClosed:
    """Somebody uses what a settled unit has left behind."""
    return UnitOfWorkClosed(
        f"{name}: the unit of work is settled, and its session and results with it. A task, thread or "
        f"generator that outlives its request opens a unit of its own: async with new_unit():"
    )


def rolled_back(name: str) -> UnitOfWorkClosed:
    """Somebody goes on after the handler's own rollback."""
    return UnitOfWorkClosed(
        f"{name}: its transaction was rolled back, which ended the unit of work; answer with an error, or "
        f"put what may fail in begin_nested()"
    )


def doomed(name: str, failure: BaseException | None, *, ended: bool) -> UnitOfWorkDoomed:
    """A unit cannot be committed; the message names the reason."""
    if failure is not None:
        reason = f"the database refused a statement ({type(failure).__name__}) and the handler went on"
    elif ended:
        reason = "its transaction was rolled back before the answer"
    else:
        reason = "its transaction has failed in the database"
    return UnitOfWorkDoomed(
        f"{name}: nothing of this unit was kept: {reason}. Let the error out, or put what may fail in "
        f"begin_nested()"
    )


def savepoint_open(name: str) -> UnitOfWorkDoomed:
    """A unit is to be committed in the middle of a savepoint's block."""
    return UnitOfWorkDoomed(
        f"{name}: nothing of this unit was kept: a savepoint was still open when its answer was ready, so a "
        f"block is half done. Write `async with session.begin_nested():`, and wait for the tasks that do"
    )


def changed_meanwhile(name: str, what: str) -> ConcurrentUse:
    """An object was changed while it was being flushed, and SQLAlchemy would forget the change."""
    return ConcurrentUse(
        f"{name}: {what} was changed by one task while a flush of another was writing it, and SQLAlchemy "
        f"would forget the change. Change it before the flush or after it, or give each task its own unit: "
        f"async with new_unit():"
    )


def read_only(name: str) -> ReadOnlyUnitOfWork:
    """A read-only unit was asked to write."""
    return ReadOnlyUnitOfWork(
        f"{name}: a read-only unit was asked to write, and the database refused it. If this request is "
        f"meant to write, mark its endpoint with @unit_options(read_only=False)"
    )


def ended_by_text(name: str) -> OutcomeUnknown:
    """The transaction was ended behind the unit's back."""
    return OutcomeUnknown(
        f"{name}: COMMIT or ROLLBACK was sent as text, so what was kept is not known; the unit settles "
        f"itself when the answer is ready"
    )


def deadline_over(name: str, seconds: float) -> DeadlineExceeded:
    """A request has used all of its time."""
    return DeadlineExceeded(
        f"{name}: not answered within {seconds:g} seconds, its deadline; nothing was kept"
    )


def too_many_waiting(name: str, most: int) -> PoolTimeout:
    """A unit would be one more that waits for a connection; nothing was begun."""
    return PoolTimeout(
        f"{name}: {most} others wait for a connection already, and more are not let in (max_waiting)"
    )


def commit_unanswered(name: str, why: str) -> OutcomeUnknown:
    """COMMIT was sent, and no answer came."""
    return OutcomeUnknown(f"{name}: {why} while COMMIT was on its way; the database may have kept the work")


def mixed_sessions(name: str, asked: str, has: str, instead: str) -> MixedSessions:
    """A second kind of session was asked for."""
    return MixedSessions(
        f"{name}: this unit was asked for {asked}, but {has}; they would be two transactions that look like "
        f"one. Write {instead} throughout, or open a second unit with new_unit()"
    )


def would_deadlock(name: str, outer: str, dialect: str) -> WouldDeadlock:
    """A unit would wait for the one around it."""
    return WouldDeadlock(
        f"{name}: it would wait for {outer}, which is open for writing here and cannot end before it, and "
        f"{dialect} has one writer at a time. Write before the other unit begins or after its end"
    )


def concurrent_use(name: str, who: str, why: str) -> ConcurrentUse:
    """A call came at a moment when it would have to wait for another, and cannot."""
    return ConcurrentUse(
        f"{name}: {who} uses the session while {why}. Awaited calls take turns, but add(), expire() and the "
        f"like, and calls from threads, cannot wait: make them one after another, or give each its own unit "
        f"with new_unit()"
    )


def second_connection(name: str) -> MixedSessions:
    """A session's get_bind() named another database than the unit's."""
    return MixedSessions(
        f"{name}: get_bind() gave the session a second connection; a unit has one, because two cannot be "
        f"committed as one. Let get_bind() return super().get_bind(), and open a unit of the other database: "
        f"async with other_database.new_unit():"
    )


def send_refused(name: str) -> SendRefused:
    """A WebSocket was told something by a unit that is not settled."""
    return SendRefused(
        f"{name}: a message was to be sent while this unit is open, so it would be out before the COMMIT "
        f"that it may speak of. Send after the end of the block, or by on_commit()"
    )


def stream_too_long(name: str, seconds: float) -> UnitOfWorkClosed:
    """A streaming answer has held its unit for too long."""
    return UnitOfWorkClosed(
        f"{name}: its answer was streaming for {seconds:g} seconds (stream_timeout), so its unit was closed "
        f"and the answer is cut off"
    )
