"""A test has one connection: who waits for it, who must not, and what cannot be done on it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode, PostgresBackend, SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.testing.apps import app_with
from tests.uow.testing.clients import TestClient, asgi_client
from tests.uow.units import count, elsewhere, in_thread, insert, make_tables, names, run, within
from uow import Database, errors, new_unit
from uow.testing import CannotRollBack, rolled_back


async def nested(database: Database, mode: Mode, **options: Any) -> None:
    if mode == "async":
        async with database.new_unit(name="outer", **options) as unit:
            await unit.session.execute(text("SELECT 1"))
            async with database.new_unit(name="inner") as inner:
                await inner.session.execute(text("SELECT 1"))
        return

    def in_blocks() -> None:
        with database.new_unit(name="outer", **options) as unit:
            unit.sync_session.execute(text("SELECT 1"))
            with database.new_unit(name="inner") as inner:
                inner.sync_session.execute(text("SELECT 1"))

    await in_thread(in_blocks)


@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "reader"])
async def test_a_unit_inside_a_unit_is_told_that_it_would_wait_for_itself(
    mode: Mode, database: Database, read_only: bool
) -> None:
    async with rolled_back(database, wait=300):
        with pytest.raises(errors.WouldDeadlock, match=r"inner.* outer"):
            await nested(database, mode, read_only=read_only)
        assert await within(database, mode, count) == 0


async def test_a_request_inside_a_unit_of_the_test_is_told_so_too(database: Database) -> None:
    app = app_with(database, "async")
    async with rolled_back(database, wait=300), asgi_client(app) as client:
        async with database.new_unit(name="the test's") as unit:
            await unit.session.execute(text("SELECT 1"))
            answer = await client.post("/nut")
        assert answer.json()["type"] == "/problems/would-deadlock"
        assert "the test's" in answer.json()["detail"]


def test_with_a_test_client_as_well(mode: Mode, shop: Database) -> None:
    with rolled_back(shop, wait=300):
        client = TestClient(app_with(shop, mode))
        with shop.new_unit(name="the test's") as unit:
            unit.sync_session.execute(text("SELECT 1"))
            answer = client.post("/nut")
        assert answer.json()["type"] == "/problems/would-deadlock"
        assert "the test's" in answer.json()["detail"]


async def test_who_waits_too_long_is_told_for_whom(mode: Mode, database: Database) -> None:
    """Nobody can tell whether a unit of some other task will ever end."""
    async with rolled_back(database, wait=0.05):
        forgotten = database.new_unit(name="forgotten")
        unit = await forgotten.__aenter__() if mode == "async" else forgotten.__enter__()
        if mode == "async":
            await unit.session.execute(text("SELECT 1"))
        else:
            unit.sync_session.execute(text("SELECT 1"))
        with pytest.raises(
            errors.WouldDeadlock, match=r"forgotten did not give it back within 0\.05 seconds"
        ):
            await elsewhere(within(database, mode, count, name="late"))
        if mode == "async":
            await forgotten.__aexit__(None, None, None)
        else:
            forgotten.__exit__(None, None, None)


async def test_a_unit_in_a_unit_that_has_not_begun_is_fine(mode: Mode, database: Database) -> None:
    """As the recipes have it: first the audit row, then the request's own first SQL."""
    audited = "INSERT INTO items (name) VALUES ('audit')"

    async def audit() -> None:
        async with new_unit() as unit:
            await unit.session.execute(text(audited))

    async with rolled_back(database) as probe:
        if mode == "async":
            async with database.new_unit() as unit:
                await audit()
                await unit.session.execute(text("INSERT INTO items (name) VALUES ('own')"))
        else:

            def both() -> None:
                with database.new_unit() as unit:
                    with new_unit() as inner:
                        inner.sync_session.execute(text(audited))
                    unit.sync_session.execute(text("INSERT INTO items (name) VALUES ('own')"))

            await in_thread(both)
        probe.assert_committed(2)
        assert await within(database, mode, count) == 2


