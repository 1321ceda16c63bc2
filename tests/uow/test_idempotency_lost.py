"""L8 with a key: what became of a COMMIT whose answer was lost is read from the row of the key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.faults.proxy import At, PostgresProxy
from tests.support.backends import Backend, Mode
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.keys import REPLAYED, Counted, counting, keyed, make_keys, rows, send
from tests.uow.units import insert, make_tables, names, within
from uow import Database
from uow.idempotency import _lost
from uow.idempotency._lost import Lost
from uow.outcome import TrueOutcome
from uow.retry import Retry

pytestmark = pytest.mark.backends("pg18", "pgsystem")


@pytest.fixture
def proxy(backend: Backend) -> Iterator[PostgresProxy]:
    make_tables(backend)
    make_keys(backend)
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        yield proxy


@pytest.fixture
async def linked(backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy) -> Database:
    """A database behind the proxy, with a connection that is there already."""
    database = connect(proxy.url_of(backend.database_url))
    await within(database, mode, insert("first"))
    return database


@pytest.mark.parametrize(
    ("at", "status", "kept"),
    [("before_commit", 503, False), ("commit_sent", 201, True), ("commit_done", 201, True)],
)
async def test_L8_the_client_hears_what_really_happened_and_so_does_its_repeat(
    backend: Backend, mode: Mode, linked: Database, proxy: PostgresProxy, at: At, status: int, kept: bool
) -> None:
    work = Counted()
    app = keyed(counting(mode, work), linked)
    proxy.cut(at)

    answer = await send(app)

    assert answer.status == status
    proxy.heal()
    assert names(backend) == ["first", "run-1"][: 1 + kept]
    assert rows(backend) == [("", "k-1", 201)][:kept], "who asks leaves nothing behind"
    again = await send(app)
    assert (again.status, again.json(), REPLAYED in again.headers) == (201, {"run": 2 - kept}, kept)
    assert len(names(backend)) == 2
    backend.wait_until_at_rest()


@pytest.mark.parametrize(("at", "runs"), [("before_commit", 2), ("commit_sent", 1)])
async def test_L8_what_was_undone_is_run_again_and_what_was_kept_is_not(
    backend: Backend, mode: Mode, linked: Database, proxy: PostgresProxy, at: At, runs: int
) -> None:
    work = Counted(work=lambda _: proxy.heal() if work.runs > 1 else None)
    app = keyed(counting(mode, work), linked, unit={"retry": Retry(first_pause=0)})
    proxy.cut(at)

    answer = await send(app)

    assert (answer.status, answer.json()) == (201, {"run": runs})
    assert names(backend) == ["first", f"run-{runs}"]


async def test_L8_a_key_goes_before_an_outcome_and_costs_no_trip(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identify(self: TrueOutcome, connection: Connection) -> Any:
        raise AssertionError("nothing has to be asked before COMMIT")

    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome())
    await within(database, mode, insert("first"))
    monkeypatch.setattr(TrueOutcome, "identify", identify)
    proxy.cut("commit_sent")

    assert (await send(keyed(counting(mode, Counted()), database))).status == 201
    assert rows(backend) == [("", "k-1", 201)]


async def test_L8_a_commit_that_is_not_answered_in_time_is_asked_about(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy
) -> None:
    database = connect(proxy.url_of(backend.database_url))
    await within(database, mode, insert("first"))
    database.settle_timeout = 1.0
    proxy.stall("commit_done")

    answer = await send(keyed(counting(mode, Counted()), database))
    proxy.heal()

    assert answer.status == 201
    assert names(backend) == ["first", "run-1"]


async def test_L8_a_server_that_comes_back_is_asked_then(
    backend: Backend,
    mode: Mode,
    linked: Database,
    proxy: PostgresProxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_lost, "_SECONDS", 30.0)
    proxy.cut("commit_sent", everywhere=True)

    with caplog.at_level(logging.INFO, "uow"):
        asked = asyncio.ensure_future(send(keyed(counting(mode, Counted()), linked)))
        await wait_until_async(lambda: "cannot be asked for now" in caplog.text, "it was asked in vain")
        assert not asked.done()
        proxy.heal()

    assert (await asked).status == 201


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_L8_what_cannot_be_learnt_in_time_is_not_guessed_and_the_repeat_knows(
    backend: Backend,
    mode: Mode,
    connect: Connect,
    proxy: PostgresProxy,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_lost, "_SECONDS", 0.3)
    database = connect(proxy.url_of(backend.database_url))
    await within(database, mode, insert("first"))
    database.settle_timeout = 1.0
    getattr(proxy, how)("commit_sent", everywhere=True)
    app = keyed(counting(mode, Counted()), database)

    answer = await send(app)

    assert (answer.status, answer.json()["type"]) == (500, "/problems/commit-outcome-unknown")
    proxy.heal()
    await wait_until_async(backend.write_lock_free, "the server has done what it was told")
    database.settle_timeout = LIMIT
    again = await send(app)
    assert (again.status, len(names(backend))) == (201, 2)
    backend.wait_until_at_rest()


class Asked:
    """A table of keys with one row in it, and who asks about it, in either mode."""

    def __init__(self, backend: Backend, mode: Mode, connect: Connect) -> None:
        self._backend = backend
        self._mode = mode
        self._database = connect(backend)

    async def __call__(self, token: str) -> bool | None:
        lost = Lost({"principal": "", "key": "k-1", "token": token})
        engine = self._database._engine("writer", self._mode == "async")
        lost.identify(_NO_CONNECTION)  # asks nothing
        if isinstance(engine, AsyncEngine):
            return await lost.ask(engine, None)
        assert isinstance(engine, Engine)
        return await asyncio.to_thread(lost.ask_sync, engine, None)


_NO_CONNECTION: Any = None
_WRITE = (
    "INSERT INTO idempotency_keys (principal, key, token, request, fingerprint, status, headers, body, "
    "expires_at) VALUES ('', 'k-1', '{token}', '', '', 201, '[]', '', 0) ON CONFLICT (principal, key) DO "
    "UPDATE SET token = excluded.token"
)


@pytest.mark.parametrize("before", [None, "older", "mine"])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_L8_a_commit_that_is_still_on_its_way_is_waited_for(
    backend: Backend, mode: Mode, connect: Connect, before: str | None, end: str
) -> None:
    """Also where it takes over a row that has expired: the one that is there says nothing yet."""
    make_keys(backend)
    if before is not None:
        backend.execute(_WRITE.format(token=before))
    asked = Asked(backend, mode, connect)
    other = connect(backend)
    engine = other._engine("writer", True)
    assert isinstance(engine, AsyncEngine)
    async with engine.connect() as connection:
        await connection.exec_driver_sql(_WRITE.format(token="mine"))
        answer = asyncio.ensure_future(asked("mine"))
        if before != "mine":
            await wait_until_async(lambda: _waiting(backend), "it waits for the row")
            assert not answer.done()
        await (connection.commit() if end == "COMMIT" else connection.rollback())

    assert await answer is (end == "COMMIT" or before == "mine")
    assert [row[0] for row in backend.query("SELECT token FROM idempotency_keys")] == (
        ["mine"] if end == "COMMIT" or before == "mine" else [before] if before else []
    )


def _waiting(backend: Backend) -> bool:
    waits = "wait_event_type = 'Lock' AND datname = current_database()"
    return bool(backend.query(f"SELECT 1 FROM pg_stat_activity WHERE {waits}"))
