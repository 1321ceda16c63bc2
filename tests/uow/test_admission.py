"""L26: where too many wait for a connection, the next one is refused at once, and nothing was begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from starlette.responses import Response

from tests.support.asgi import Recorder, run_asgi
from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from tests.uow.conftest import Connect
from tests.uow.units import app_of, count, elsewhere, insert, make_tables, names, request, within
from uow import Database

pytestmark = pytest.mark.backends("sqlite", "pg18")

MOST = 3


@pytest.fixture
def narrow(backend: Backend, connect: Connect) -> Database:
    make_tables(backend)
    return connect(backend, pool_size=1, max_overflow=0, max_waiting=MOST)


@asynccontextmanager
async def holding(database: Database, mode: Mode, name: str = "held") -> AsyncIterator[None]:
    """The only connection that can write is taken."""
    if mode == "async":
        async with database.new_unit(name="held") as unit:
            await unit.session.run_sync(insert(name))
            yield
    else:
        with database.new_unit(name="held") as unit:
            insert(name)(unit.sync_session)
            yield


async def test_L26_who_would_be_one_too_many_is_refused_at_once(
    backend: Backend, mode: Mode, narrow: Database
) -> None:
    async with holding(narrow, mode):
        queued = [elsewhere(request(narrow, mode, insert(f"queued-{number}"))) for number in range(MOST)]
        await wait_until_async(lambda: len(narrow.waiting) == MOST, "all of them wait")
        refused = await elsewhere(request(narrow, mode, insert("refused")))
        untouched = await elsewhere(run_asgi(app_of(_no_database, narrow), "POST", "/work"))

    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["type"] == "/problems/database-unavailable"
    assert untouched.status == 204
    assert {(await each).status for each in queued} == {201}
    assert sorted(names(backend)) == ["held", *(f"queued-{number}" for number in range(MOST))]
    assert narrow.waiting == set()
    assert (await request(narrow, mode, insert("later"))).status == 201
    backend.wait_until_at_rest()


async def test_L26_whoever_gave_up_waiting_is_not_counted_any_more(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0, max_waiting=1, pool_timeout=0.1)
    async with holding(database, mode):
        gave_up = await elsewhere(request(database, mode, insert("gave up")))
        assert gave_up.status == 503
        assert database.waiting == set()
        waits = asyncio.ensure_future(elsewhere(request(database, mode, insert("cancelled"))))
        await wait_until_async(lambda: len(database.waiting) == 1, "it waits")
        waits.cancel()
        await asyncio.wait({waits})
        await wait_until_async(lambda: not database.waiting, "nobody waits")

    assert await within(database, mode, count, read_only=True) == 1


async def test_L26_a_refusal_that_was_swallowed_is_no_success(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0, max_waiting=0)

    def swallow(session: Session) -> None:
        with pytest.raises(PoolTimeout):
            insert("refused")(session)

    async with holding(database, mode):
        answer: Recorder = await elsewhere(request(database, mode, swallow))

    assert answer.status == 503
    assert names(backend) == ["held"]


async def test_L26_who_does_not_have_to_wait_is_let_in(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    """A free connection is one, and those who read wait for others than those who write."""
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0, max_waiting=0)
    assert (await request(database, mode, insert("first"))).status == 201
    async with holding(database, mode):
        assert (await elsewhere(request(database, mode, count, method="GET"))).status == 201

    database = connect(backend, pool_size=1, max_overflow=0, max_waiting=1)
    async with holding(database, mode, "held again"):
        waits = elsewhere(request(database, mode, insert("waits")))
        await wait_until_async(lambda: len(database.waiting) == 1, "it waits")
        assert (await elsewhere(request(database, mode, count, method="GET"))).status == 201
    assert (await waits).status == 201


async def _no_database(_: object) -> Response:
    return Response(status_code=204)
