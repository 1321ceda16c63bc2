"""Where the running code is: in a unit, after one, or in none at all (L17, L19, L21, L24)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import uow
from tests.support.asgi import Message, run_asgi
from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.units import (
    Told,
    app_of,
    count,
    elsewhere,
    endpoint,
    in_thread,
    insert,
    make_tables,
    names,
    request,
    run,
    within,
)
from uow import (
    Database,
    UnitOfWorkMiddleware,
    current_session,
    current_sync_session,
    current_unit,
    errors,
    new_unit,
    on_commit,
)

pytestmark = pytest.mark.backends("sqlite", "pg18")


@pytest.mark.parametrize(
    "ask", [current_unit, current_session, current_sync_session, new_unit, lambda: on_commit(print)]
)
def test_outside_of_any_app_there_is_no_unit_and_the_error_says_what_to_write(ask: Any) -> None:
    """L21."""
    with pytest.raises(errors.NoUnitOfWork, match=r"async with database\.new_unit\(\):.*or `with`"):
        ask()


async def test_a_script_opens_a_unit_and_its_end_commits(
    backend: Backend, mode: Mode, database: Database
) -> None:
    def work(session: Session) -> None:
        unit = current_unit()
        assert unit.is_open
        assert unit.name == "import"
        assert repr(unit) == "<UnitOfWork import: open>"
        assert session is (unit.session.sync_session if mode == "async" else unit.sync_session)
        insert("nut")(session)

    await within(database, mode, work, name="import")

    assert names(backend) == ["nut"]
    with pytest.raises(errors.NoUnitOfWork):
        current_unit()


async def test_an_exception_rolls_back_and_leaves_the_block(
    backend: Backend, mode: Mode, database: Database
) -> None:
    called: list[str] = []

    def work(session: Session) -> None:
        insert("nut")(session)
        on_commit(lambda: called.append("never"))
        raise LookupError("of the script's own")

    with pytest.raises(LookupError, match="of the script's own"):
        await within(database, mode, work)

    assert names(backend) == []
    assert called == []


async def test_a_unit_whose_session_was_never_asked_for_opens_nothing(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    """L20."""
    told = Told()
    database = connect(backend, observer=told)
    called: list[str] = []

    def nothing() -> None:
        with database.new_unit() as unit:
            unit.on_commit(lambda: called.append("callback"))
        assert unit.outcome == "committed"
        assert repr(unit) == "<UnitOfWork new_unit(): committed>"

    if mode == "sync":
        await in_thread(nothing)
    else:
        async with database.new_unit() as unit:
            unit.on_commit(lambda: called.append("callback"))

    assert told.statements == []
    assert told.outcomes == [("new_unit()", "committed")]
    assert called == ["callback"]


async def test_a_unit_is_entered_once(sqlite: SqliteBackend, connect: Connect) -> None:
    block = connect(sqlite).new_unit()
    async with block:
        with pytest.raises(RuntimeError, match=r"call new_unit\(\) again"):
            await block.__aenter__()


async def test_a_unit_inside_a_unit_is_independent_of_it(
    sqlite: SqliteBackend, mode: Mode, connect: Connect
) -> None:
    """An audit row survives what it tells of."""
    make_tables(sqlite)
    database = connect(sqlite)

    async def outer() -> None:
        async with database.new_unit() as unit:
            if mode == "async":
                async with new_unit(name="audit"):
                    await current_session().run_sync(insert("audit"))
                assert current_unit() is unit
            else:
                await within(database, mode, insert("audit"))
            await unit.session.run_sync(insert("work"))
            raise LookupError("refused")

    with pytest.raises(LookupError):
        await outer()

    assert names(sqlite) == ["audit"]


async def test_a_unit_that_would_wait_for_the_one_around_it_is_refused_on_sqlite(
    sqlite: SqliteBackend, connect: Connect
) -> None:
    make_tables(sqlite)
    database = connect(sqlite)
    async with database.new_unit(name="outer") as outer:
        await outer.session.run_sync(insert("outer"))
        async with new_unit(read_only=True) as reading:
            assert await reading.session.run_sync(count) == 0
            async with new_unit(name="innermost") as inner:
                with pytest.raises(errors.WouldDeadlock, match="innermost: it would wait for outer"):
                    await inner.session.run_sync(insert("never"))
                inner.set_rollback_only()

    assert names(sqlite) == ["outer"]


@pytest.mark.backends("pg18")
async def test_elsewhere_it_costs_one_more_connection(
    backend: Backend, mode: Mode, database: Database
) -> None:
    async with database.new_unit(name="outer") as outer:
        await outer.session.run_sync(insert("outer"))
        await within(database, mode, insert("inner"))
        assert names(backend) == ["inner"]

    assert sorted(names(backend)) == ["inner", "outer"]


async def test_a_unit_on_another_file_waits_for_nothing(
    sqlite: SqliteBackend, tmp_path: Any, connect: Connect
) -> None:
    make_tables(sqlite)
    other = connect(f"sqlite:///{tmp_path}/other.db")
    async with connect(sqlite).new_unit() as outer:
        await outer.session.run_sync(insert("outer"))
        async with other.new_unit() as inner:
            await inner.session.run_sync(run("CREATE TABLE t (a)"))

    assert names(sqlite) == ["outer"]


async def test_one_unit_has_one_kind_of_session(backend: Backend, mode: Mode, database: Database) -> None:
    """L24: with the remedy, and 500 in a request."""

    def ask_for_the_other(_: Session) -> None:
        ask: Any = current_sync_session if mode == "async" else current_session
        ask()

    recorder = await request(database, mode, ask_for_the_other)

    assert recorder.status == 500
    assert recorder.json()["type"] == "/problems/mixed-sessions"
    assert "open a second unit with new_unit()" in recorder.json()["detail"]


async def test_a_plain_with_block_has_no_async_session(sqlite: SqliteBackend, connect: Connect) -> None:
    """L24: nobody could await its end."""
    with connect(sqlite).new_unit() as unit, pytest.raises(errors.MixedSessions, match="with"):
        _ = unit.session


async def test_a_background_task_has_no_unit_and_opens_its_own(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L17."""
    seen: list[BaseException] = []

    async def afterwards() -> None:
        try:
            current_unit()
        except errors.NoUnitOfWork as error:
            seen.append(error)
        async with new_unit() as unit:
            await unit.session.run_sync(insert("background"))

    async def handle(_: Request) -> Response:
        await current_session().run_sync(insert("request"))
        return Response(status_code=201, background=BackgroundTask(afterwards))

    def handle_sync(_: Request) -> Response:
        insert("request")(current_sync_session())
        return Response(status_code=201, background=BackgroundTask(afterwards))

    recorder = await run_asgi(app_of(handle if mode == "async" else handle_sync, database), "POST", "/work")

    assert recorder.error is None
    assert "the answer is out" in str(seen[0])
    assert "async with new_unit():" in str(seen[0])
    assert names(backend) == ["request", "background"]


