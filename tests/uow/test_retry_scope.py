"""L6: what an attempt finds is what the first one found, and what is around it sees one request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.asgi import AsgiCall, run_asgi
from tests.support.backends import Backend
from tests.uow.retries import HOWS, QUICK, Flaky, How, reacting, serialization_failure, work_of
from tests.uow.units import app_of, endpoint, insert, names
from uow import Database, UnitOfWorkMiddleware, current_session, current_unit
from uow.retry import Retry

pytestmark = pytest.mark.backends("pg18")


class Outside:
    """A middleware around: what it reads from the scope when the request is over."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.scope: Scope = {}
        self.state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["outside"] = "kept"
        self.state = scope["state"]
        await self.app(scope, receive, send)
        self.scope = scope


def starlette(flaky: Flaky) -> Starlette:
    async def handle(_: Request) -> Response:
        return JSONResponse(await work_of(flaky), 201)

    routes = [Route("/items/{item}", handle, methods=["POST"], name="item")]
    return Starlette(routes=[Mount("/v1", routes=[Mount("/shop", app=Starlette(routes=routes))])])


def fastapi(flaky: Flaky) -> FastAPI:
    app, outer, inner = FastAPI(), APIRouter(prefix="/v1"), APIRouter(prefix="/shop")
    inner.add_api_route("/items/{item}", by_number(flaky), methods=["POST"], status_code=201, name="item")
    outer.include_router(inner)
    app.include_router(outer)
    return app


def mounted(flaky: Flaky) -> FastAPI:
    """A FastAPI in a FastAPI: a mount moves the root path, and says 500 itself before it raises."""
    app, inner = FastAPI(), FastAPI()
    inner.post("/items/{item}", status_code=201, name="item")(by_number(flaky))
    app.mount("/v1/shop", inner)
    return app


def by_number(flaky: Flaky) -> Any:
    async def handle(item: int) -> int:
        assert item == 7
        return await work_of(flaky)

    return handle


@pytest.mark.parametrize("make", [starlette, fastapi, mounted])
@pytest.mark.parametrize("failures", [0, 3])
async def test_L6_who_stands_around_sees_what_the_router_wrote(
    backend: Backend, database: Database, make: Any, failures: int
) -> None:
    """The same as without a replay: route, endpoint, path parameters, root path."""
    flaky = Flaky(failures=failures)
    around = Outside(UnitOfWorkMiddleware(make(flaky), database=database, retry=QUICK))

    answer = await run_asgi(around, "POST", "/v1/shop/items/7")

    assert (answer.status, answer.json()) == (201, failures + 1)
    scope = around.scope
    assert scope["path_params"]["item"] in ("7", 7)
    assert scope["endpoint"] is not None
    assert scope["root_path"] == ("" if make is fastapi else "/v1/shop")
    assert around.scope is answer.scope
    assert around.state is scope["state"]
    assert scope["state"] == {"outside": "kept"}
    if make is fastapi:
        assert scope["route"].name == "item"


