"""L8: a COMMIT whose answer was lost; the database says what became of it, and the client hears that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
from sqlalchemy import Connection, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from tests.faults.proxy import At, PostgresProxy
from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from tests.uow.conftest import Connect
from tests.uow.units import app_of, count, endpoint, insert, make_tables, names, request, run, within
from uow import Database, UnitOfWork, current_unit, errors, on_commit
from uow.outcome import TransactionId, TrueOutcome
from uow.retry import Retry

pytestmark = pytest.mark.backends("pg18", "pgsystem")


@pytest.fixture
def proxy(backend: Backend) -> Iterator[PostgresProxy]:
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("at", "status", "kept"),
    [("before_commit", 503, False), ("commit_sent", 201, True), ("commit_done", 201, True)],
)
async def test_L8_the_client_hears_what_really_happened(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy, at: At, status: int, kept: bool
) -> None:
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome())
    await within(database, mode, insert("first"))
    proxy.cut(at)

    recorder = await request(database, mode, insert("second"))

    assert recorder.status == status
    proxy.heal()
    assert names(backend) == ["first", "second"][: 1 + kept]
    assert (await request(database, mode, insert("third"))).status == 201
    backend.wait_until_at_rest()


@pytest.mark.parametrize(("at", "attempts"), [("before_commit", 2), ("commit_sent", 1)])
async def test_L8_what_was_undone_is_run_again_and_what_was_kept_is_not(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy, at: At, attempts: int
) -> None:
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome())
    await within(database, mode, insert("first"))
    tried: list[str] = []

    def work(session: Session) -> None:
        if tried:
            proxy.heal()
        tried.append("once")
        insert("second")(session)
        on_commit(lambda: tried.append("committed"))

    proxy.cut(at)
    app = app_of(endpoint(mode, work), database, retry=Retry(first_pause=0))
    recorder = await run_asgi(app, "POST", "/work")

    assert recorder.status == 201
    assert tried == ["once"] * attempts + ["committed"]
    assert names(backend) == ["first", "second"]


async def test_L8_without_somebody_to_ask_nothing_is_guessed_and_nothing_is_done_twice(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy
) -> None:
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url))
    await within(database, mode, insert("first"))
    proxy.cut("commit_sent")

    app = app_of(endpoint(mode, insert("second")), database, retry=Retry())
    recorder = await run_asgi(app, "POST", "/work")

    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/commit-outcome-unknown")
    assert recorder.json()["outcome"] == "unknown"
    await wait_until_async(lambda: names(backend) == ["first", "second"], "the COMMIT has arrived")


async def test_L8_a_server_that_comes_back_is_asked_then(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy, caplog: pytest.LogCaptureFixture
) -> None:
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome(seconds=30))
    await within(database, mode, insert("first"))
    proxy.cut("commit_sent", everywhere=True)

    with caplog.at_level(logging.INFO, "uow"):
        asked = asyncio.ensure_future(request(database, mode, insert("second")))
        await wait_until_async(lambda: "cannot be asked for now" in caplog.text, "it was asked in vain")
        assert not asked.done()
        proxy.heal()

    assert (await asked).status == 201
    assert names(backend) == ["first", "second"]


async def test_L8_what_cannot_be_learnt_in_time_is_not_guessed(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy
) -> None:
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome(seconds=0.2))
    await within(database, mode, insert("first"))
    proxy.cut("commit_sent", everywhere=True)

    recorder = await request(database, mode, insert("second"))

    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/commit-outcome-unknown")
    assert recorder.json()["outcome"] == "unknown"


async def test_L8_a_network_that_swallows_everything_is_not_waited_for(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy
) -> None:
    """The new connection of who asks hangs like the old one; the answer comes before the network is back."""
    make_tables(backend)
    database = connect(
        proxy.url_of(backend.database_url), outcome=TrueOutcome(seconds=0.5), settle_timeout=0.5
    )
    await within(database, mode, insert("first"))
    proxy.stall("commit_sent", everywhere=True)

    recorder = await request(database, mode, insert("second"))

    assert recorder.json()["type"] == "/problems/commit-outcome-unknown"
    proxy.heal()
    backend.wait_until_at_rest()


async def test_L8_on_another_timeline_the_same_number_says_nothing(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover, where a lost transaction's number was given to another one."""
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome())
    await within(database, mode, insert("first"))
    identify = TrueOutcome.identify

    def before_the_failover(self: TrueOutcome, connection: Connection) -> TransactionId | None:
        found = identify(self, connection)
        return None if found is None else replace(found, timeline="00000000")

    monkeypatch.setattr(TrueOutcome, "identify", before_the_failover)
    proxy.cut("commit_sent")

    recorder = await request(database, mode, insert("second"))

    assert recorder.json()["type"] == "/problems/commit-outcome-unknown"


