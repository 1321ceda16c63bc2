"""What a deadline must not change: what locks see, who replays, what the next unit finds, and streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.test_deadlines import LATE, LOSES, SOON
from tests.uow.test_deadlines_postgresql import pid
from tests.uow.units import app_of, endpoint, insert, make_tables, names, request, within
from uow import (
    Database,
    UnitOfWorkMiddleware,
    current_session,
    current_sync_session,
    current_unit,
    unit_options,
)
from uow.engines.postgresql import PostgreSQL, _cancel
from uow.retry import Retry

pytestmark = [pytest.mark.anyio, pytest.mark.backends("pg18")]


@pytest.fixture(params=["postgresql", "postgresql+psycopg"])
def narrow(request: pytest.FixtureRequest, backend: Backend, connect: Connect) -> Database:
    make_tables(backend)
    url = make_url(backend.database_url).set(drivername=request.param)
    return connect(url.render_as_string(hide_password=False), pool_size=1, max_overflow=0)


@pytest.mark.parametrize("deadline", [None, LATE])
async def test_a_lock_sees_what_was_committed_before_it(
    backend: Backend, connect: Connect, mode: Mode, deadline: float | None
) -> None:
    """A statement that takes a snapshot before it would make three requests write the same number."""
    make_tables(backend)
    database = connect(backend)

    @unit_options(isolation="REPEATABLE READ")
    async def count_up(_: Request) -> Response:
        session = current_session()
        await session.execute(text("LOCK TABLE items IN ACCESS EXCLUSIVE MODE"))
        before = await session.scalar(text("SELECT count(*) FROM items"))
        await session.run_sync(insert(f"item {before}"))
        return JSONResponse(before)

    app = app_of(count_up, database, deadline=deadline)
    for _ in range(2):  # the first time a connection is asked what its role says
        answers = await asyncio.gather(*(run_asgi(app, "POST", "/work") for _ in range(3)))
        assert {answer.status for answer in answers} == {200}

    assert names(backend) == [f"item {number}" for number in range(6)]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_handler_that_cleans_up_at_leisure_costs_no_connection(narrow: Database, method: str) -> None:
    """Nobody waits for the database then, so there is nothing to cut off."""

    async def cleans(_: Request) -> Response:
        await current_session().scalar(text("SELECT 1"))
        try:
            await asyncio.sleep(LATE)
        finally:
            await asyncio.wait({asyncio.ensure_future(asyncio.sleep(1))})
        raise AssertionError

    answer = await run_asgi(app_of(cleans, narrow, deadline=SOON), method, "/work")

    assert (answer.status, answer.json()["type"]) == (503, "/problems/time-is-up")
    assert (await request(narrow, "async", pid, method=method)).status == 201


async def test_L7_a_connection_that_is_lost_before_its_first_statement_is_replaced(
    backend: Backend, narrow: Database, mode: Mode
) -> None:
    app = app_of(endpoint(mode, insert("kept")), narrow, deadline=LATE, retry=Retry(first_pause=0.0))
    assert await within(narrow, mode, pid)
    backend.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )

    assert (await run_asgi(app, "POST", "/work")).status == 201

    assert names(backend) == ["kept"]


async def test_a_stream_that_asks_for_its_unit_late_is_not_cut(narrow: Database) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"head "
        await current_session().scalar(text("SELECT 1"))
        await asyncio.sleep(2 * SOON)
        yield b"end"

    async def streams(_: Request) -> Response:
        return StreamingResponse(body())

    answer = await run_asgi(app_of(streams, narrow, deadline=SOON), "GET", "/work")

    assert (answer.status, answer.body, answer.complete) == (200, b"head end", True)


async def test_what_fails_after_the_answer_is_not_the_deadline(backend: Backend, narrow: Database) -> None:
    async def fails() -> None:
        await asyncio.sleep(2 * SOON)
        raise LookupError("of the background task")

    async def answers(_: Request) -> Response:
        await current_session().run_sync(insert("kept"))
        return Response(status_code=201, background=BackgroundTask(fails))

    answer = await run_asgi(app_of(answers, narrow, deadline=SOON), "POST", "/work")

    assert (answer.status, str(answer.error)) == (201, "of the background task")
    assert names(backend) == ["kept"]


class Waits:
    """Stands for a session that somebody is inside of."""

    def cut(self) -> bool:
        return True


async def test_nor_is_it_where_the_handler_has_swallowed_it_twice(narrow: Database) -> None:
    async def fails() -> None:
        raise LookupError("of the background task")

    async def stays(_: Request) -> Response:
        clock: Any = current_unit().clock
        assert current_unit().options.deadline == SOON
        clock.holders.add(Waits())
        for _twice in range(2):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(LATE)
        return Response(status_code=201, background=BackgroundTask(fails))

    answer = await run_asgi(app_of(stays, narrow, deadline=SOON), "POST", "/work")

    assert (answer.status, str(answer.error)) == (201, "of the background task")


async def test_L13_the_commit_of_a_unit_inside_is_not_cut(backend: Backend, narrow: Database) -> None:
    backend.execute(
        "CREATE FUNCTION takes_long() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$"
    )
    backend.execute(
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON items DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION takes_long()"
    )
    outcomes: list[str | None] = []

    async def audits(_: Request) -> Response:
        assert current_unit().options.deadline == SOON
        own = None
        try:
            async with narrow.new_unit() as own:
                await own.session.run_sync(insert("audit"))
        finally:
            outcomes.append(None if own is None else own.outcome)
        raise AssertionError

    answer = await run_asgi(app_of(audits, narrow, deadline=SOON), "POST", "/work")

    assert (answer.status, answer.json()["type"]) == (503, "/problems/time-is-up")
    assert outcomes == ["committed"]
    assert names(backend) == ["audit"]


async def test_a_thread_that_streams_may_be_the_first_to_ask(backend: Backend, connect: Connect) -> None:
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0)

    def body() -> Iterator[bytes]:
        yield b"head "
        current_sync_session().execute(text("SELECT 1"))
        sleep(2 * SOON)
        yield b"end"

    async def streams(_: Request) -> Response:
        return StreamingResponse(body())

    answer = await run_asgi(app_of(streams, database, deadline=SOON), "GET", "/work")

    assert (answer.status, answer.body, answer.complete) == (200, b"head end", True)


async def test_a_row_that_cannot_be_fetched_costs_no_connection(narrow: Database) -> None:
    """psycopg's server-side cursors have no statement for it, as ROLLBACK has none."""
    before = await within(narrow, "async", pid)
    runs: list[int] = []

    async def reads(_: Request) -> Response:
        runs.append(1)
        rows = await current_session().stream(
            text("SELECT 1 / (50 - i) FROM generate_series(1, 100) AS i"),
            execution_options={"yield_per": 10},
        )
        async for _row in rows:
            pass
        raise AssertionError

    answer = await run_asgi(app_of(reads, narrow, retry=Retry()), "POST", "/work")

    assert (answer.status, answer.json()["type"], runs) == (500, "/problems/database-error", [1])
    assert await within(narrow, "async", pid) == before


