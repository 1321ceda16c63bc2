"""L8 with a key and a failover: what the promoted standby has is the truth from there on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.proxy import PostgresProxy
from tests.faults.standby import StandbyServer
from tests.support.asgi import Recorder
from tests.support.backends import MODES, Mode, PostgresBackend
from tests.support.postgres import PostgresServer, wheel_binaries
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.keys import REPLAYED, Counted, counting, keyed, make_keys, rows, send
from tests.uow.units import make_tables, wait_for_threads
from uow import Database
from uow.idempotency import _lost
from uow.retry import Retry

MODES_HERE: tuple[Mode, ...] = MODES if "FAULTS" in os.environ else ("async",)


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    binaries = wheel_binaries()
    assert binaries is not None
    server = PostgresServer(binaries, settings={"fsync": "off"})
    server.start()
    yield server
    server.remove()


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[StandbyServer]:
    binaries = wheel_binaries()
    assert binaries is not None
    standby = StandbyServer(binaries, primary, settings={"fsync": "off"})
    yield standby
    standby.remove()


@pytest.mark.parametrize("mode", MODES_HERE)
@pytest.mark.parametrize("retry", [None, Retry(first_pause=0)], ids=["once", "retry"])
@pytest.mark.parametrize("arrived", [True, False], ids=["arrived", "lost"])
async def test_L8_a_key_tells_the_truth_after_a_failover(
    primary: PostgresServer,
    standby: StandbyServer,
    tmp_path: Path,
    mode: Mode,
    retry: Retry | None,
    arrived: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the standby never had is lost, and may be done again; what it has is answered as it was."""
    monkeypatch.setattr(_lost, "_SECONDS", 4 * LIMIT)
    backend = PostgresBackend("pg18", primary, tmp_path)
    make_tables(backend)
    make_keys(backend)
    with PostgresProxy(primary.port) as proxy:
        database = Database(proxy.url_of(backend.database_url))
        app = keyed(counting(mode, work := Counted()), database, unit={"retry": retry})
        assert (await send(app, "before")).status == 201
        await asyncio.to_thread(follow, standby, for_good=arrived)
        hit = proxy.hit
        proxy.cut("commit_sent", everywhere=True)
        asked = asyncio.ensure_future(send(app))
        await wait_until_async(lambda: proxy.hit > hit, "the answer to a COMMIT is lost")
        await wait_until_async(lambda: len(rows(backend)) == 2, "the primary has committed it")
        if arrived:
            await asyncio.to_thread(standby.wait_until_level)
        await asyncio.to_thread(fail_over, primary, standby, proxy)
        assert not asked.done()
        proxy.heal()

        answer, again = await asked, await send(app)

        found = standby.query(backend.dbname, "SELECT name FROM items ORDER BY id")
        await database.dispose()
        proxy.cut()
    await wait_for_threads()
    assert_true(answer, again, arrived=arrived, replays=retry is not None)
    assert work.runs == 2 + (not arrived)
    assert found == [("run-1",), ("run-2",) if arrived else ("run-3",)]


def follow(standby: StandbyServer, *, for_good: bool) -> None:
    """Copy the primary, and hear of what it does from here on, or not."""
    standby.start()
    standby.wait_until_level()
    if not for_good:
        standby.leave()


def fail_over(primary: PostgresServer, standby: StandbyServer, proxy: PostgresProxy) -> None:
    primary.stop(immediate=True)
    standby.promote()
    proxy.leads_to(standby.port)


def assert_true(answer: Recorder, again: Recorder, *, arrived: bool, replays: bool) -> None:
    if not arrived and not replays:
        assert (answer.status, answer.json()["outcome"]) == (503, "rolled_back")
        assert (again.status, again.json(), REPLAYED in again.headers) == (201, {"run": 3}, False)
    else:
        assert (answer.status, answer.json()) == (201, {"run": 2 if arrived else 3})
        assert (again.body, again.headers[REPLAYED]) == (answer.body, "true")
