"""L6: what a dropped attempt leaves behind: nothing that anybody could see."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tests.support.asgi import AsgiCall, lifespan, run_asgi
from tests.support.backends import Backend, Mode
from tests.uow.retries import QUICK, Flaky, How, at_pause, reacting, work_of
from tests.uow.units import app_of, endpoint, garbage, names
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session, current_unit, new_unit
from uow.wiring import check_wiring

pytestmark = pytest.mark.backends("pg18")


def remembering(told: list[str], mode: Mode) -> Callable[[], Any]:
    """A dependency that writes down when it is entered, has to undo something, and is left."""

    async def asynchronous() -> AsyncIterator[str]:
        told.append(f"in {current_unit().attempt}")
        try:
            yield "given"
        except Exception:
            told.append("undo")
            raise
        finally:
            told.append("out")

    def synchronous() -> Iterator[str]:
        told.append(f"in {current_unit().attempt}")
        try:
            yield "given"
        except Exception:
            told.append("undo")
            raise
        finally:
            told.append("out")

    return asynchronous if mode == "async" else synchronous


async def test_L6_dependencies_are_entered_and_left_in_each_attempt(
    backend: Backend, database: Database, mode: Mode
) -> None:
    flaky, told = Flaky(failures=2), list[str]()

    async def handle(given: str) -> int:
        return await work_of(flaky) if given else 0

    def handle_sync(given: str) -> int:
        return flaky(current_sync_session()) if given else 0

    handle.__annotations__["given"] = handle_sync.__annotations__["given"] = str
    depends = Depends(remembering(told, mode))
    handle.__defaults__ = handle_sync.__defaults__ = (depends,)
    app = FastAPI()
    app.add_api_route("/work", handle if mode == "async" else handle_sync, methods=["POST"])
    app.add_middleware(UnitOfWorkMiddleware, database=database, retry=QUICK)

    answer = await run_asgi(app, "POST", "/work")

    assert (answer.status, answer.json()) == (200, 3)
    assert told == ["in 1", "undo", "out", "in 2", "undo", "out", "in 3", "out"]


@pytest.mark.parametrize("how", ["raise", "swallow"])
async def test_L6_a_background_task_runs_once_and_after_the_callbacks(
    backend: Backend, database: Database, how: How
) -> None:
    """L17: that of the attempt that was committed."""
    flaky, told = Flaky(failures=2), list[Any]()

    async def later(attempt: int) -> None:
        async with new_unit() as unit:
            assert await unit.session.run_sync(lambda _: True)
        told.append((attempt, list(flaky.done)))

    async def handle(_: Request) -> Response:
        attempt = current_unit().attempt
        answer = await current_session().run_sync(reacting(how, flaky))
        return JSONResponse(answer, 201, background=BackgroundTask(later, attempt))

    answer = await run_asgi(app_of(handle, database, retry=QUICK), "POST", "/work")

    assert (answer.status, told) == (201, [(3, [3])])


async def test_L6_the_attempts_have_one_answer_and_one_unit_each(
    backend: Backend, database: Database
) -> None:
    """What an attempt that is over still sends, or a task of it, does not go out."""
    flaky, late = Flaky(failures=1), list[Send]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        late.append(send)
        try:
            answer: Any = await work_of(flaky)
        finally:
            await send({"type": "http.response.debug", "info": {}})
        await late[0]({"type": "http.response.start", "status": 418, "headers": []})
        await late[0]({"type": "http.response.body", "body": b"late"})
        await JSONResponse(answer, 201)(scope, receive, send)

    answer = await run_asgi(UnitOfWorkMiddleware(app, database=database, retry=QUICK), "POST", "/")

    assert (answer.status, answer.json()) == (201, 2)
    kinds = [message["type"] for message in answer.messages]
    assert [kind for kind in kinds if kind != "http.response.debug"] == [
        "http.response.start",
        "http.response.body",
    ]


async def test_L14_a_client_that_leaves_between_two_attempts_changes_nothing(
    backend: Backend, mode: Mode, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky()
    app = app_of(endpoint(mode, flaky), database, retry=QUICK)
    call = AsgiCall(app, "POST", "/work", fail_send_at=0, spec_version="2.4")
    at_pause(monkeypatch, lambda _: call.disconnect())

    answer = await call.run()

    assert answer.messages == []
    assert (flaky.attempts, flaky.done, names(backend)) == ([1, 2], [2], ["attempt-2"])
    backend.wait_until_at_rest()


async def test_L12_a_request_that_is_cancelled_between_two_attempts_has_left_nothing(
    backend: Backend, mode: Mode, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky, pausing = Flaky(), asyncio.Event()

    def waits(_: int) -> float:
        pausing.set()
        return 3600.0

    at_pause(monkeypatch, waits)
    call = AsgiCall(app_of(endpoint(mode, flaky), database, retry=QUICK), "POST", "/work")
    task = asyncio.ensure_future(call.run())
    await pausing.wait()
    backend.wait_until_at_rest()
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert (call.recorder.messages, flaky.attempts, flaky.done, names(backend)) == ([], [1], [], [])
    backend.wait_until_at_rest()


async def test_L6_what_is_no_http_request_passes(database: Database) -> None:
    """The app is started and stopped, and a WebSocket opens its own units."""
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.append(scope["type"])
        if scope["type"] == "lifespan":
            await Starlette()(scope, receive, send)
            return
        async with new_unit() as unit:
            told.append(str(unit.attempt))

    middleware = UnitOfWorkMiddleware(app, database=database, retry=QUICK)
    async with lifespan(middleware):
        await run_asgi(middleware, "GET", "/", scope={"type": "websocket"})

    assert told == ["lifespan", "websocket", "1"]


def test_the_start_up_check_sees_what_is_inside(connect_nothing: Database) -> None:
    inner = UnitOfWorkMiddleware(Starlette(), database=connect_nothing)
    outer = UnitOfWorkMiddleware(inner, database=connect_nothing, retry=QUICK)

    assert [finding.code for finding in check_wiring(outer)] == ["second-middleware"]


@pytest.fixture
def connect_nothing() -> Database:
    return Database("postgresql://nobody@localhost/nothing")


async def test_L18_nothing_of_a_dropped_attempt_waits_for_the_garbage_collector(database: Database) -> None:
    """The failure is no driver's and comes from no thread: those keep their errors in frames of their own."""

    def work(session: Session) -> int:
        session.execute(text("SELECT 1"))
        if current_unit().attempt < 3:
            raise StaleDataError
        return current_unit().attempt

    app = app_of(endpoint("async", work), database, retry=QUICK)

    async def ask(times: int) -> None:
        for _ in range(times):
            assert (await run_asgi(app, "POST", "/work")).json() == 3

    await ask(3)
    gc.collect()
    gc.disable()
    try:
        await ask(3)
        left = garbage()
    finally:
        gc.enable()

    assert left == []
