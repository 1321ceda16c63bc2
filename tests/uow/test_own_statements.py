"""What the library itself sends on the connection of a unit is watched as everything that handlers send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_cursor
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, ResourceClosedError
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.units import Item, Told, count, insert, make_tables, names, within
from uow import Database
from uow._connection import run
from uow.errors import ConcurrentUse, UnitOfWorkDoomed

pytestmark = pytest.mark.backends("sqlite", "pg18")

ADD = "INSERT INTO items (name) VALUES ('{}')"


def sent(*statements: str) -> Callable[[Session], list[int]]:
    """Work that sends statements of the library's, and returns how many rows each has changed."""
    return lambda session: [run(session.connection(), statement, ()) for statement in statements]


async def test_it_says_how_many_rows_were_changed(backend: Backend, mode: Mode, database: Database) -> None:
    changed = await within(
        database, mode, sent(ADD.format("nut"), ADD.format("bolt"), "UPDATE items SET stock = 2")
    )
    assert changed == [1, 1, 2]
    assert names(backend) == ["nut", "bolt"]


async def test_observers_and_listeners_are_told(backend: Backend, mode: Mode, connect: Connect) -> None:
    """Those that measure keep what they need on the execution context, as OpenTelemetry's does."""
    make_tables(backend)
    told = Told()
    database = connect(backend, observer=told)
    heard: list[tuple[str, str, bool, str]] = []

    def work(session: Session) -> None:
        connection = session.connection().execution_options(tenant="ours", stream_results=True)

        @event.listens_for(connection, "before_cursor_execute", retval=True)
        def before(_: Any, __: Any, statement: str, parameters: Any, context: Any, many: bool) -> Any:
            context.of_a_listener = statement
            return statement.replace("nut", "bolt"), parameters

        @event.listens_for(connection, "after_cursor_execute")
        def after(_: Any, __: Any, statement: str, ___: Any, context: Any, many: bool) -> None:
            heard.append((context.of_a_listener, statement, many, context.execution_options["tenant"]))

        run(connection, ADD.format("nut"), ())

    await within(database, mode, work, name="adding")
    assert heard == [(ADD.format("nut"), ADD.format("bolt"), False, "ours")]
    assert [name for name, _ in told.statements].count("adding") >= 2  # and COMMIT
    assert names(backend) == ["bolt"]


async def test_one_that_is_refused_dooms_the_unit(backend: Backend, mode: Mode, database: Database) -> None:
    def work(session: Session) -> None:
        insert("kept")(session)
        with pytest.raises(IntegrityError) as refused:
            sent(ADD.format("kept"))(session)
        assert ADD.format("kept") in str(refused.value)

    with pytest.raises(UnitOfWorkDoomed):
        await within(database, mode, work)
    assert names(backend) == []
    assert await within(database, mode, count) == 0


@pytest.mark.modes("sync")
async def test_where_there_is_no_cursor_the_connection_is_not_used_again(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """A link that is closed says so when a cursor is asked for, before there is a statement."""

    def work(session: Session) -> None:
        connection = session.connection()
        driver: Any = connection.connection.driver_connection
        driver.close()
        with pytest.raises(DBAPIError):
            run(connection, ADD.format("lost"), ())

    with pytest.raises(UnitOfWorkDoomed):
        await within(database, mode, work)
    assert names(backend) == []
    await within(database, mode, insert("kept"))
    assert names(backend) == ["kept"]


@pytest.mark.backends("sqlite")
@pytest.mark.modes("async")
async def test_one_that_is_cancelled_at_its_end_dooms_the_unit(
    backend: Backend, mode: Mode, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursors of some drivers are closed by a trip to their thread."""

    def work(session: Session) -> None:
        connection = session.connection()
        with monkeypatch.context() as patched:
            patched.setattr(AsyncAdapt_aiosqlite_cursor, "close", cancelled)
            with pytest.raises(asyncio.CancelledError):
                run(connection, ADD.format("lost"), ())
        assert connection.invalidated

    def cancelled(_: object) -> None:
        raise asyncio.CancelledError

    with pytest.raises(UnitOfWorkDoomed):
        await within(database, mode, work)
    assert names(backend) == []


async def test_none_is_sent_outside_of_a_transaction(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """SQLite would keep it at once, whatever becomes of the unit."""

    def work(session: Session) -> None:
        insert("lost")(session)
        connection = session.connection()

        @event.listens_for(session, "before_commit", insert=True)
        def undo(_: Session) -> None:
            connection.rollback()
            run(connection, ADD.format("loose"), ())

    with pytest.raises((UnitOfWorkDoomed, InvalidRequestError)):
        await within(database, mode, work)
    assert names(backend) == []


async def test_what_changes_during_one_that_a_flush_sends_is_found(
    backend: Backend, database: Database
) -> None:
    async def flush() -> None:
        async with database.new_unit() as unit:
            session = unit.session.sync_session
            item = Item(name="nut", version=1)

            @event.listens_for(session, "before_flush")
            def tell(*_: Any) -> None:
                connection = session.connection()

                @event.listens_for(connection, "before_cursor_execute")
                def change(_: Any, __: Any, statement: str, *___: Any) -> None:
                    if "bolt" in statement:
                        item.stock = 7  # as another task might, while it waits

                run(connection, ADD.format("bolt"), ())

            session.add(item)
            await unit.session.flush()

    with pytest.raises(ConcurrentUse, match="a Item was changed by one task while a flush"):
        await flush()
    assert names(backend) == []


async def test_after_the_unit_nothing_is_sent(backend: Backend, mode: Mode, database: Database) -> None:
    kept: list[Any] = []

    def work(session: Session) -> None:
        kept.append(session.connection())
        insert("kept")(session)

    await within(database, mode, work)
    with pytest.raises(ResourceClosedError, match="closed"):
        run(kept[0], ADD.format("late"), ())
    assert names(backend) == ["kept"]
