"""L7: a connection that died at rest is replaced before a unit gets it, and no request sees it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from time import sleep
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from tests.faults.proxy import PostgresProxy
from tests.support.backends import Backend, Mode, PostgresBackend
from tests.support.wait import wait_until_async
from tests.uow.conftest import Connect
from tests.uow.units import Item, count, elsewhere, insert, make_tables, names, request, within
from uow import Database, _liveness

pytestmark = pytest.mark.backends("pg18", "pgsystem")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_liveness, "monotonic", clock)
    return clock


def kill_all(backend: Backend) -> int:
    """End every other connection to the database, from outside."""
    return len(
        backend.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend' "
            "AND pid <> pg_backend_pid()"
        )
    )


async def use(database: Database, mode: Mode, name: str) -> None:
    """A request that writes and one that reads: a connection of each engine."""
    assert (await request(database, mode, insert(name))).status == 201
    assert (await request(database, mode, count, method="GET")).status == 201


async def test_L7_the_next_requests_find_living_connections(
    backend: Backend, mode: Mode, connect: Connect, clock: Clock
) -> None:
    make_tables(backend)
    database = connect(backend)
    await use(database, mode, "before")
    assert kill_all(backend) >= 2
    clock.now += 1.5

    for number in range(5):
        await use(database, mode, f"after-{number}")

    assert names(backend) == ["before", *(f"after-{number}" for number in range(5))]


async def test_L7_one_dead_connection_speaks_for_all_of_its_age(
    backend: Backend, connect: Connect, clock: Clock
) -> None:
    """Only the first is asked; all that had been connected before it are replaced."""
    make_tables(backend)
    database = connect(backend, pool_size=3, max_overflow=0)

    async def hold_three() -> None:
        async with AsyncExitStack() as held:
            for _ in range(3):
                unit = await held.enter_async_context(database.new_unit())
                await unit.session.scalar(text("SELECT 1"))

    await hold_three()
    kill_all(backend)
    clock.now += 1.5
    pings = counted_pings(database)
    await hold_three()

    assert pings == [1]


async def test_L7_no_request_pays_for_a_ping_under_load(
    backend: Backend, mode: Mode, connect: Connect, clock: Clock
) -> None:
    make_tables(backend)
    database = connect(backend)
    await use(database, mode, "first")
    pings = counted_pings(database)
    for number in range(5):
        clock.now += 0.9
        await use(database, mode, f"item-{number}")
    assert pings == []
    clock.now += 1.1
    await within(database, mode, insert("last"))
    assert pings == [1]


async def test_L7_the_engines_of_the_users_own_are_watched_too(
    backend: Backend, mode: Mode, clock: Clock
) -> None:
    make_tables(backend)
    async_engine, sync_engine = create_async_engine(backend.url("async")), create_engine(backend.url("sync"))
    database = Database.from_engines(writer=async_engine, sync_writer=sync_engine)
    await within(database, mode, insert("before"))
    kill_all(backend)
    clock.now += 1.5

    await within(database, mode, insert("after"))

    assert names(backend) == ["before", "after"]
    sync_engine.dispose()
    await async_engine.dispose()


async def test_L7_a_unit_of_another_isolation_asks_once(
    backend: Backend, mode: Mode, connect: Connect, clock: Clock
) -> None:
    """Its engine shares the pool of the writer, and must not be watched twice."""
    make_tables(backend)
    database = connect(backend)
    await within(database, mode, insert("first"), isolation="serializable")
    pings = counted_pings(database)
    clock.now += 1.5
    await within(database, mode, insert("second"), isolation="serializable")
    assert pings == [1]


async def test_L7_a_database_that_stays_away_is_said_to_be_away_and_found_when_it_is_back(
    backend: Backend, mode: Mode, connect: Connect, clock: Clock
) -> None:
    assert isinstance(backend, PostgresBackend)
    make_tables(backend)
    database = connect(backend)
    await use(database, mode, "before")
    allow = f'ALTER DATABASE "{backend.dbname}" ALLOW_CONNECTIONS'
    backend.server.query("postgres", f"{allow} false")
    backend.terminate_all_backends()
    clock.now += 1.5
    away = await request(database, mode, insert("never"))
    backend.server.query("postgres", f"{allow} true")
    await use(database, mode, "after")

    assert (away.status, away.json()["type"]) == (503, "/problems/database-unavailable")
    assert int(away.headers["retry-after"]) > 0
    assert names(backend) == ["before", "after"]


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_L7_a_ping_that_the_network_swallows_is_given_up(
    backend: Backend,
    mode: Mode,
    driver: str,
    connect: Connect,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_tables(backend)
    monkeypatch.setattr(_liveness, "_PATIENCE", 0.1)
    caplog.set_level("INFO", logger="uow")
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        url = make_url(proxy.url_of(backend.database_url)).set(drivername=driver)
        database = connect(url.render_as_string(hide_password=False), pool_size=1, max_overflow=0)
        await use(database, mode, "before")
        clock.now += 1.5
        proxy.stall()
        waiting = elsewhere(request(database, mode, insert("after")))
        await wait_until_async(lambda: "had died" in caplog.text, "the ping is given up")
        proxy.heal()
        assert (await waiting).status == 201

    assert names(backend) == ["before", "after"]


async def test_L7_a_rollback_that_fails_means_that_the_connection_is_lost(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    """In psycopg's pipeline neither the error that came first nor that of the ROLLBACK has a name."""
    make_tables(backend)
    database = connect(backend)
    await use(database, mode, "first")
    monkeypatch = pytest.MonkeyPatch()  # the clock is patched by the fixture's

    def again(session: Session) -> None:
        dialect: Any = session.get_bind().dialect

        def fails(_: Any) -> None:
            raise dialect.loaded_dbapi.InterfaceError("cannot exit pipeline mode while busy")

        monkeypatch.setattr(dialect, "do_rollback", fails)
        session.add(Item(name="first"))
        try:
            session.flush()
        finally:
            monkeypatch.undo()

    answer = await request(database, mode, again)

    assert (answer.status, answer.json()["type"]) == (503, "/problems/connection-lost")
    assert (await request(database, mode, insert("second"))).status == 201


