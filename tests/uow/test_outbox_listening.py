"""PostgreSQL tells a relay of an event at once, on a connection of its own that may be lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.backends import PostgresBackend
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell_all, until
from uow.outbox import _listen as listening

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
