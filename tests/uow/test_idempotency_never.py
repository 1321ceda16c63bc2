"""What is never kept with a key: answers that are wrong, half, or undone, and those of nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.keys import (
    REPLAYED,
    Counted,
    answering,
    both,
    counting,
    keyed,
    make_keys,
    one,
    rows,
    send,
)
from tests.uow.units import Item, add, make_tables, names
from uow import Database, current_session, current_unit
from uow.idempotency._row import Row


@pytest.fixture(autouse=True)
def _keys(backend: Backend) -> None:
    make_keys(backend)


@both
async def test_what_the_database_refuses_at_the_end_is_answered_as_without_a_key(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L5: the flush is the unit's own, and the app's handler for what it raises is asked."""
    refused = {IntegrityError: lambda request, error: PlainTextResponse("taken", 409)}
    await send(keyed(counting(mode, Counted()), database), "other")
    work = Counted(work=lambda session: session.add(Item(name="run-1")))
    work.runs = 1
    answer = await send(keyed(counting(mode, work), database, handlers=refused))

    assert (answer.status, answer.body) == (409, b"taken")
    assert len(answer.starts) == 1
    assert (rows(backend), names(backend)) == ([("", "other", 201)], ["run-1"])
    backend.wait_until_at_rest()


@both
async def test_a_doomed_unit_stores_nothing(backend: Backend, mode: Mode, database: Database) -> None:
    """L9."""

    def swallow(session: Session) -> None:
        with suppress(IntegrityError):
            session.execute(text("INSERT INTO items (name) VALUES (NULL)"))

    answer = await send(keyed(counting(mode, Counted(work=swallow)), database))

    assert (answer.status, answer.json()["type"]) == (500, "/problems/unit-doomed")
    assert (rows(backend), names(backend)) == ([], [])


@both
async def test_a_handler_that_rolls_back_stores_nothing(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L11."""
    answer = await send(keyed(counting(mode, Counted(work=lambda session: session.rollback())), database))
    assert (answer.status, answer.json()["type"]) == (500, "/problems/unit-doomed")
    assert (rows(backend), names(backend)) == ([], [])


@both
async def test_a_dry_run_stores_nothing(backend: Backend, mode: Mode, database: Database) -> None:
    """L10."""
    work = Counted(work=lambda _: current_unit().set_rollback_only())
    app = keyed(counting(mode, work), database)

    assert [(await send(app)).json() for _ in range(2)] == [{"run": 1}, {"run": 2}]
    assert (rows(backend), names(backend)) == ([], [])


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@both
@pytest.mark.parametrize(
    ("response", "why"),
    [
        pytest.param(lambda: StreamingResponse(chunks(b"a", b"b")), "it streams", id="stream"),
        pytest.param(lambda: Response(b"x" * 11), "11 bytes are more than", id="too-large"),
        pytest.param(
            lambda: StreamingResponse(chunks(b"x" * 6, b"x" * 6), headers={"Content-Length": "9"}),
            "longer than the body_limit",
            id="longer-than-it-says",
        ),
        pytest.param(lambda: FileResponse(__file__), "more than", id="file"),
    ],
)
async def test_an_answer_that_cannot_be_stored_is_an_error_of_wiring(
    backend: Backend, database: Database, response: Callable[[], Response], why: str
) -> None:
    answer = await send(keyed(answering(response), database, body_limit=10))

    assert isinstance(answer.error, RuntimeError)
    assert why in str(answer.error)
    assert "POST /work" in str(answer.error)
    assert "raise body_limit" in str(answer.error)
    assert [start["status"] for start in answer.starts] == [500]
    assert (rows(backend), names(backend)) == ([], [])
    backend.wait_until_at_rest()


@one
async def test_an_app_that_swallows_what_is_wrong_is_told_again(backend: Backend, database: Database) -> None:
    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        await add("row")
        for _ in range(2):
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            except RuntimeError:
                continue

    answer = await send(keyed(_Raw(stubborn), database))
    assert isinstance(answer.error, RuntimeError)
    assert "it streams" in str(answer.error)
    assert (answer.status, len(answer.starts), names(backend)) == (500, 1, [])


class _Raw:
    """A route's endpoint that is an ASGI app of its own."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


def message(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"http.response.{kind}", **fields}


@one
@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([message("start", status=200), message("start", status=504)], "a second one was begun"),
        ([message("start", status=200)], "it ended before its body did"),
        ([message("start", status=200, trailers=True)], "it has trailers"),
        ([message("start", status=200), message("pathsend", path="/x")], "it sends http.response.pathsend"),
    ],
)
async def test_half_an_answer_is_none(
    backend: Backend, database: Database, messages: list[dict[str, Any]], why: str
) -> None:
    async def raw(scope: Any, receive: Any, send: Any) -> None:
        await add("row")
        for each in messages:
            await send({"headers": [], **each})

    answer = await send(keyed(_Raw(raw), database))
    assert why in str(answer.error)
    assert (answer.status, len(answer.starts), names(backend), rows(backend)) == (500, 1, [], [])


