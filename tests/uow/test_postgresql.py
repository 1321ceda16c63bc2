"""PostgreSQL: readers that the server itself holds to reading, and COMMIT's own answer is read."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool
from starlette.requests import Request
from starlette.responses import Response

from tests.support.asgi import run_asgi
from tests.support.backends import Mode, PostgresBackend
from tests.uow.conftest import Connect
from tests.uow.units import Item, app_of, count, insert, make_tables, names, request, run, within
from uow import Database, current_session, errors
from uow._options import UnitOptions


@pytest.fixture
async def database(postgres: PostgresBackend, connect: Connect) -> Database:
    make_tables(postgres)
    return connect(postgres)


def setting(name: str) -> Any:
    return lambda session: session.execute(text(f"SHOW {name}")).scalar_one()


def pid(session: Session) -> int:
    return int(session.execute(text("SELECT pg_backend_pid()")).scalar_one())


def in_transaction(postgres: PostgresBackend) -> Any:
    """Whether the connection stays in a transaction between two statements, as the server sees it."""

    def ask(session: Session) -> bool:
        me = pid(session)
        rows = postgres.query("SELECT state FROM pg_stat_activity WHERE pid = ?", (me,))
        return rows != [("idle",)]

    return ask


async def test_a_reader_is_read_only_in_the_server_and_a_writer_is_not(
    postgres: PostgresBackend, database: Database, mode: Mode
) -> None:
    """L25: by raw SQL, by the ORM, by an `add()` that nobody flushed, and by locks."""

    def forgotten(session: Session) -> None:
        session.add(Item(name="forgotten"))

    assert await within(database, mode, setting("transaction_read_only"), read_only=True) == "on"
    assert await within(database, mode, setting("transaction_read_only")) == "off"
    for work in (
        insert("raw"), forgotten, run("CREATE TABLE t (a INT)"), run("SELECT * FROM items FOR UPDATE")
    ):  # fmt: skip
        with pytest.raises(errors.ReadOnlyUnitOfWork, match=r"@unit_options\(read_only=False\)"):
            await within(database, mode, work, read_only=True)

    assert names(postgres) == []
    assert await within(database, mode, count, read_only=True) == 0


async def test_a_reader_sends_one_statement_and_no_begin(
    postgres: PostgresBackend, database: Database, mode: Mode
) -> None:
    """Autocommit: one round trip, and nobody is idle in a transaction."""
    asked = in_transaction(postgres)

    assert await within(database, mode, asked, read_only=True) is False
    assert await within(database, mode, asked) is True
    postgres.wait_until_at_rest()


def after_savepoint(asked: Any) -> Any:
    def work(session: Session) -> tuple[bool, bool, Any]:
        before = asked(session)
        with session.begin_nested():
            inside = asked(session)
        return before, inside, setting("transaction_read_only")(session)

    return work


async def test_a_savepoint_in_a_read_only_unit_begins_a_read_only_transaction(
    postgres: PostgresBackend, database: Database, mode: Mode
) -> None:
    work = after_savepoint(in_transaction(postgres))

    assert await within(database, mode, work, read_only=True) == (False, True, "on")
    assert await within(database, mode, in_transaction(postgres), read_only=True) is False
    postgres.wait_until_at_rest()


async def test_objects_that_were_read_before_the_savepoint_stay_in_the_session(
    postgres: PostgresBackend, database: Database, mode: Mode
) -> None:
    postgres.execute("INSERT INTO items (name) VALUES ('nut')")

    def work(session: Session) -> bool:
        before = session.get_one(Item, 1)
        with session.begin_nested():
            return session.get_one(Item, 1) is before

    assert await within(database, mode, work, read_only=True) is True


@pytest.mark.parametrize("first", [False, True], ids=["at once", "after a read"])
async def test_a_stream_in_a_read_only_unit_begins_a_read_only_transaction(
    postgres: PostgresBackend, database: Database, mode: Mode, first: bool
) -> None:
    def work(session: Session) -> tuple[list[int], bool, Any]:
        if first:
            count(session)
        statement = text("SELECT generate_series(1, 5)").execution_options(yield_per=2)
        rows = session.execute(statement)
        seen = [next(rows)[0]]
        transactional = in_transaction(postgres)(session)
        return seen + [row[0] for row in rows], transactional, setting("transaction_read_only")(session)

    assert await within(database, mode, work, read_only=True) == ([1, 2, 3, 4, 5], True, "on")
    postgres.wait_until_at_rest()


async def test_a_stream_through_the_async_session(postgres: PostgresBackend, database: Database) -> None:
    async with database.new_unit(read_only=True) as unit:
        stream = await unit.session.stream(text("SELECT generate_series(1, 5)"))
        seen = [row[0] async for row in stream]

    assert seen == [1, 2, 3, 4, 5]
    with pytest.raises(errors.UnitOfWorkClosed):
        await unit.session.stream(text("SELECT 1"))
    postgres.wait_until_at_rest()


async def test_a_snapshot_is_repeatable_read_and_read_only(
    postgres: PostgresBackend, database: Database, mode: Mode
) -> None:
    def work(session: Session) -> tuple[Any, Any, int, int]:
        before = count(session)
        postgres.execute("INSERT INTO items (name) VALUES ('meanwhile')")
        settings = setting("transaction_isolation")(session), setting("transaction_read_only")(session)
        with session.begin_nested():
            return *settings, before, count(session)

    expected = ("repeatable read", "on", 0, 0)
    assert await within(database, mode, work, read_only=True, snapshot=True) == expected
    postgres.wait_until_at_rest()


async def test_a_reader_that_could_write_is_refused_with_what_to_do(
    postgres: PostgresBackend, mode: Mode, connect: Connect
) -> None:
    """A pooler may drop the parameter with which a connection starts."""
    make_tables(postgres)
    database = connect(postgres)
    engine: Any = database.engine(UnitOptions(read_only=True), asynchronous=mode == "async")
    engine = getattr(engine, "sync_engine", engine)

    @event.listens_for(engine, "do_connect")
    def drop_the_parameter(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> None:
        parameters.pop("options", None)
        parameters.pop("server_settings", None)

    with pytest.raises(
        errors.ReadOnlyUnitOfWork, match=r"ALTER ROLE \.\.\. SET default_transaction_read_only"
    ):
        await within(database, mode, count, read_only=True)
    recorder = await request(database, mode, count, method="GET")

    assert recorder.status == 500
    assert recorder.json()["type"] == "/problems/read-only-unit"
    postgres.wait_until_at_rest()


@pytest.mark.parametrize("unseen", [False, True], ids=["seen", "unseen"])
@pytest.mark.parametrize(
    "poison",
    [
        "SET default_transaction_read_only = off",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "BEGIN READ WRITE",
    ],
)
async def test_a_reader_that_was_switched_to_writing_serves_nobody_else(
    postgres: PostgresBackend, mode: Mode, connect: Connect, poison: str, unseen: bool
) -> None:
    """Seen by the session it dooms the unit; unseen, its connection is cleaned or thrown away."""
    make_tables(postgres)
    database = connect(postgres, pool_size=1, max_overflow=0)
    seen: list[int] = []

    def work(session: Session) -> None:
        seen.append(pid(session))
        if unseen:
            cursor = session.connection().connection.cursor()
            cursor.execute(poison)
            cursor.close()
        else:
            session.execute(text(poison))

    with nullcontext() if unseen else pytest.raises(errors.UnitOfWorkDoomed, match="ReadOnlyUnitOfWork"):
        await within(database, mode, work, read_only=True)

    if poison.startswith("SET"):  # what was begun can be rolled back, what was set stays
        assert await within(database, mode, pid, read_only=True) != seen[0]
    assert await within(database, mode, setting("transaction_read_only"), read_only=True) == "on"
    assert await within(database, mode, in_transaction(postgres), read_only=True) is False
    postgres.wait_until_at_rest()


async def test_a_clean_reader_goes_back_to_the_pool(
    postgres: PostgresBackend, mode: Mode, connect: Connect
) -> None:
    database = connect(postgres, pool_size=1, max_overflow=0)

    def refused(session: Session) -> int:
        me = pid(session)
        with pytest.raises(errors.ReadOnlyUnitOfWork):
            session.execute(text("CREATE TABLE t (a INT)"))
        return me

    first = await within(database, mode, pid, read_only=True)
    with pytest.raises(errors.UnitOfWorkDoomed):
        await within(database, mode, refused, read_only=True)

    assert await within(database, mode, pid, read_only=True) == first


@pytest.mark.parametrize("postgres", ["pg18"], indirect=True)
@pytest.mark.modes("async")
async def test_an_error_on_the_drivers_own_connection_is_found_in_the_answer_of_commit(
    postgres: PostgresBackend, database: Database, mode: Mode
) -> None:
    """L9: COPY raises no event; PostgreSQL answers COMMIT with ROLLBACK and no error."""

    async def handle(_: Any) -> Response:
        session = current_session()
        await session.run_sync(insert("lost"))
        connection = await session.connection()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        with pytest.raises(asyncpg.NotNullViolationError):
            await driver.copy_records_to_table("items", columns=["name"], records=[(None,)])
        return Response(status_code=201)

    recorder = await run_asgi(app_of(handle, database), "POST", "/work")

    assert recorder.status == 500
    assert recorder.json()["type"] == "/problems/unit-doomed"
    assert recorder.json()["outcome"] == "rolled_back"
    assert names(postgres) == []
    await within(database, mode, insert("next"))
    assert names(postgres) == ["next"]


async def test_an_error_on_a_cursor_of_the_drivers_is_found_before_commit(
    postgres: PostgresBackend, database: Database, mode: Mode
) -> None:
    """L9: no event tells of it; the driver knows the state of its transaction, or COMMIT tells."""

    def work(session: Session) -> None:
        insert("lost")(session)
        cursor = session.connection().connection.cursor()
        with pytest.raises(Exception, match="nowhere"):
            cursor.execute("SELECT * FROM nowhere")
        cursor.close()

    recorder = await request(database, mode, work)

    assert recorder.json()["type"] == "/problems/unit-doomed"
    assert names(postgres) == []
    await within(database, mode, insert("next"))
    assert names(postgres) == ["next"]


async def test_dead_connections_at_rest_are_replaced(
    postgres: PostgresBackend, mode: Mode, connect: Connect
) -> None:
    """With SQLAlchemy's own `pool_pre_ping`, which is handed on like any keyword of create_engine."""
    make_tables(postgres)
    database = connect(postgres, pool_pre_ping=True)
    await within(database, mode, insert("before"))
    await within(database, mode, count, read_only=True)
    assert postgres.terminate_all_backends() == 2

    await within(database, mode, insert("after"))
    assert await within(database, mode, count, read_only=True) == 2


