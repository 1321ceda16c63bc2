"""What units listen to, and what others do with the same engines, connections and sessions."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.units import (
    Item,
    count,
    in_thread,
    insert,
    make_tables,
    names,
    request,
    within,
)
from uow import Database
from uow._options import UnitOptions


def test_the_engines_of_somebody_else_may_be_used_without_a_unit(sqlite: SqliteBackend) -> None:
    """What units listen to means nothing where there is none."""
    make_tables(sqlite)
    engine = create_engine(sqlite.url("sync"), connect_args={"isolation_level": None})
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    database = Database.from_engines(sync_writer=engine)

    with engine.begin() as connection:
        with connection.begin_nested():
            connection.execute(text("INSERT INTO items (name) VALUES ('kept')"))
        connection.begin_nested().rollback()
        with pytest.raises(IntegrityError):
            connection.execute(text("INSERT INTO items (name) VALUES ('kept')"))
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO items (name) VALUES ('never')"))
        connection.rollback()

    assert names(sqlite) == ["kept"]
    with database.new_unit() as unit:
        assert count(unit.sync_session) == 1
    engine.dispose()


async def test_listeners_of_one_connection_hear_of_no_other(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """SQLAlchemy's own events on a connection work in a unit, and end with it."""
    heard: list[str] = []

    def listen(session: Session) -> None:
        @event.listens_for(session.connection(), "before_cursor_execute")
        def hear(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            heard.append(statement)

        insert("heard")(session)

    await within(database, mode, listen)
    await within(database, mode, insert("unheard"))

    assert len(heard) == 1
    assert names(backend) == ["heard", "unheard"]


async def test_a_transaction_that_was_left_open_past_the_unit_is_undone_by_the_pool(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """The last line of defence: nothing goes back to the pool with a transaction open."""
    engine: Any = database.engine(UnitOptions(read_only=True), asynchronous=mode == "async")

    def leave_open(engine: Any) -> None:
        raw = engine.raw_connection()
        cursor = raw.cursor()
        cursor.execute("BEGIN")
        cursor.execute("SELECT count(*) FROM items")
        cursor.close()
        raw.close()

    if mode == "async":
        await greenlet_spawn(leave_open, engine.sync_engine)
    else:
        await in_thread(leave_open, engine)

    backend.wait_until_at_rest()
    assert await within(database, mode, count, read_only=True) == 0


async def test_a_session_may_be_used_as_a_block_and_stays_open(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L11: `close()` and leaving the block do nothing: the unit closes."""

    def work(session: Session) -> None:
        with session:
            insert("first")(session)
        insert("second")(session)
        session.close()

    assert (await request(database, mode, work)).status == 201
    assert names(backend) == ["first", "second"]


async def test_more_of_the_sessions_calls_work_as_ever(
    backend: Backend, mode: Mode, database: Database
) -> None:
    def work(session: Session) -> None:
        item = session.merge(Item(name="merged"))
        session.flush()
        session.refresh(item)
        session.expire(item)
        assert session.scalar(select(Item.name)) == "merged"
        session.bulk_insert_mappings(Item, [{"name": "bulk", "version": 1}])
        session.delete(session.get_one(Item, item.id))
        session.flush()
        session.expunge_all()

    await within(database, mode, work)

    assert names(backend) == ["bulk"]