@one
async def test_the_routers_own_redirect_leaves_the_key_free(backend: Backend, database: Database) -> None:
    work = Counted()
    app = keyed(counting("async", work), database)
    app.router.routes.append(Route("/slash/", counting("async", work), methods=["POST"]))

    redirect = await send(app, path="/slash")
    assert (redirect.status, redirect.headers["location"]) == (307, "http://testserver/slash/")
    assert rows(backend) == []
    assert (await send(app, path="/slash/")).json() == {"run": 1}
    assert (await send(app, path="/slash/")).headers[REPLAYED] == "true"


@one
@pytest.mark.parametrize(("method", "path"), [("POST", "/nowhere"), ("DELETE", "/work")])
async def test_what_no_route_takes_stores_nothing(
    backend: Backend, database: Database, method: str, path: str
) -> None:
    answer = await send(keyed(counting("async", Counted()), database), method=method, path=path)
    assert answer.status in (404, 405)
    assert rows(backend) == []


@one
async def test_what_the_routes_do_not_know_keeps_nothing(backend: Backend, database: Database) -> None:
    """A middleware inside that sends requests to other paths: its key would not be kept."""

    class Rewriting:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "path": scope["path"].replace("/old", "")}, receive, send)

    app = keyed(counting("async", Counted()), database)
    inside: Any = Rewriting
    app.user_middleware.append(Middleware(inside))

    answer = await send(app, path="/old/work")

    assert "no route of the app takes it" in str(answer.error)
    assert (answer.status, names(backend), rows(backend)) == (500, [], [])
    assert (await send(app)).status == 201


@both
async def test_a_handler_that_removes_its_key_is_an_error(
    backend: Backend, mode: Mode, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    work = Counted(work=lambda session: session.execute(text("DELETE FROM idempotency_keys")))
    answer = await send(keyed(counting(mode, work), database))
    assert answer.status == 500
    assert "leave the table idempotency_keys to uow.idempotency" in caplog.text
    assert (rows(backend), names(backend)) == ([], [])
    backend.wait_until_at_rest()


@one
async def test_a_key_without_an_answer_is_never_taken_for_one(backend: Backend, database: Database) -> None:
    app = keyed(counting("async", Counted()), database)
    await send(app)
    backend.execute("UPDATE idempotency_keys SET status = NULL")
    assert "is kept without an answer" in str((await send(app)).error)


@one
async def test_what_goes_before_an_answer_passes(backend: Backend, database: Database) -> None:
    async def raw(scope: Any, receive: Any, send: Any) -> None:
        await add("row")
        await send(message("early_hint", links=[]))
        await send(message("start", status=200, headers=[]))
        await send(message("body", body=b"done"))

    app = keyed(_Raw(raw), database)
    first, again = [await send(app) for _ in range(2)]
    assert first.messages[0]["type"] == "http.response.early_hint"
    assert (first.body, again.body, names(backend)) == (b"done", b"done", ["row"])


@both
async def test_a_row_that_is_gone_when_it_is_looked_for_is_one_in_use(
    backend: Backend, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has removed it in the moment between two statements."""

    async def claim(self: Row, *, ttl: float, wait: float) -> bool:
        return False

    monkeypatch.setattr(Row, "claim", claim)
    answer = await send(keyed(counting("async", Counted()), database))
    assert (answer.status, answer.json()["type"]) == (409, "/problems/idempotency-key-in-use")
    assert names(backend) == []


@both
async def test_a_task_that_stays_inside_of_the_session_is_not_waited_for(
    backend: Backend, connect: Connect
) -> None:
    make_tables(backend)
    inside, go = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def stay() -> None:
        async with current_session().begin_nested():
            inside.set()
            await go.wait()

    async def handle(_: Request) -> Response:
        await add("row")
        tasks.append(asyncio.ensure_future(stay()))
        await inside.wait()
        return Response(status_code=201)

    answer = await send(keyed(handle, connect(backend, settle_timeout=0.3)))
    go.set()
    await asyncio.wait(tasks)

    assert (answer.status, answer.json()["type"]) == (500, "/problems/unit-doomed")
    assert not tasks[0].cancelled()
    tasks[0].exception()  # whatever it says of its savepoint
    assert (rows(backend), names(backend)) == ([], [])
    backend.wait_until_at_rest()


class Between:
    """Stands between the unit and the keys, and makes a success of what is none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_changed(message: Message) -> None:
            await send({**message, "status": 200} if "status" in message else message)

        try:
            await self.app(scope, receive, send_changed)
        except ValueError:
            await JSONResponse("mended")(scope, receive, send)


@pytest.mark.parametrize("how", ["status", "exception"])
@both
async def test_a_key_is_not_committed_without_its_answer(
    backend: Backend, mode: Mode, database: Database, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All repeats would get 500 for as long as it is remembered, of a request that was answered with 200."""

    def fail(_: Any) -> None:
        if how == "exception":
            raise ValueError("out of stock")

    app = keyed(counting(mode, Counted(status=400, work=fail)), database)
    app.user_middleware.insert(1, Middleware(Between))

    for _ in range(2):
        answer = await send(app)
        assert answer.status == 500
        assert (rows(backend), names(backend)) == ([], [])
    assert "is not the one which IdempotencyMiddleware has seen" in caplog.text
