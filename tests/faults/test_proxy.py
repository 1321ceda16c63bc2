"""The network that fails on demand: each of its faults as a plain connection of a driver meets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import psycopg
import pytest

from tests.faults.proxy import At, PostgresProxy
from tests.support.backends import PostgresBackend
from tests.support.processes import free_port
from tests.support.wait import LIMIT, wait_until, wait_until_async

CLOSED = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, psycopg.OperationalError, OSError)


@dataclass
class Client:
    """A plain connection that inserts a row in a transaction and commits, in one of several ways."""

    execute: Callable[[str], Awaitable[object]]
    commit: Callable[[], Awaitable[object]]

    async def insert(self) -> None:
        await self.execute("BEGIN")
        await self.execute("INSERT INTO rows VALUES (1)")


@asynccontextmanager
async def connected(way: str, url: str) -> AsyncIterator[Client]:
    driver, form = way.split()
    if driver == "asyncpg":
        plain = await asyncpg.connect(url, timeout=LIMIT)

        async def commit_prepared() -> None:
            await (await plain.prepare("COMMIT")).fetch()

        yield Client(
            plain.execute, commit_prepared if form == "prepared" else lambda: plain.execute("COMMIT")
        )
        plain.terminate()
    else:
        # In autocommit BEGIN and COMMIT are statements like others.
        one = await psycopg.AsyncConnection.connect(url, autocommit=True)
        prepare = form == "prepared"
        yield Client(
            lambda sql: one.execute(sql.encode()), lambda: one.execute(b" commit", prepare=prepare or None)
        )
        await one.close()


WAYS = ["asyncpg simple", "asyncpg prepared", "psycopg simple", "psycopg prepared"]
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def proxy(postgres: PostgresBackend) -> Iterator[PostgresProxy]:
    postgres.execute("CREATE TABLE rows (n INTEGER)")
    with PostgresProxy(postgres.server.port) as made:
        yield made


@pytest.fixture
def url(proxy: PostgresProxy, postgres: PostgresBackend) -> str:
    return proxy.url_of(postgres.server.url(postgres.dbname))


@every_way
async def test_it_passes_everything_on_and_knows_a_commit(
    proxy: PostgresProxy, postgres: PostgresBackend, url: str, way: str
) -> None:
    async with connected(way, url) as client:
        await client.execute("COMMENT ON TABLE rows IS 'a COMMIT; and more'")
        await client.insert()
        assert (proxy.commits, postgres.count("rows")) == (0, 0)
        await client.commit()
        assert (proxy.commits, postgres.count("rows")) == (1, 1)
        assert (proxy.hit, proxy.held) == (0, 0)


@every_way
@pytest.mark.parametrize(("at", "kept"), [("before_commit", 0), ("commit_sent", 1), ("commit_done", 1)])
async def test_a_cut_at_a_commit_is_the_same_to_the_client_wherever_it_is(
    proxy: PostgresProxy, postgres: PostgresBackend, url: str, way: str, at: At, kept: int
) -> None:
    async with connected(way, url) as other, connected(way, url) as client:
        proxy.cut(at)
        await client.insert()
        with pytest.raises(CLOSED):
            await client.commit()
        await other.execute("SELECT 1")  # it was cut alone
    assert (proxy.commits, proxy.hit) == (1, 1)
    if at == "commit_done":
        assert postgres.count("rows") == 1
    wait_until(lambda: postgres.connections() == 0, "the server has noticed")
    assert postgres.count("rows") == kept


@every_way
@pytest.mark.parametrize(("at", "kept"), [("before_commit", 0), ("commit_sent", 1), ("commit_done", 1)])
async def test_a_stall_at_a_commit_ends_when_the_network_heals(
    proxy: PostgresProxy, postgres: PostgresBackend, url: str, way: str, at: At, kept: int
) -> None:
    async with connected(way, url) as client:
        proxy.stall(at)
        await client.insert()
        commit = asyncio.ensure_future(client.commit())
        await wait_until_async(lambda: proxy.hit == 1 and proxy.held == 1, "it stands at its COMMIT")
        # What stands may be the client's next message, while the server is still at the one before.
        await wait_until_async(lambda: postgres.count("rows") == kept, "the server has done what it was sent")
        assert postgres.write_lock_free() is bool(kept)
        assert not commit.done()
        proxy.heal()
        await commit
        assert postgres.count("rows") == 1
        await client.execute("SELECT 1")
    assert proxy.held == 0


async def test_a_server_that_goes_away_at_a_commit_takes_every_connection_and_refuses_new_ones(
    proxy: PostgresProxy, postgres: PostgresBackend, url: str
) -> None:
    way = WAYS[0]
    async with connected(way, url) as other, connected(way, url) as client:
        proxy.cut("commit_done", everywhere=True)
        await other.execute("SELECT 1")
        await client.insert()
        with pytest.raises(CLOSED):
            await client.commit()
        with pytest.raises(CLOSED):
            await other.execute("SELECT 1")
        for each in WAYS:
            with pytest.raises(CLOSED):
                await connected(each, url).__aenter__()
    assert (proxy.hit, postgres.count("rows")) == (2, 1)
    proxy.heal()
    async with connected(way, url) as client:
        await client.insert()
        await client.commit()
    assert postgres.count("rows") == 2


async def test_a_stall_is_for_all_connections_and_for_new_ones(
    proxy: PostgresProxy, postgres: PostgresBackend, url: str
) -> None:
    async with connected(WAYS[0], url) as one, connected(WAYS[2], url) as two:
        proxy.stall()
        work = [asyncio.ensure_future(each.execute("INSERT INTO rows VALUES (1)")) for each in (one, two)]
        new = asyncio.ensure_future(asyncpg.connect(url, timeout=LIMIT))
        await wait_until_async(lambda: proxy.held == 3, "all of them wait")
        assert (proxy.hit, postgres.count("rows")) == (2, 0)
        assert not any(task.done() for task in (*work, new))
        proxy.heal()
        await asyncio.gather(*work)
        assert postgres.count("rows") == 2
        (await new).terminate()


async def test_a_cut_at_once_is_for_those_that_are_there(
    proxy: PostgresProxy, postgres: PostgresBackend, url: str
) -> None:
    async with connected(WAYS[0], url) as one, connected(WAYS[2], url) as two:
        await one.insert()
        proxy.cut()
        for each in (one, two):
            with pytest.raises(CLOSED):
                await each.execute("SELECT 1")
        async with connected(WAYS[1], url) as client:
            await client.insert()
            await client.commit()
    assert proxy.hit == 2
    wait_until(lambda: postgres.connections() == 0, "the server has noticed")
    assert postgres.count("rows") == 1


def test_a_driver_that_blocks_its_thread_is_served_as_well(
    proxy: PostgresProxy, postgres: PostgresBackend, url: str
) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(b"INSERT INTO rows VALUES (1)")
        connection.commit()
        connection.execute(b"INSERT INTO rows VALUES (2)")
        proxy.cut("commit_sent")
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    assert proxy.commits == 2
    wait_until(lambda: postgres.count("rows") == 2, "what was sent is kept")


def test_a_commit_that_is_refused_is_answered_as_well(
    proxy: PostgresProxy, postgres: PostgresBackend, url: str
) -> None:
    postgres.execute("ALTER TABLE rows ADD CONSTRAINT once UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    with psycopg.connect(url) as connection:
        connection.execute(b"INSERT INTO rows VALUES (1), (1)")
        proxy.cut("commit_done")
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    assert (proxy.hit, postgres.count("rows")) == (1, 0)


def test_nobody_behind_it_is_a_connection_that_closes() -> None:
    with PostgresProxy(free_port()) as proxy, pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.url_of("postgresql://postgres@127.0.0.1/postgres"))
