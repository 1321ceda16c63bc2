"""What is published where a savepoint or an error may yet take it back: it goes as the rows beside it go."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, tell, words
from tests.uow.units import in_thread, insert, make_tables, names, within
from uow import Database

pytestmark = [pytest.mark.anyio, pytest.mark.backends("sqlite", "pg18")]


@pytest.fixture
async def database(backend: Backend, connect: Connect) -> Database:
    make_tables(backend)
    make_outbox_table(backend)
    database = connect(backend)
    outbox_of(database, Received())
    return database


async def test_a_savepoint_of_a_listener_of_the_commit_counts_as_any_other(
    database: Database, backend: Backend, mode: Mode
) -> None:
    def listener(session: Session) -> None:
        if session.in_nested_transaction():
            return
        with session.begin_nested():
            insert("kept")(session)
            tell("kept")
        with session.begin_nested() as savepoint:
            insert("undone")(session)
            tell("undone")
            savepoint.rollback()

    def work(session: Session) -> None:
        tell("first")
        sqlalchemy_event.listen(session, "before_commit", listener)

    await within(database, mode, work)
    assert words(backend) == ["first", "kept"]
    assert names(backend) == ["kept"]


async def test_an_error_swallowed_in_a_savepoint_of_the_connection_takes_its_events_along(
    database: Database, backend: Backend
) -> None:
    def nested(session: Session) -> None:
        with session.connection().begin_nested():
            insert("undone")(session)
            tell("undone")
            with pytest.raises(IntegrityError):
                insert("undone")(session)

    def work() -> None:
        with database.new_unit() as unit:
            tell("before")
            with pytest.raises(IntegrityError):
                nested(unit.sync_session)
            insert("after")(unit.sync_session)
            tell("after")

    await in_thread(work)
    assert words(backend) == ["before", "after"]
    assert names(backend) == ["after"]


async def test_among_engines_of_ones_own_it_takes_the_one_there_is(backend: Backend) -> None:
    make_outbox_table(backend)
    engine = create_engine(backend.url("sync"))
    database = Database.from_engines(sync_writer=engine)
    outbox_of(database, Received())
    with database.new_unit():  # on the thread of the event loop, where an async session comes first
        tell("sync")
    await database.dispose()
    engine.dispose()
    assert words(backend) == ["sync"]