async def test_a_websocket_has_no_unit_but_opens_one_for_each_message(
    backend: Backend, database: Database
) -> None:
    """L19."""
    seen: list[str] = []

    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            current_session()
        except errors.NoUnitOfWork as error:
            seen.append(str(error))
        name = await websocket.receive_text()
        async with new_unit() as unit:
            await unit.session.run_sync(insert(name))
        await websocket.send_text("kept")
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/chat", chat)])
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    inbox: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "nut"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return inbox.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/chat", "headers": [], "query_string": b"", "subprotocols": []}
    await elsewhere(app(scope, receive, send))

    assert "a WebSocket has no unit of work of its own: open one for each message" in seen[0]
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert names(backend) == ["nut"]


async def test_threads_and_child_tasks_are_in_the_unit_of_their_request(
    backend: Backend, database: Database
) -> None:
    """L23: what they do to it comes back."""

    async def child() -> None:
        await current_session().run_sync(insert("child"))

    async def handle(_: Request) -> Response:
        unit = current_unit()
        assert await in_thread(current_unit) is unit
        await asyncio.create_task(child())
        return JSONResponse(await current_session().run_sync(count), 201)

    recorder = await run_asgi(app_of(handle, database), "POST", "/work")

    assert (recorder.status, recorder.json()) == (201, 1)
    assert names(backend) == ["child"]


async def test_two_threads_of_one_request_get_one_unit(sqlite: SqliteBackend, connect: Connect) -> None:
    async def handle(_: Request) -> Response:
        first, second = await asyncio.gather(in_thread(current_unit), in_thread(current_unit))
        return Response(status_code=204 if first is second else 500)

    recorder = await run_asgi(app_of(handle, connect(sqlite)), "POST", "/work")

    assert recorder.status == 204


async def test_a_task_that_outlives_its_request_finds_no_unit(
    sqlite: SqliteBackend, connect: Connect
) -> None:
    """L17, L18: with one or without one in the request."""
    make_tables(sqlite)
    database = connect(sqlite)
    for asks in (True, False):
        go = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []

        async def later(go: asyncio.Event = go) -> None:
            await go.wait()
            current_session()

        async def handle(
            _: Request, asks: bool = asks, tasks: list[Any] = tasks, later: Any = later
        ) -> Response:
            if asks:
                await current_session().run_sync(count)
            tasks.append(asyncio.create_task(later()))
            return Response(status_code=204)

        await run_asgi(app_of(handle, database), "GET", "/work")
        go.set()
        with pytest.raises(errors.NoUnitOfWork, match="tasks that outlive their request"):
            await tasks[0]


def test_the_public_names_are_these_and_no_more() -> None:
    assert sorted(uow.__all__) == [
        "Database", "UnitOfWork", "UnitOfWorkMiddleware", "UnitSession", "current_session",
        "current_sync_session", "current_unit", "errors", "new_unit", "on_commit", "unit_options",
    ]  # fmt: skip
    assert all(hasattr(uow, name) for name in uow.__all__)


async def test_a_unit_in_a_middleware_of_its_own_needs_no_starlette(
    sqlite: SqliteBackend, connect: Connect
) -> None:
    """Two apps in one process each have their own database."""
    make_tables(sqlite)
    database, other = connect(sqlite), connect("sqlite://")
    await within(other, "async", run("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)"))
    first = app_of(endpoint("async", insert("first")), database)
    second = app_of(endpoint("async", insert("second")), other)

    for app in (first, second, Starlette(routes=[Route("/nothing", endpoint("async", count))])):
        await run_asgi(app, "POST", "/work")

    assert names(sqlite) == ["first"]