async def test_a_task_that_nobody_waits_for_gets_the_connection_when_the_unit_has_ended(
    database: Database,
) -> None:
    async def later() -> None:
        async with database.new_unit(name="later") as unit:
            await unit.session.execute(text("INSERT INTO items (name) VALUES ('later')"))

    async with rolled_back(database, wait=30) as probe:
        async with database.new_unit(name="first") as unit:
            await unit.session.execute(text("SELECT 1"))
            if database.adapter.one_writer:  # there it is refused in production as well
                return
            task = asyncio.create_task(later())
            await asyncio.sleep(0)
        await task
        assert [unit.name for unit in probe.units] == ["first", "later"]


async def test_sync_and_async_sessions_share_the_connection_where_the_driver_can(
    backend: Backend, connect: Connect
) -> None:
    """On SQLite and psycopg, whichever comes first; asyncpg cannot, and says what can."""
    make_tables(backend)
    database = connect(backend)
    modes: list[Mode] = ["async", "sync"]
    for first, second in [modes, modes[::-1]]:
        async with rolled_back(database):
            await within(database, first, insert("nut"))
            if backend.name == "pg18":
                with pytest.raises(CannotRollBack, match="postgresql\\+psycopg://"):
                    await within(database, second, count)
            else:
                assert await within(database, second, count, read_only=True) == 1
                await within(database, second, insert("bolt"))
            assert await within(database, first, count) == (1 if backend.name == "pg18" else 2)
    assert names(backend) == []


async def test_a_unit_that_is_open_at_the_end_is_an_error_and_is_rolled_back(
    backend: Backend, database: Database
) -> None:
    block = rolled_back(database, wait=0.05)
    forgotten = database.new_unit(name="forgotten")
    await block.__aenter__()
    session = (await forgotten.__aenter__()).session
    await session.execute(text("INSERT INTO items (name) VALUES ('nut')"))
    with pytest.raises(CannotRollBack, match="forgotten"):
        await block.__aexit__(None, None, None)
    with pytest.raises(DBAPIError):
        await session.execute(text("SELECT 1"))
    with pytest.raises(errors.UnitOfWorkError):
        await forgotten.__aexit__(None, None, None)
    assert names(backend) == []


async def test_a_block_without_await_cannot_wait_for_a_unit_of_its_own_loop(database: Database) -> None:
    block = rolled_back(database, wait=300)
    block.__enter__()
    forgotten = database.new_unit()
    unit = await forgotten.__aenter__()
    await elsewhere(unit.session.execute(text("SELECT 1")))  # where nobody knows its name
    with pytest.raises(CannotRollBack, match="a unit is still open"):
        block.__exit__(None, None, None)
    with pytest.raises(errors.UnitOfWorkError):
        await forgotten.__aexit__(None, None, None)


def test_without_an_event_loop_as_well(backend: Backend, shop: Database) -> None:
    unit = shop.new_unit(name="forgotten")
    with pytest.raises(CannotRollBack, match="forgotten"), rolled_back(shop, wait=0.05):
        unit.__enter__().sync_session.execute(text("INSERT INTO items (name) VALUES ('nut')"))
    with pytest.raises(errors.UnitOfWorkError):
        unit.__exit__(None, None, None)
    assert names(backend) == []


async def test_commit_as_text_does_not_reach_the_transaction_of_the_test(
    backend: Backend, mode: Mode, database: Database
) -> None:
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        await client.post("/nut")
        for path in ("/commit", "/rollback", "/again"):
            answer = await client.post(path)
            assert answer.json()["type"] == "/problems/commit-outcome-unknown", path
            assert probe.units[-1].outcome == "unknown"
        assert (await client.get("/commit")).status_code == 500
        assert (await client.get("/names")).json() == ["by text", "nut"]
    assert names(backend) == []


