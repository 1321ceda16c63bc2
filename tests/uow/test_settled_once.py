"""L13: who gives up on a unit while it is being settled ends nothing, and nothing is done twice for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.faults.proxy import PostgresProxy
from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode
from tests.support.hold import hold_commits
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.retries import QUICK, Flaky
from tests.uow.units import add, elsewhere, endpoint, insert, make_tables, names, within
from uow import UnitOfWork, UnitOfWorkMiddleware
from uow.outcome import TransactionId, TrueOutcome

pytestmark = pytest.mark.backends("pg18")

SOON = 0.1


class Hesitant:
    """Asks the database what became of a COMMIT, when it is told to, and not before."""

    def __init__(self) -> None:
        self.hesitates = threading.Event()
        self.goes_on = threading.Event()
        self._asking = TrueOutcome(seconds=LIMIT)

    def identify(self, connection: Connection) -> TransactionId | None:
        return self._asking.identify(connection)

    async def ask(self, engine: AsyncEngine, transaction: TransactionId | None) -> bool | None:
        self.hesitates.set()
        await wait_until_async(self.goes_on.is_set, "it is told to ask")
        return await self._asking.ask(engine, transaction)

    def ask_sync(self, engine: Engine, transaction: TransactionId | None) -> bool | None:
        self.hesitates.set()
        self.goes_on.wait(LIMIT)
        return self._asking.ask_sync(engine, transaction)


@pytest.mark.parametrize("retry", [QUICK, None], ids=["replay", "once"])
async def test_L8_who_gives_up_while_the_outcome_is_asked_for_gets_no_second_attempt(
    backend: Backend, mode: Mode, connect: Connect, retry: Any
) -> None:
    """A connection that was lost is a reason to run again, but what it was lost in may have been kept."""
    make_tables(backend)
    asking, flaky = Hesitant(), Flaky(failures=0)
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        database = connect(proxy.url_of(backend.database_url), outcome=asking, settle_timeout=LIMIT)
        await within(database, mode, insert("first"))
        inner = Starlette(routes=[Route("/work", endpoint(mode, flaky), methods=["POST"])])
        left: list[asyncio.Task[None]] = []

        async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
            running = asyncio.ensure_future(inner(scope, receive, send))
            if left:
                return await running
            left.append(running)
            await wait_until_async(asking.hesitates.is_set, "the answer to COMMIT is lost")
            database.settle_timeout = SOON
            raise LookupError("too slow")

        proxy.cut("commit_sent", once=True)
        app = UnitOfWorkMiddleware(impatient, database=database, retry=retry)
        answer = elsewhere(run_asgi(app, "POST", "/work"))
        await asyncio.wait({answer})
        assert not left[0].done()
        asking.goes_on.set()
        await left[0]

    assert not answer.cancelled()
    recorder = answer.result()
    assert (recorder.status, str(recorder.error)) == (None, "too slow")
    assert (flaky.attempts, flaky.done) == ([1], [1])
    assert names(backend) == ["first", "attempt-1"]


@pytest.mark.parametrize("how", ["cancelled", "out of time"])
async def test_L13_who_waits_no_longer_for_a_commit_ends_nobody_elses_wait(
    backend: Backend, connect: Connect, how: str
) -> None:
    make_tables(backend)
    database = connect(backend, settle_timeout=LIMIT)
    units: list[UnitOfWork] = []

    async def commits() -> None:
        async with database.new_unit() as unit:
            units.append(unit)
            await add("kept")

    async def waiter(seconds: float) -> asyncio.Task[None]:
        database.settle_timeout = seconds
        task = asyncio.ensure_future(units[0].settle(commit=False))
        await asyncio.sleep(0)
        return task

    with hold_commits(backend, "items") as held:
        committing = elsewhere(commits())
        await held.wait_until_waiting_async()
        gives_up, waits = await waiter(SOON), await waiter(LIMIT)
        if how == "cancelled":
            gives_up.cancel()
        await asyncio.wait({gives_up})
        assert not waits.done()
        held.release()
        ends = await asyncio.gather(waits, committing, return_exceptions=True)

    assert [*ends] == [None, None]
    assert gives_up.cancelled() == (how == "cancelled")
    assert units[0].outcome == "committed"
    assert names(backend) == ["kept"]