async def test_L8_a_commit_that_is_not_answered_in_time_is_asked_about(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy
) -> None:
    """The bound of L13 is over, and the connection still stands: it is stalled."""
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome(), settle_timeout=1.0)
    await within(database, mode, insert("first"))
    proxy.stall("commit_done")

    recorder = await request(database, mode, insert("second"))
    proxy.heal()

    assert recorder.status == 201
    assert names(backend) == ["first", "second"]


@pytest.mark.parametrize("sql", ["SELECT 1", "SELECT pg_notify('news', 'once')"])
async def test_L8_of_a_transaction_without_a_number_nothing_is_said(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy, sql: str
) -> None:
    """It may have told somebody something, or have written through a foreign table."""
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome())
    await within(database, mode, insert("first"))
    proxy.cut("commit_sent")

    app = app_of(endpoint(mode, run(sql)), database, retry=Retry(first_pause=0))
    recorder = await run_asgi(app, "POST", "/work")

    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/commit-outcome-unknown")


async def test_L8_what_a_listener_writes_just_before_commit_is_known(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy
) -> None:
    """An outbox, say, which is the only writer of a unit."""
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome())
    await within(database, mode, insert("first"))
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(1)
        event.listen(session, "before_commit", insert(f"attempt-{len(attempts)}"))
        count(session)

    proxy.cut("commit_sent")
    app = app_of(endpoint(mode, work), database, retry=Retry(first_pause=0))
    recorder = await run_asgi(app, "POST", "/work")

    assert (recorder.status, attempts) == (201, [1])
    assert names(backend) == ["first", "attempt-1"]


@pytest.mark.parametrize(("at", "outcome"), [("before_commit", "rolled_back"), ("commit_sent", "committed")])
async def test_L8_a_block_hears_it_too(
    backend: Backend, mode: Mode, connect: Connect, proxy: PostgresProxy, at: At, outcome: str
) -> None:
    make_tables(backend)
    database = connect(proxy.url_of(backend.database_url), outcome=TrueOutcome())
    await within(database, mode, insert("first"))
    proxy.cut(at)
    units: list[UnitOfWork] = []

    def work(session: Session) -> None:
        units.append(current_unit())
        insert("second")(session)

    with pytest.raises(errors.UnitOfWorkDoomed) if outcome == "rolled_back" else nullcontext():
        await within(database, mode, work)

    assert units[0].outcome == outcome
    assert names(backend) == ["first", "second"][: 1 + (outcome == "committed")]


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="seconds=0 is no number of seconds above 0"):
        TrueOutcome(seconds=0)


@pytest.mark.backends("sqlite")
async def test_where_no_link_can_break_nothing_is_asked(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    database = connect(backend, outcome=TrueOutcome())

    assert (await request(database, mode, insert("kept"))).status == 201
    assert names(backend) == ["kept"]


@pytest.mark.backends("pg18")
async def test_a_reader_of_ones_own_is_not_asked(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a standby, which has no transactions of its own to name."""
    make_tables(backend)
    engine = create_async_engine(backend.url("async"))
    database = Database.from_engines(reader=engine, outcome=TrueOutcome())

    def identify(self: TrueOutcome, connection: Connection) -> TransactionId | None:
        raise AssertionError

    monkeypatch.setattr(TrueOutcome, "identify", identify)

    assert (await request(database, "async", count, method="GET")).status == 201
    await engine.dispose()