async def test_L7_an_answer_that_comes_as_the_patience_ends_is_none(
    backend: Backend, connect: Connect, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is cut by then, and the next statement would find it so."""
    make_tables(backend)
    monkeypatch.setattr(_liveness, "_PATIENCE", 0.01)
    database = connect(backend, pool_size=1, max_overflow=0)
    await use(database, "sync", "before")
    for engine in database._engines.values():
        ping = engine.dialect.do_ping

        def slow(connection: Any, ping: Any = ping) -> Any:
            answer = ping(connection)
            sleep(0.3)
            return answer

        monkeypatch.setattr(engine.dialect, "do_ping", slow)
    clock.now += 1.5

    await use(database, "sync", "after")

    assert names(backend) == ["before", "after"]


@pytest.mark.backends("sqlite")
async def test_L7_a_file_cannot_die_and_is_never_asked(
    backend: Backend, mode: Mode, connect: Connect, clock: Clock
) -> None:
    make_tables(backend)
    database = connect(backend)
    await use(database, mode, "first")
    pings = counted_pings(database)
    clock.now += 3600.0
    await use(database, mode, "second")
    assert pings == []


def counted_pings(database: Database) -> list[int]:
    """Fills with a 1 for each ping of an engine of this database."""
    pings: list[int] = []

    def count(dialect: Any) -> None:
        ping = dialect.do_ping

        def counted(connection: Any) -> Any:
            pings.append(1)
            return ping(connection)

        dialect.do_ping = counted  # of this engine alone

    for engine in database._engines.values():
        count(engine.dialect)
    return pings