async def test_L6_what_an_attempt_has_noted_in_the_request_is_not_found_by_the_next(
    backend: Backend, database: Database
) -> None:
    found: list[dict[str, Any]] = []
    flaky = Flaky(failures=2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        inner = {name: dict(scope[name]) for name in ("state", "session")}
        found.append({**inner, "other": scope.get("other"), "path": scope["path"]})
        scope["state"]["attempt"] = scope["session"]["attempt"] = scope["other"] = len(found)
        del scope["state"]["given"]
        scope["path"] += "/on"
        await JSONResponse(await work_of(flaky), 201)(scope, receive, send)

    state, session = {"given": 1}, {"user": "mia"}
    middleware = UnitOfWorkMiddleware(app, database=database, retry=QUICK)
    answer = await run_asgi(middleware, "POST", "/work", state=state, scope={"session": session})

    as_given = {"state": {"given": 1}, "session": {"user": "mia"}, "other": None, "path": "/work"}
    assert found == [as_given] * 3
    assert answer.scope["state"] is state
    assert answer.scope["session"] is session
    assert (state, session) == ({"attempt": 3}, {"user": "mia", "attempt": 3})
    assert (answer.scope["path"], answer.scope["other"]) == ("/work/on", 3)


class Marked(dict[str, Any]):
    """Marks itself when it is changed, as Starlette's does: a marked one is sent to the client."""

    modified = False

    def __setitem__(self, key: str, value: Any) -> None:
        self.modified = True
        super().__setitem__(key, value)

    def clear(self) -> None:
        self.modified = True
        super().clear()

    def update(self, *values: Any, **named: Any) -> None:
        self.modified = True
        super().update(*values, **named)


@pytest.mark.parametrize("touched_by", [0, 1, 2])
async def test_L6_a_session_counts_as_changed_if_the_attempt_that_answers_has_changed_it(
    database: Database, touched_by: int
) -> None:
    flaky, session = Flaky(), Marked(user="mia")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if current_unit().attempt == touched_by:
            scope["session"]["seen"] = True
        await JSONResponse(await work_of(flaky), 201)(scope, receive, send)

    middleware = UnitOfWorkMiddleware(app, database=database, retry=QUICK)
    answer = await run_asgi(middleware, "POST", "/work", scope={"session": session})

    assert (answer.json(), answer.scope["session"] is session) == (2, True)
    assert session.modified is (touched_by == 2)
    assert session == ({"user": "mia", "seen": True} if touched_by == 2 else {"user": "mia"})


# -- the body


CHUNKS = [b"one,", b"two,", b"three,", b"", b"four"]


class ReadsTheBody(BaseHTTPMiddleware):
    read: list[bytes] = []  # noqa: RUF012 - Starlette makes the instance, and this is the way to it

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        self.read.append(await request.body())
        answer: Response = await call_next(request)
        return answer


@pytest.mark.parametrize("place", ["nowhere", "inside", "outside"])
@pytest.mark.parametrize("how", HOWS)
async def test_L6_a_body_in_pieces_is_there_again(
    backend: Backend, database: Database, place: str, how: How
) -> None:
    """Also where a BaseHTTPMiddleware, inside or outside, has read it before the handler does."""
    flaky, bodies = Flaky(failures=2), list[bytes]()
    ReadsTheBody.read.clear()

    async def handle(request: Request) -> Response:
        bodies.append(await request.body())
        return JSONResponse(await current_session().run_sync(reacting(how, flaky)), 201)

    app = Starlette(routes=[Route("/work", handle, methods=["POST"])])
    if place == "inside":
        app.add_middleware(ReadsTheBody)
    app.add_middleware(UnitOfWorkMiddleware, database=database, retry=QUICK)
    if place == "outside":
        app.add_middleware(ReadsTheBody)

    answer = await run_asgi(app, "POST", "/work", body=CHUNKS)

    assert (answer.status, answer.json(), len(answer.starts), answer.complete) == (201, 3, 1, True)
    assert bodies == [b"one,two,three,four"] * 3
    assert len(ReadsTheBody.read) == {"nowhere": 0, "inside": 3, "outside": 1}[place]
    assert set(ReadsTheBody.read) <= {bodies[0]}
    backend.wait_until_at_rest()


async def test_L6_an_attempt_may_read_more_of_the_body_than_the_one_before(database: Database) -> None:
    """What was read comes from the buffer, the rest from the client, and then that nothing more comes."""
    read: list[list[bytes]] = []
    flaky = Flaky(failures=2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        chunks = [await receive() for _ in range(len(read) * 2)]
        read.append([message["body"] for message in chunks])
        await JSONResponse(await work_of(flaky), 201)(scope, receive, send)
        if len(read) == 3:
            last = await receive()
            call.disconnect()
            read.append([last["body"], (await receive())["type"].encode()])

    call = AsgiCall(UnitOfWorkMiddleware(app, database=database, retry=QUICK), "POST", "/work", body=CHUNKS)
    answer = await call.run()

    assert (answer.status, answer.json()) == (201, 3)
    assert read == [[], CHUNKS[:2], CHUNKS[:4], [b"four", b"http.disconnect"]]


@pytest.mark.parametrize(("limit", "again"), [(18, True), (17, False), (0, False)])
async def test_L6_a_body_over_the_limit_is_not_kept(
    backend: Backend, database: Database, limit: int, again: bool
) -> None:
    flaky = Flaky()
    bodies: list[bytes] = []

    async def handle(request: Request) -> Response:
        bodies.append(await request.body())
        return JSONResponse(await work_of(flaky), 201)

    retry = Retry(first_pause=0.0, body_limit=limit)
    answer = await run_asgi(app_of(handle, database, retry=retry), "POST", "/work", body=CHUNKS)

    assert answer.status == (201 if again else 503)
    assert bodies == [b"one,two,three,four"] * (2 if again else 1)


async def test_L6_a_long_body_that_nobody_read_costs_no_replay(database: Database) -> None:
    flaky = Flaky()
    app = app_of(endpoint("async", flaky), database, retry=Retry(first_pause=0.0, body_limit=3))
    assert (await run_asgi(app, "POST", "/work", body=CHUNKS)).json() == 2


async def test_L6_a_task_of_a_dropped_attempt_takes_nothing_of_the_body(
    backend: Backend, database: Database
) -> None:
    """It watches for the client to leave, say, and was not ended with its attempt."""
    come, heard, left = asyncio.Event(), list[Message](), list[asyncio.Task[None]]()

    async def watch(receive: Receive) -> None:
        while not heard or heard[-1]["type"] != "http.disconnect":
            heard.append(await receive())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if not left:
            left.append(asyncio.ensure_future(watch(receive)))
            await asyncio.sleep(0)  # it asks for the body
            await current_session().run_sync(serialization_failure)
        await current_session().run_sync(insert("kept"))
        come.set()
        body = b"".join([(await receive())["body"] for _ in range(2)])
        await Response(body)(scope, receive, send)

    middleware = UnitOfWorkMiddleware(app, database=database, retry=QUICK)
    call = AsgiCall(middleware, "POST", "/work", body=[b"one,", b"two"])
    at_once = call._receive

    async def receive_slowly() -> Message:
        await come.wait()
        return await at_once()

    call._receive = receive_slowly  # type: ignore[method-assign]  # a client that is slow to send
    answer = await call.run()
    await left[0]

    assert (answer.status, answer.body) == (200, b"one,two")
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]
    assert names(backend) == ["kept"]
