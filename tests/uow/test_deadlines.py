"""Deadlines: what has not begun to answer in time is rolled back, and answered with 503."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.faults.proxy import PostgresProxy
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


def pid(session: Session) -> int:
    return session.scalar(text("SELECT pg_backend_pid()")) or 0


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


@pytest.mark.backends("pg18")
async def test_and_one_whose_link_is_stalled(backend: Backend, connect: Connect) -> None:
    """The ROLLBACK is not waited for either: the connection is thrown away."""
    make_tables(backend)
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        database = connect(
            proxy.url_of(backend.database_url), settle_timeout=LATE, pool_size=1, max_overflow=0
        )
        await within(database, "async", insert("first"))

        async def stalls(_: Request) -> Response:
            await current_session().run_sync(insert("lost"))
            proxy.stall()
            await asyncio.Event().wait()
            raise AssertionError

        assert is_late(await run_asgi(app_of(stalls, database, deadline=SOON), "POST", "/work"))
        proxy.heal()
        assert (await request(database, "async", insert("next"))).status == 201

    assert names(backend) == ["first", "next"]


@pytest.mark.backends("pg18")
@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_and_one_that_waits_for_an_answer_on_it(
    backend: Backend, driver: str, connect: Connect
) -> None:
    make_tables(backend)
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        url = make_url(proxy.url_of(backend.database_url)).set(drivername=driver)
        database = connect(
            url.render_as_string(hide_password=False), settle_timeout=LATE, pool_size=1, max_overflow=0
        )
        await within(database, "async", insert("first"))

        async def stalls(_: Request) -> Response:
            await current_session().run_sync(insert("lost"))
            proxy.stall()
            await current_session().execute(text("SELECT 1"))
            raise AssertionError

        began = monotonic()
        assert is_late(await run_asgi(app_of(stalls, database, deadline=SOON), "POST", "/work"))
        assert monotonic() - began < LATE / 10  # psycopg alone would wait for twice five seconds
        proxy.heal()
        assert (await request(database, "async", insert("next"))).status == 201

    assert names(backend) == ["first", "next"]


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


@pytest.mark.backends("pg18")
async def test_the_server_ends_the_statement_of_a_thread_and_its_connection_stays(
    backend: Backend, connect: Connect
) -> None:
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0)
    before = await within(database, "sync", pid)

    def slow(session: Session) -> None:
        insert("lost")(session)
        session.execute(text("SELECT pg_sleep(60)"))

    late = await run_asgi(app_of(endpoint("sync", slow), database, deadline=SOON), "POST", "/work")

    assert (late.status, late.json()["type"]) == (503, "/problems/time-is-up")
    assert await within(database, "sync", pid) == before
    assert names(backend) == []


@pytest.mark.backends("pg18")
async def test_one_that_does_not_hear_it_is_cut_off(backend: Backend, connect: Connect) -> None:
    """The link is stalled, so neither the limit nor a cancellation reaches the thread."""
    make_tables(backend)
    with PostgresProxy(make_url(backend.database_url).port or 5432) as proxy:
        database = connect(proxy.url_of(backend.database_url), pool_size=1, max_overflow=0)
        ended = threading.Event()

        def slow(session: Session) -> None:
            insert("lost")(session)
            proxy.stall()
            try:
                session.execute(text("SELECT 1"))
            finally:
                ended.set()

        assert is_late(
            await run_asgi(app_of(endpoint("sync", slow), database, deadline=SOON), "POST", "/work")
        )
        await wait_until_async(ended.is_set, "the thread has left the driver, with the link still stalled")
        proxy.heal()
        assert (await request(database, "sync", insert("next"))).status == 201

    assert names(backend) == ["next"]


@pytest.mark.backends("pg18")
@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_a_commit_has_the_time_that_it_needs(
    backend: Backend, mode: Mode, driver: str, connect: Connect
) -> None:
    """Stopped while it waits for a synchronous standby, it would be answered as if it were safe there."""
    make_tables(backend)
    backend.execute(
        "CREATE FUNCTION takes_long() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$"
    )
    backend.execute(
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON items DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION takes_long()",
    )
    url = make_url(backend.database_url).set(drivername=driver)
    database = connect(url.render_as_string(hide_password=False))

    assert (await request(database, mode, insert("kept"), deadline=1.0)).status == 201

    assert names(backend) == ["kept"]


@pytest.mark.backends("pg18")
@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
async def test_the_limits_are_the_shorter_of_two_and_end_with_their_unit(
    backend: Backend, mode: Mode, driver: str, connect: Connect
) -> None:
    make_tables(backend)
    url = make_url(backend.database_url).set(drivername=driver)
    database = connect(url.render_as_string(hide_password=False), pool_size=1, max_overflow=0)

    def limits(session: Session) -> list[str]:
        return [str(session.scalar(text(f"SHOW {name}_timeout"))) for name in ("statement", "lock")]

    def with_its_own(session: Session) -> list[str]:
        session.execute(text("SET LOCAL statement_timeout = '30s'"))
        return limits(session)

    def shorter(session: Session) -> list[str]:
        session.execute(text("SET statement_timeout = '30s'"))
        return limits(session)

    async def asked(work: Any, **options: Any) -> Any:
        answer = await run_asgi(app_of(endpoint(mode, work), database, **options), "POST", "/work")
        return answer.json()

    statement, lock = await asked(limits, deadline=LATE)
    assert re.fullmatch(r"5\d(\d{3}ms|s)", statement)
    assert re.fullmatch(r"5\d(\d{3}ms|s)", lock)
    assert await asked(limits) == ["0", "0"]
    assert (await asked(with_its_own, deadline=LATE))[0] == "30s"
    await asked(shorter)  # for the whole session of the driver
    assert (await asked(limits, deadline=LATE))[0] == "30s"


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
