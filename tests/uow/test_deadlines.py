"""Deadlines: what has not begun to answer in time is rolled back, and answered with 503."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.asgi import Recorder, lifespan, run_asgi
from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from tests.uow.conftest import Connect
from tests.uow.units import (
    app_of,
    count,
    elsewhere,
    endpoint,
    insert,
    make_tables,
    names,
    request,
    run,
    within,
)
from uow import Database, UnitOfWorkMiddleware, _deadlines, current_session, current_unit, unit_options
from uow.errors import UnitOfWorkClosed
from uow.retry import Retry

pytestmark = pytest.mark.backends("sqlite", "pg18")


def _copy(function: Any) -> Any:
    """Another function that does the same, to be decorated."""

    async def handle(request: Request) -> Response:
        answer: Response = await function(request)
        return answer

    return handle


LOSES = text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")
SOON = 0.2
LATE = 60.0


async def never(_: Request) -> Response:
    """Writes, and does not come back."""
    await current_session().run_sync(insert("lost"))
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture(autouse=True)
def nobody_else_has_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do the tests that come after these in the same process."""
    monkeypatch.setattr(_deadlines, "_used", [])


def is_late(answer: Recorder) -> bool:
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (answer.json()["type"], answer.json()["outcome"]) == ("/problems/time-is-up", "rolled_back")
    return f"{answer.json()['detail']}".endswith("its deadline; nothing was kept")


async def test_a_handler_that_does_not_come_back_is_left(backend: Backend, database: Database) -> None:
    assert is_late(await run_asgi(app_of(never, database, deadline=SOON), "POST", "/work"))

    assert names(backend) == []
    backend.wait_until_at_rest()
    assert (await request(database, "async", insert("next"))).status == 201


@pytest.mark.backends("pg18")
async def test_one_that_waits_for_a_lock_is_told_so(backend: Backend, mode: Mode, database: Database) -> None:
    """PostgreSQL ends the wait a little before the deadline."""
    await within(database, mode, insert("row"))
    async with database.new_unit(name="holds") as holds:
        await holds.session.run_sync(run("UPDATE items SET stock = 1"))
        late = endpoint(mode, run("UPDATE items SET stock = 2"))
        answer = await elsewhere(run_asgi(app_of(late, database, deadline=2 * SOON), "POST", "/work"))

    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["type"] == "/problems/lock-timeout"
    assert backend.query("SELECT stock FROM items") == [(1,)]
    backend.wait_until_at_rest()


async def test_so_is_one_that_waits_for_a_connection(backend: Backend, connect: Connect) -> None:
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0, pool_timeout=LATE)
    async with database.new_unit(name="holds") as holds:
        await holds.session.run_sync(insert("held"))
        late = app_of(endpoint("async", insert("late")), database, deadline=SOON)
        assert is_late(await elsewhere(run_asgi(late, "POST", "/work")))

    assert names(backend) == ["held"]


async def test_a_thread_is_left_behind_and_can_do_no_more(backend: Backend, database: Database) -> None:
    """Nobody can stop it; the answer does not wait for it, and what it does afterwards is refused."""
    goes_on, ended = threading.Event(), threading.Event()
    heard: list[Exception] = []

    def slow(session: Session) -> None:
        insert("lost")(session)
        goes_on.wait(LATE)
        try:
            insert("later")(session)
        except UnitOfWorkClosed as error:
            heard.append(error)
        ended.set()

    app = app_of(endpoint("sync", slow), database, deadline=10 * SOON)  # it shall have begun
    assert is_late(await run_asgi(app, "POST", "/work"))
    goes_on.set()
    await wait_until_async(ended.is_set, "the thread has ended")

    assert len(heard) == 1
    assert names(backend) == []
    backend.wait_until_at_rest()


async def test_a_rule_has_the_last_word_over_the_decorator_and_the_default(database: Database) -> None:
    async def told(_: Request) -> Response:
        await current_session().execute(text("SELECT 1"))
        return JSONResponse(current_unit().options.deadline)

    routes = [
        Route("/default", told),
        Route("/decorated", unit_options(deadline=40)(_copy(told))),
        Route("/ruled", unit_options(deadline=40)(_copy(told))),
    ]
    app = Starlette(routes=routes)
    rules = [{"match": "GET /ruled", "deadline": 50}]
    app.add_middleware(UnitOfWorkMiddleware, database=database, deadline=30, rules=rules)

    async with lifespan(app):
        found = [(await run_asgi(app, "GET", path)).json() for path in ("/default", "/decorated", "/ruled")]

    assert found == [30, 40, 50]


