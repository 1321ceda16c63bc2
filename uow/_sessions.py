"""The session of a unit: a handler reads and writes through it, and only the unit settles it.

Everything here belongs to the sync `Session`, because lazy loads and `run_sync` reach it without passing
through `AsyncSession`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Executable, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from ._greenlets import reusing_greenlets
from ._messages import settle_refused

if TYPE_CHECKING:
    from ._transaction import UnitTransaction


def _refused(name: str) -> Callable[..., Any]:
    """A method that is not the handler's to call."""

    def refuse(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        self.work.check_open()
        raise settle_refused(self.work.name, f"session.{name}()")

    return refuse


def _checked(name: str) -> Callable[..., Any]:
    """A method of `Session` that only changes its collections: refused once the unit is over."""
    plain = getattr(Session, name)

    @functools.wraps(plain)
    def checked(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        self.work.check_open()
        return plain(self, *args, **kwargs)

    return checked


def _entered(name: str) -> Callable[..., Any]:
    """A method of `Session` that may reach the database: it enters the unit, and leaves it after."""
    plain = getattr(Session, name)

    @functools.wraps(plain)
    def entered(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        work = self.work
        work.enter()
        try:
            return plain(self, *args, **kwargs)
        except Exception as error:
            work.note(error)
            raise
        finally:
            work.leave()

    return entered


def _read(name: str) -> Callable[..., Any]:
    """A method of `Session` that returns a result: as `_entered`, and the result ends with the unit."""
    plain = getattr(Session, name)

    @functools.wraps(plain)
    def read(self: UnitSession, statement: Executable, *args: Any, **kwargs: Any) -> Any:
        work = self.work
        work.enter()
        try:
            if _streams(statement, kwargs.get("execution_options")):
                work.streams = True
                if work.in_autocommit:
                    work.begin_to_read(self)
            result = plain(self, statement, *args, **kwargs)
            work.keep(result)
            return result
        except Exception as error:
            work.note(error)
            raise
        finally:
            work.leave()

    return read


class UnitSession(Session):
    """A session that belongs to a unit of work and is settled by nobody else."""

    def __init__(self, *args: Any, work: UnitTransaction, **kwargs: Any) -> None:
        self.work = work
        super().__init__(*args, **kwargs)

    execute = _read("execute")
    scalars = _read("scalars")

    scalar = _entered("scalar")
    get = _entered("get")
    get_one = _entered("get_one")
    merge = _entered("merge")
    merge_all = _entered("merge_all")
    refresh = _entered("refresh")
    flush = _entered("flush")
    delete = _entered("delete")
    delete_all = _entered("delete_all")
    connection = _entered("connection")
    bulk_save_objects = _entered("bulk_save_objects")
    bulk_insert_mappings = _entered("bulk_insert_mappings")
    bulk_update_mappings = _entered("bulk_update_mappings")

    add = _checked("add")
    add_all = _checked("add_all")
    expunge = _checked("expunge")
    expunge_all = _checked("expunge_all")
    expire = _checked("expire")
    expire_all = _checked("expire_all")
    enable_relationship_loading = _checked("enable_relationship_loading")

    commit = _refused("commit")
    prepare = _refused("prepare")
    reset = _refused("reset")
    invalidate = _refused("invalidate")

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Open a savepoint; a transaction of its own is refused, because the unit has begun one."""
        if not nested:
            self.work.check_open()
            raise settle_refused(self.work.name, "session.begin()")
        return self._begin_nested()

    def rollback(self) -> None:
        """Roll back and end the unit: later SQL gets `UnitOfWorkClosed`."""
        self.work.check_open()
        super().rollback()
        self.work.end_early()

    def close(self) -> None:
        """Do nothing: the unit closes its session when it is settled."""

    def _begin_nested(self) -> SessionTransaction:
        self.work.enter()
        try:
            if self.work.in_autocommit:
                self.work.begin_to_read(self)
            return super().begin(nested=True)
        except Exception as error:
            self.work.note(error)
            raise
        finally:
            self.work.leave()

    # What the unit itself uses to settle.

    def really_commit(self) -> None:
        super().commit()

    def really_close(self) -> None:
        super().close()


class UnitAsyncSession(AsyncSession):
    """SQLAlchemy's own, whose calls take less time; all the rules are in `UnitSession`."""

    if not TYPE_CHECKING:  # the signatures are SQLAlchemy's, overloads included
        execute = reusing_greenlets(AsyncSession.execute)
        scalar = reusing_greenlets(AsyncSession.scalar)
        get = reusing_greenlets(AsyncSession.get)
        get_one = reusing_greenlets(AsyncSession.get_one)
        flush = reusing_greenlets(AsyncSession.flush)
        refresh = reusing_greenlets(AsyncSession.refresh)


def _streams(statement: Executable, call_options: Mapping[str, Any] | None) -> bool:
    """Whether rows are to be fetched while the statement runs on, through a server-side cursor."""
    for options in (call_options, statement.get_execution_options()):
        if options and (options.get("stream_results") or options.get("yield_per")):
            return True
    return False


@event.listens_for(UnitSession, "after_begin")
def _after_begin(session: UnitSession, transaction: SessionTransaction, connection: Connection) -> None:
    session.work.began(connection)


@event.listens_for(UnitSession, "after_soft_rollback")
def _after_soft_rollback(session: UnitSession, ended: SessionTransaction) -> None:
    """The root transaction is gone, also where no connection was there to tell of it."""
    root = session.get_transaction()
    if ended.parent is None or (root is not None and not root.is_active):
        session.work.rolled_back()


@event.listens_for(UnitSession, "after_commit")
def _after_commit(session: UnitSession) -> None:
    session.work.committed()