@pytest.mark.backends("pgsystem")
async def test_a_commit_that_nobody_could_see_is_an_error(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """Two statements in one text: the test's transaction has ended, and the next unit says so."""
    async with rolled_back(database):
        with pytest.raises(errors.OutcomeUnknown):
            await within(database, mode, run("INSERT INTO items (name) VALUES ('gone'); COMMIT"))
        with pytest.raises(CannotRollBack, match="has ended"):
            await within(database, mode, count)
    assert names(backend) == ["gone"]


async def test_a_script_is_refused_on_sqlite(sqlite: SqliteBackend, connect: Connect) -> None:
    make_tables(sqlite)
    database = connect(sqlite)

    def script(session: Session) -> None:
        raw: Any = session.connection().connection.driver_connection
        raw.executescript("INSERT INTO items (name) VALUES ('x'); SELECT 1")

    async with rolled_back(database):
        with pytest.raises(Exception, match="one statement at a time"):
            await within(database, "sync", script)
    assert names(sqlite) == []


SLOW = {
    ("postgresql", False): "SELECT pg_sleep(60)",
    ("postgresql", True): "SELECT pg_sleep(60)",
    ("sqlite", False): (
        "INSERT INTO items (name) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
        "WHERE i < 300000) SELECT 'n' || i FROM n"
    ),
    ("sqlite", True): (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000000) "
        "SELECT count(*) FROM n"
    ),
}


@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "reader"])
async def test_a_unit_that_is_cancelled_costs_the_test_nothing(
    backend: Backend, database: Database, read_only: bool
) -> None:
    """L12: neither what came before nor what comes after."""
    begun = asyncio.Event()

    async def slow() -> None:
        async with database.new_unit(name="slow", read_only=read_only) as unit:
            await unit.session.execute(text("SELECT 1"))
            begun.set()
            await unit.session.execute(text(SLOW[backend.dialect, read_only]))

    async with rolled_back(database, wait=60) as probe:
        await within(database, "async", insert("nut"))
        task = asyncio.create_task(slow())
        await begun.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert probe.units[-1].outcome == "rolled_back"
        assert await within(database, "async", count) == 1
    assert names(backend) == []


async def test_a_connection_that_was_terminated_is_replaced(
    postgres: PostgresBackend, connect: Connect
) -> None:
    """asyncpg's way to close without an event loop, which SQLAlchemy takes when it finds one lost."""
    make_tables(postgres)
    database = connect(postgres)

    async def terminate() -> None:
        async with database.new_unit() as unit:
            await unit.session.execute(text("INSERT INTO items (name) VALUES ('gone')"))
            raw: Any = (await (await unit.session.connection()).get_raw_connection()).driver_connection
            closed = raw.terminate() if hasattr(raw, "terminate") else raw.close()
            if closed is not None:
                await closed
            await unit.session.execute(text("SELECT 1"))

    async with rolled_back(database):
        with pytest.raises(DBAPIError):
            await terminate()
        assert await within(database, "async", count) == 0


async def test_a_connection_that_is_thrown_away_is_replaced(mode: Mode, database: Database) -> None:
    def invalidate(session: Session) -> None:
        insert("gone")(session)
        session.connection().invalidate()

    async with rolled_back(database) as probe:
        await within(database, mode, insert("nut"))
        with pytest.raises(errors.UnitOfWorkError):
            await within(database, mode, invalidate)
        probe.assert_rolled_back()
        assert await within(database, mode, count, read_only=True) == 1


async def test_a_database_has_one_such_block_at_a_time(database: Database) -> None:
    async with rolled_back(database):
        with pytest.raises(RuntimeError, match="already"), rolled_back(database):
            pass
        await within(database, "async", insert("nut"))


async def as_sent(call: Callable[[str], Any], sql: str) -> None:
    answer = call(sql)
    if inspect.isawaitable(answer):
        await answer


async def test_what_has_ended_says_that_it_is_closed(mode: Mode, database: Database) -> None:
    kept: list[Any] = []

    def keep(session: Session) -> None:
        kept.append(session.connection().connection.driver_connection)

    async with rolled_back(database):
        await within(database, mode, keep)
        with pytest.raises(Exception, match=r"closed|no active connection"):
            await as_sent(kept[0].execute, "SELECT 1")