async def test_who_asks_for_no_unit_has_all_the_time_and_an_answer_that_has_begun_as_well(
    backend: Backend, database: Database
) -> None:
    async def slow(_: Request) -> Response:
        await asyncio.sleep(2 * SOON)  # the deadline has to be over
        return Response(status_code=204)

    async def rows() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(2 * SOON)  # the deadline has to be over
        yield str(await current_session().scalar(text("SELECT 1")))

    async def streamed(_: Request) -> Response:
        await current_session().execute(text("SELECT 1"))
        return StreamingResponse(rows())

    assert (await run_asgi(app_of(slow, database, deadline=SOON), "GET", "/work")).status == 204
    assert (await run_asgi(app_of(streamed, database, deadline=SOON), "GET", "/work")).body == b"a1"
    backend.wait_until_at_rest()


async def test_a_stream_whose_options_are_first_needed_by_its_answer_has_no_deadline(
    database: Database,
) -> None:
    async def rows() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(2 * SOON)  # the deadline has to be over
        yield "b"

    async def streamed(_: Request) -> Response:
        current_unit()
        return StreamingResponse(rows())

    assert (await run_asgi(app_of(streamed, database, deadline=SOON), "POST", "/work")).body == b"ab"


async def test_a_time_out_of_the_apps_own_is_no_deadline(mode: Mode, database: Database) -> None:
    def work(session: Session) -> None:
        insert("lost")(session)
        raise TimeoutError("of the app")

    answer = await run_asgi(app_of(endpoint(mode, work), database, deadline=LATE), "POST", "/work")

    assert (answer.status, str(answer.error)) == (500, "of the app")


@pytest.mark.backends("pg18")
async def test_L6_all_attempts_share_one_deadline(backend: Backend, mode: Mode, database: Database) -> None:
    tries: list[int] = []

    def loses(session: Session) -> None:
        tries.append(1)
        session.execute(LOSES)

    retry = Retry(attempts=1_000_000, first_pause=0.01, longest_pause=0.01)
    app = app_of(endpoint(mode, loses), database, deadline=10 * SOON, retry=retry)

    assert (await run_asgi(app, "POST", "/work")).status == 503
    assert len(tries) > 1
    assert await within(database, mode, count, read_only=True) == 0


@pytest.mark.backends("pg18")
async def test_L6_the_wait_for_the_attempts_of_others_is_part_of_it(
    backend: Backend, database: Database
) -> None:
    goes_on, inside = asyncio.Event(), asyncio.Event()

    async def lose_once() -> None:
        if current_unit().attempt == 1:
            await current_session().execute(LOSES)

    async def stays(_: Request) -> Response:
        await lose_once()
        inside.set()
        await goes_on.wait()
        return Response()

    @unit_options(deadline=SOON)
    async def hurries(_: Request) -> Response:
        await lose_once()
        return Response()

    app = Starlette(routes=[Route(f"/{e.__name__}", e, methods=["POST"]) for e in (stays, hurries)])
    app.add_middleware(UnitOfWorkMiddleware, database=database, retry=Retry(first_pause=0.0, seconds=LATE))
    first = asyncio.create_task(run_asgi(app, "POST", "/stays"))
    await inside.wait()

    assert (await run_asgi(app, "POST", "/hurries")).status == 503

    goes_on.set()
    assert (await first).status == 200


async def test_a_middleware_that_was_made_too_early_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_deadlines, "_used", [])
    app = Starlette()
    around = UnitOfWorkMiddleware(app, database=database)
    app.router.routes.append(Route("/work", unit_options(deadline=1)(_copy(never)), methods=["POST"]))

    answer = await run_asgi(around, "POST", "/work")

    assert "declare the routes first" in str(answer.error)


async def test_what_is_no_time_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="deadline=0 is no number of seconds above 0"):
        unit_options(deadline=0)
    with pytest.raises(ValueError, match="deadline=-1 is no number"):
        UnitOfWorkMiddleware(Starlette(), database=database, deadline=-1)
