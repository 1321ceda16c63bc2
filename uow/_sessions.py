"""The session of a unit: a handler reads and writes through it, and only the unit settles it.

Everything here belongs to the sync `Session`, because lazy loads and `run_sync` reach it without passing
through `AsyncSession`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sqlalchemy import Connection, Executable, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from ._flushing import Flushing
from ._greenlets import reusing_greenlets
from ._messages import settle_refused

if TYPE_CHECKING:
    from ._transaction import UnitTransaction
    from ._turns import Savepoint


def _refused(name: str) -> Callable[..., Any]:
    """A method that is not the handler's to call."""

    def refuse(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        self.work.check_open()
        raise settle_refused(self.work.name, f"session.{name}()")

    return refuse


def _inside(name: str) -> Callable[..., Any]:
    """A method that only changes the session's collections: inside, because a flush may be under way."""

    @functools.wraps(getattr(Session, name))
    def inside(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        work = self.work
        work.enter_open()
        try:
            return self.plain[name](self, *args, **kwargs)
        finally:
            work.give()

    return inside


def _entered(name: str) -> Callable[..., Any]:
    """A method that may reach the database: it enters the unit, and leaves it after."""

    @functools.wraps(getattr(Session, name))
    def entered(self: UnitSession, *args: Any, **kwargs: Any) -> Any:
        work = self.work
        if work.is_inside():
            return self.plain[name](self, *args, **kwargs)
        work.enter()
        try:
            return self.plain[name](self, *args, **kwargs)
        except Exception as error:
            work.note(error)
            raise
        finally:
            work.give()

    return entered


def _read(name: str, *, keep: bool = True) -> Callable[..., Any]:
    """A method that runs a statement: as `_entered`; it may stream, and its result ends with the unit."""

    @functools.wraps(getattr(Session, name))
    def read(self: UnitSession, statement: Executable, *args: Any, **kwargs: Any) -> Any:
        work = self.work
        if work.is_inside():  # SQLAlchemy's own, to load something: it is read to its end at once
            return self.plain[name](self, statement, *args, **kwargs)
        work.enter()
        try:
            if _streams(statement, kwargs.get("execution_options")):
                work.streams = True
                if work.in_autocommit:
                    work.begin_to_read(self)
            result = self.plain[name](self, statement, *args, **kwargs)
            if keep:
                work.keep(result)
            return result
        except Exception as error:
            work.note(error)
            raise
        finally:
            work.give()

    return read


class _PlainMethods:
    """The methods of a session class as they are without `UnitSession`, by name; looked up once a class."""

    def __get__(self, session: object, cls: type[UnitSession]) -> dict[str, Callable[..., Any]]:
        bases = cls.__mro__[cls.__mro__.index(UnitSession) + 1 :]
        plain = {
            name: next(base.__dict__[name] for base in bases if name in base.__dict__)
            for name, method in UnitSession.__dict__.items()
            if hasattr(method, "__wrapped__")
        }
        cls.plain = plain  # takes the place of this descriptor
        return plain


class UnitSavepoint(SessionTransaction):
    """A savepoint of a unit: its end takes its turn like any other call."""

    work: UnitTransaction
    place: Savepoint | None

    def commit(self, _to_root: bool = False) -> None:
        self.work.take(self.place)
        try:
            self.work.check_open()
            super().commit(_to_root)
        finally:
            self.work.give()

    def rollback(self, _capture_exception: bool = False, _to_root: bool = False) -> None:
        self.work.take(self.place)
        try:
            if self.work.may_touch():  # else the unit is rolling all of it back
                super().rollback(_capture_exception, _to_root)
        finally:
            self.work.give()

    def close(self, invalidate: bool = False) -> None:
        """Ends it, also where a failed flush has; SQLAlchemy's `with` then calls neither of the others."""
        self.work.take(self.place)
        try:
            super().close(invalidate)
            if self.place is not None:
                self.work.close_savepoint(self.place)
        finally:
            self.work.give()


class UnitSession(Session):
    """A session that belongs to a unit of work and is settled by nobody else.

    A session class of your own has this one as its first base, `class MySession(UnitSession, Yours)`, and
    is named by `Database(url, session_class=MySession)`; it takes the keywords of `Session`.
    """

    plain: ClassVar[Any] = _PlainMethods()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.plain = _PlainMethods()

    def __init__(self, *args: Any, work: UnitTransaction, **kwargs: Any) -> None:
        self.work = work
        super().__init__(*args, **kwargs)

    execute = _read("execute")
    scalars = _read("scalars")
    scalar = _read("scalar", keep=False)

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

    add = _inside("add")
    add_all = _inside("add_all")
    expunge = _inside("expunge")
    expunge_all = _inside("expunge_all")
    expire = _inside("expire")
    expire_all = _inside("expire_all")
    enable_relationship_loading = _inside("enable_relationship_loading")

    prepare = _refused("prepare")
    reset = _refused("reset")
    invalidate = _refused("invalidate")

    def commit(self) -> None:
        """Refused, because the unit commits; with `handlers_settle="flush"`, a flush and a warning."""
        self._settle_here("session.commit()")
        self.flush()

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Open a savepoint; a transaction is the unit's, and is refused or made a savepoint as `commit`."""
        if not nested:
            self._settle_here("session.begin()")
        return self._begin_nested()

    def rollback(self) -> None:
        """Roll back and end the unit: later SQL gets `UnitOfWorkClosed`."""
        work = self.work
        work.enter_open()
        try:
            super().rollback()
            work.end_early()
        finally:
            work.give()

    def close(self) -> None:
        """Do nothing: the unit closes its session when it is settled."""

    def _flush(self, objects: Any = None) -> None:
        """What SQLAlchemy's `flush` calls where there is something to write; listeners would cost more."""
        work = self.work
        if work.asynchronous:
            work.flushing = Flushing(self)
        try:
            super()._flush(objects)
        finally:
            work.flushing = None

    def _settle_here(self, call: str) -> None:
        self.work.check_open()
        self.work.unit.database.handler_settles(self.work.name, call)

    def _begin_nested(self) -> SessionTransaction:
        work = self.work
        work.enter()
        try:
            if work.in_autocommit:
                work.begin_to_read(self)
            savepoint: Any = super().begin(nested=True)
            work.open_savepoint()
            savepoint.__class__ = UnitSavepoint
            savepoint.work, savepoint.place = work, work.top
            return cast("SessionTransaction", savepoint)
        except Exception as error:
            work.note(error)
            raise
        finally:
            work.give()

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