async def test_L6_nobody_waits_for_what_comes_after_the_answer_of_another(narrow: Database) -> None:
    answered, over = asyncio.Event(), asyncio.Event()

    async def lose_once() -> None:
        if current_unit().attempt == 1:
            await current_session().execute(LOSES)

    async def tells(_: Request) -> Response:
        await lose_once()
        answered.set()
        return Response(status_code=201, background=BackgroundTask(over.wait))

    async def follows(_: Request) -> Response:
        await lose_once()
        return Response(status_code=201)

    app = Starlette(routes=[Route(f"/{e.__name__}", e, methods=["POST"]) for e in (tells, follows)])
    retry = Retry(attempts=2, first_pause=0.0, longest_pause=LATE, seconds=LATE)
    app.add_middleware(UnitOfWorkMiddleware, database=narrow, retry=retry)
    first = asyncio.create_task(run_asgi(app, "POST", "/tells"))
    await answered.wait()

    async with asyncio.timeout(LATE / 2):
        assert (await run_asgi(app, "POST", "/follows")).status == 201
    assert not first.done()

    over.set()
    assert (await first).status == 201


async def test_a_thread_that_a_middleware_waits_for_is_interrupted(
    backend: Backend, connect: Connect
) -> None:
    """BaseHTTPMiddleware goes on only when the thread does; a reader has no limit in the server."""

    def slow(session: Session) -> None:
        session.execute(text("SELECT pg_sleep(60)"))

    async def passes(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0)
    app = Starlette(routes=[Route("/work", endpoint("sync", slow), methods=["GET"])])
    app.add_middleware(BaseHTTPMiddleware, dispatch=passes)
    app.add_middleware(UnitOfWorkMiddleware, database=database, deadline=SOON)

    async with asyncio.timeout(LATE / 2):
        answer = await run_asgi(app, "GET", "/work")

    assert (answer.status, answer.json()["type"]) == (503, "/problems/time-is-up")
    assert (await request(database, "sync", pid, method="GET")).status == 201


async def test_a_limit_that_was_never_sent_is_nobody_elses(backend: Backend, connect: Connect) -> None:
    make_tables(backend)
    engine = create_async_engine(backend.url("async"), pool_size=1, max_overflow=0)
    database = Database.from_engines(writer=engine)

    async def only_connects(_: Request) -> Response:
        connection = await current_session().connection()
        assert connection.sync_connection is not None
        return Response(status_code=409)

    for _ in range(2):
        await run_asgi(app_of(only_connects, database, deadline=1.0), "POST", "/work")
    async with engine.begin() as connection:
        assert await connection.scalar(text("SHOW statement_timeout")) == "0"
    await engine.dispose()


def test_what_a_driver_can_do_is_asked_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """psycopg2 can be cancelled, and has no bound for it; the connection of a test is left alone."""
    asked: list[str] = []
    _cancel(SimpleNamespace(cancel=lambda: asked.append("cancel")))
    _cancel(SimpleNamespace(cancel_safe=lambda timeout: asked.append("cancel_safe")))
    borrowed = SimpleNamespace(uow_lease=1, terminate=lambda: asked.append("terminate"), fileno=lambda: 0)
    PostgreSQL().hang_up(borrowed)
    assert asked == ["cancel", "cancel_safe"]
