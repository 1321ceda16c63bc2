"""Keys that have expired: they count as if they were not there, and are removed a few at a time."""

from __future__ import annotations

import asyncio
import logging

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from tests.uow.conftest import Connect
from tests.uow.keys import REPLAYED, Counted, both, counting, keyed, make_keys, one, rows, send
from tests.uow.units import Told, in_thread, make_tables, names
from uow import Database
from uow.idempotency import _row, sweep, sweep_sync, sweeping


@pytest.fixture(autouse=True)
def _keys(backend: Backend) -> None:
    make_keys(backend)


def expire(backend: Backend) -> None:
    backend.execute("UPDATE idempotency_keys SET expires_at = 1")


def fill(backend: Backend, expired: int, living: int) -> None:
    insert = (
        "INSERT INTO idempotency_keys (principal, key, token, request, fingerprint, status, headers, body, "
        "expires_at) VALUES ('', 'k{}', 't', '', '', 201, '[]', '', {})"
    )
    for number in range(expired + living):
        backend.execute(insert.format(number, 1 if number < expired else 2**40))


async def test_an_expired_key_is_a_new_one(backend: Backend, mode: Mode, database: Database) -> None:
    work = Counted()
    app = keyed(counting(mode, work), database)
    await send(app, body=b"one")
    expire(backend)

    answers = [await send(app, body=b"two") for _ in range(2)]

    assert [(each.status, each.json(), REPLAYED in each.headers) for each in answers] == [
        (201, {"run": 2}, False),
        (201, {"run": 2}, True),
    ]
    assert rows(backend) == [("", "k-1", 201)]


@both
async def test_an_expired_key_that_fails_now_stays_as_it_was(
    backend: Backend, mode: Mode, database: Database
) -> None:
    work = Counted()
    app = keyed(counting(mode, work), database)
    await send(app)
    expire(backend)
    work.status = 500

    assert (await send(app)).status == 500
    assert backend.query("SELECT expires_at, status FROM idempotency_keys") == [(1, 201)]


@both
async def test_of_many_that_take_over_one_expired_key_one_does(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    work = Counted()
    apps = [keyed(counting(mode, work), connect(backend)) for _ in range(3)]
    await send(apps[0])
    for run in range(2, 5):
        expire(backend)
        answers = await asyncio.gather(*(send(apps[n % 3]) for n in range(12)))
        assert {(each.status, each.json()["run"]) for each in answers} == {(201, run)}
        assert sum(REPLAYED not in each.headers for each in answers) == 1
    assert names(backend) == [f"run-{run}" for run in range(1, 5)]


@both
async def test_a_sweep_removes_what_has_expired_in_small_units(backend: Backend, connect: Connect) -> None:
    fill(backend, expired=25, living=3)
    database = connect(backend, observer=(told := Told()))

    assert await sweep(database, batch=10) == 25
    assert len(rows(backend)) == 3
    assert [name for name, _ in told.outcomes] == ["sweep of idempotency keys"] * 3
    assert await sweep(database) == 0


@both
async def test_a_sweep_through_the_sync_driver_does_the_same(backend: Backend, connect: Connect) -> None:
    fill(backend, expired=25, living=3)
    assert await in_thread(sweep_sync, connect(backend), batch=10) == 25
    assert len(rows(backend)) == 3


@pytest.mark.backends("pg18")
async def test_a_sweep_leaves_alone_what_is_taken_over_at_this_moment(
    backend: Backend, connect: Connect
) -> None:
    fill(backend, expired=3, living=0)
    database = connect(backend)
    engine = connect(backend)._engine("writer", True)
    assert isinstance(engine, AsyncEngine)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE idempotency_keys SET expires_at = 2^40 WHERE key = 'k1'"))
        assert await sweep(database) == 2
    assert [row[1] for row in rows(backend)] == ["k1"]


@both
async def test_a_server_sweeps_while_it_runs(
    backend: Backend, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    fill(backend, expired=5, living=1)
    with caplog.at_level(logging.INFO, "uow"):
        async with sweeping(connect(backend), every=0.01):
            told = "sweep of idempotency keys: 5 removed"
            await wait_until_async(lambda: told in caplog.text, "the expired ones are gone")
    assert len(rows(backend)) == 1
    backend.wait_until_at_rest()


@both
async def test_a_sweep_that_fails_is_tried_again(
    backend: Backend, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    backend.execute("DROP TABLE idempotency_keys")
    async with sweeping(connect(backend), every=0.01):
        await wait_until_async(lambda: "sweep of idempotency keys failed" in caplog.text, "it has failed")
        make_keys(backend)
        fill(backend, expired=1, living=1)
        await wait_until_async(lambda: len(rows(backend)) == 1, "the next one does its work")


@one
async def test_no_sweep_is_never(backend: Backend, connect: Connect) -> None:
    before = asyncio.all_tasks()
    async with sweeping(connect(backend), every=0):
        assert asyncio.all_tasks() == before


@both
async def test_work_that_takes_longer_than_its_ttl_is_done_once(
    backend: Backend, mode: Mode, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(_row, "time", lambda: now[0])
    work = Counted(work=lambda _: now.__setitem__(0, now[0] + 61))
    app = keyed(counting(mode, work), database, ttl=60)

    first, repeat = [await send(app) for _ in range(2)]

    assert (first.body, repeat.body, repeat.headers[REPLAYED]) == (b'{"run":1}', b'{"run":1}', "true")
    now[0] += 60
    assert (await send(app)).body == b'{"run":2}'