@pytest.mark.backends("pg18")
@pytest.mark.parametrize("deadline", [None, 30.0])
async def test_L9_a_commit_of_a_connection_from_asyncpgs_own_pool_is_not_taken_for_one_that_it_is_not(
    postgres: PostgresBackend, deadline: float | None
) -> None:
    """The pool hands out proxies, and a transaction of theirs is one of the connection behind them."""
    make_tables(postgres)
    fails = [False, True, False]

    async def handle(_: Request) -> Response:
        session = current_session()
        await session.run_sync(insert(f"item-{len(fails)}"))
        if fails.pop():
            raw: Any = await (await session.connection()).get_raw_connection()
            with suppress(asyncpg.UndefinedColumnError):
                await raw.driver_connection.execute("SELECT nothing")
        return Response(status_code=201)

    async with asyncpg.create_pool(postgres.database_url, min_size=1, max_size=1) as pool:
        engine = create_async_engine(postgres.url("async"), poolclass=NullPool, async_creator=pool.acquire)
        async with Database.from_engines(writer=engine) as database:
            app = app_of(handle, database, deadline=deadline)
            statuses = [(await run_asgi(app, "POST", "/work")).status for _ in range(3)]
        await engine.dispose()
    assert statuses == [201, 500, 201]
    assert names(postgres) == ["item-3", "item-1"]
