"""PostgreSQL tells a relay of an event at once, on a connection of its own that may be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import asyncpg
import pytest

from tests.faults.proxy import PostgresProxy
from tests.support.backends import Backend, PostgresBackend
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell_all, until
from uow.outbox import _listen as listening
from uow.outbox import _publish
from uow.outbox import _relay as relaying
from uow.outbox._table import CHANNEL

pytestmark = pytest.mark.anyio


@pytest.mark.backends("pg18", "pgsystem")
async def test_a_relay_hears_of_an_event_at_once(postgres: PostgresBackend, connect: Connect) -> None:
    make_outbox_table(postgres)
    database = connect(postgres)
    received = Received()
    async with relay_of(outbox_of(database, received), poll=3600.0):
        await until(lambda: listeners(postgres) == 1, "it to listen")
        for number in range(3):
            await tell_all(database, (str(number), 1))
            await until(lambda number=number: len(received.events) == number + 1, "it to arrive")  # type: ignore[misc]  # a default binds the loop's variable
    await until(lambda: listeners(postgres) == 0, "nobody to listen any more")


@pytest.mark.backends("pg18", "pgsystem")
async def test_units_that_follow_each_other_tell_of_it_once(
    postgres: PostgresBackend, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NOTIFY in each unit would make the COMMITs of the whole cluster wait for each other."""
    now = [100.0]
    monkeypatch.setattr(_publish, "monotonic", lambda: now[0])
    make_outbox_table(postgres)
    database = connect(postgres)
    outbox_of(database, Received())
    told: list[None] = []
    listener = asyncio.create_task(listening.listen(database, lambda: told.append(None)))
    await until(lambda: len(told) == 1, "it to listen")
    for seconds in (0.0, 0.01, 0.03, 0.02, 0.04):
        now[0] += seconds
        await tell_all(database, (f"after {seconds}", 1))
    postgres.execute(f"NOTIFY {CHANNEL}")  # it comes after those of the units
    await until(lambda: len(told) >= 4, "all to be heard")
    listener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listener
    assert len(told) == 4


@pytest.mark.backends("sqlite")
async def test_a_relay_that_was_woken_up_looks_again_and_again_but_ever_less_often(
    backend: Backend, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For units that publish just after one that has told of it, however long their COMMIT takes."""
    pauses: list[float | None] = []
    wait_for = asyncio.wait_for

    async def noted(what: Awaitable[object], timeout: float | None) -> object:
        pauses.append(timeout)
        return await wait_for(what, timeout)

    monkeypatch.setattr(asyncio, "wait_for", noted)
    monkeypatch.setattr(relaying, "_AFTERWARDS", 0.001)
    make_outbox_table(backend)
    async with relay_of(outbox_of(connect(backend), Received()), poll=3600.0) as relay:
        await until(lambda: pauses == [3600.0], "it to wait")
        relay.wake()
        await until(lambda: len(pauses) >= 5, "it to wait again")
    assert pauses[:5] == [3600.0, 0.001, 0.002, 0.004, 0.008]


@pytest.mark.backends("pg18")
async def test_nobody_listens_through_a_pooler(
    postgres: PostgresBackend,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pooler invents the number of the process that it tells; what is sent still leaves."""
    monkeypatch.setattr(asyncpg.Connection, "get_server_pid", lambda _: 1)
    make_outbox_table(postgres)
    database = connect(postgres)
    received = Received()
    async with relay_of(outbox_of(database, received)):
        await until(lambda: "cannot listen through a pooler" in caplog.text, "it to be said")
        await tell_all(database, ("a", 1))
        await until(lambda: received.words == ["a"], "it to arrive")
        assert listeners(postgres) == 0
    assert caplog.text.count("cannot listen through a pooler") == 1


@pytest.mark.backends("pg18", "pgsystem")
async def test_a_relay_whose_connection_is_cut_hears_again(
    postgres: PostgresBackend, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_LOOK", 0.1)
    monkeypatch.setattr(listening, "_PAUSE", 0.1)
    make_outbox_table(postgres)
    database = connect(postgres)
    received = Received()
    async with relay_of(outbox_of(database, received), poll=3600.0):
        await until(lambda: listeners(postgres) == 1, "it to listen")
        postgres.terminate_all_backends()
        await until(lambda: listeners(postgres) == 1, "it to listen again")
        await tell_all(database, ("a", 1))
        await until(lambda: received.words == ["a"], "it to arrive")


@pytest.mark.backends("pg18")
async def test_behind_a_pooler_it_looks_from_time_to_time(
    postgres: PostgresBackend, connect: Connect
) -> None:
    make_outbox_table(postgres)
    database = connect(postgres)
    received = Received()
    async with relay_of(outbox_of(database, received), listens=False):
        await tell_all(database, ("a", 1))
        await until(lambda: received.words == ["a"], "it to arrive")
        assert listeners(postgres) == 0


@pytest.mark.backends("pg18", "pgsystem")
async def test_what_is_no_error_of_the_database_is_not_taken_for_one(
    postgres: PostgresBackend, connect: Connect
) -> None:
    def told() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await listening.listen(connect(postgres), told)
    await until(lambda: listeners(postgres) == 0, "the connection to be closed")


@pytest.mark.backends("pg18", "pgsystem")
async def test_who_is_stopped_while_it_connects_leaves_no_connection(
    postgres: PostgresBackend, connect: Connect
) -> None:
    told: list[None] = []
    listener = asyncio.create_task(listening.listen(connect(postgres), lambda: told.append(None)))
    await asyncio.sleep(0)  # it begins
    await asyncio.sleep(0)  # and so does the attempt to connect
    listener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listener
    assert not told
    postgres.wait_until_at_rest()


@pytest.mark.backends("pg18", "pgsystem")
async def test_who_is_stopped_while_nobody_answers_does_not_wait_and_leaves_no_connection(
    postgres: PostgresBackend, connect: Connect
) -> None:
    """The driver would wait for a minute; what it is given after all, it closes."""
    with PostgresProxy(postgres.server.port) as proxy:
        proxy.stall()
        database = connect(proxy.url_of(postgres.url("async")))
        relay = relay_of(outbox_of(database, Received()))
        running = asyncio.create_task(relay.run())
        await until(lambda: len(proxy._links) >= 2, "the line and the listener to connect")
        relay.stop()
        relay.stop()  # whoever is impatient changes nothing
        await asyncio.wait_for(running, LIMIT)
        (left,) = listening._left
        assert not left.done()
        proxy.heal()
        await asyncio.wait_for(left, LIMIT)
    assert not listening._left
    await until(lambda: postgres.connections() == 0, "the connection to be closed")


@pytest.mark.backends("pg18", "pgsystem")
async def test_an_attempt_that_was_left_behind_and_fails_is_nobodys_error(
    postgres: PostgresBackend, connect: Connect
) -> None:
    with PostgresProxy(postgres.server.port) as proxy:
        proxy.stall()
        database = connect(proxy.url_of(postgres.url("async")))
        listener = asyncio.create_task(listening.listen(database, lambda: None))
        await until(lambda: proxy._links, "it to connect")
        listener.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(listener, LIMIT)
        (left,) = listening._left
        proxy.cut()
        await asyncio.wait_for(left, LIMIT)
    assert not listening._left


async def test_where_nobody_answers_it_tries_again(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listening, "_PAUSE", 0.01)
    caplog.set_level("INFO", logger="uow")
    database = connect("postgresql://postgres@127.0.0.1:1/nowhere")
    listener = asyncio.create_task(listening.listen(database, lambda: None))
    await until(lambda: caplog.text.count("cannot listen") > 1, "a second attempt")
    listener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listener


class Silent:
    """A connection on which nothing comes, and which has died meanwhile; it may be of either driver."""

    async def add_listener(self, channel: str, told: object) -> None:
        pass

    async def notifies(self, timeout: float) -> AsyncIterator[None]:
        nothing: list[None] = []
        for each in nothing:
            yield each

    async def execute(self, statement: str) -> None:
        raise ConnectionResetError(statement)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_silent_connection_is_asked_whether_it_lives(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, a relay behind a network that forgets would hear nothing any more, and not know."""
    monkeypatch.setattr(listening, "_LOOK", 0.0)
    with pytest.raises(ConnectionResetError, match="SELECT 1"):
        await getattr(listening, f"_with_{driver}")(Silent(), lambda: None)


def listeners(postgres: PostgresBackend) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    found = int(postgres.query(sql)[0][0])
    looked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT 1'"
    return found + int(postgres.query(looked)[0][0])
