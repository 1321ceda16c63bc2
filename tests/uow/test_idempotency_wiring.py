"""How the middleware is set up, what it costs who does not use it, and what is said where it is wrong."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.asgi import lifespan, run_asgi
from tests.support.backends import Backend, Mode
from tests.uow.conftest import Connect
from tests.uow.keys import REPLAYED, Counted, both, counting, keyed, make_keys, one, rows, send
from tests.uow.migrated import assert_table_is_that_of_the_metadata
from tests.uow.units import Told, add, names
from uow import Database, UnitOfWorkMiddleware, current_sync_session, idempotency
from uow.idempotency import IdempotencyMiddleware
from uow.idempotency._routes import find_endpoint, is_sync


async def fine(_: Request) -> Response:
    return JSONResponse({"fine": True})


class Nothing:
    """Anything but a scope of HTTP."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nobody asks")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ttl": 59}, "ttl=59 is no number of seconds from 60 to"),
        ({"ttl": 10**12}, "ttl=1000000000000 is no number"),
        ({"ttl": float("nan")}, "ttl=nan"),
        ({"wait": -1}, "wait=-1 is below 0"),
        ({"body_limit": -1}, "body_limit=-1 is below 0"),
        ({"request_limit": -1}, "request_limit=-1 is below 0"),
        ({"sessions": "both"}, 'sessions=\'both\' is none of "auto", "async", "sync"'),
        ({"required": ["orders"]}, "required='orders' is no method and path"),
        ({"required": ["POST /a*b"]}, "required='POST /a\\*b' is no method and path"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        IdempotencyMiddleware(Nothing(), principal=None, **options)


@one
async def test_a_route_that_does_not_exist_stops_the_start(backend: Backend, database: Database) -> None:
    app = keyed(fine, database, required=["POST /wokr"])
    with pytest.raises(RuntimeError, match=r"required idempotency keys: .* did you mean POST /work"):
        async with lifespan(app):
            raise AssertionError("it has started")


@one
async def test_where_no_start_is_announced_the_first_request_says_so(
    backend: Backend, database: Database
) -> None:
    answer = await send(keyed(fine, database, required=["POST /wokr"]), None)
    assert "did you mean POST /work" in str(answer.error)


@one
@pytest.mark.parametrize(
    ("required", "missing"),
    [
        (["POST /a/items"], {"POST /a/items"}),
        (["POST /a/items/{id}"], {"POST /a/items/1"}),
        (["* /a/*"], {"POST /a/items", "PUT /a/items", "POST /a/items/1"}),
        (["PUT *"], {"PUT /a/items"}),
        ([], set()),
    ],
)
async def test_a_key_is_required_where_it_says(
    backend: Backend, database: Database, required: list[str], missing: set[str]
) -> None:
    make_keys(backend)
    routes = [
        Route("/items", fine, methods=["GET", "POST", "PUT"]),
        Route("/items/{id}", fine, methods=["POST"]),
    ]
    app = Starlette(routes=[Mount("/a", routes=routes)])
    app.add_middleware(IdempotencyMiddleware, principal=None, required=required)
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    asked = ["GET /a/items", "POST /a/items", "PUT /a/items", "POST /a/items/1"]
    async with lifespan(app):
        for root in ("", "/root"):
            found = set()
            for each in asked:
                method, path = each.split()
                answer = await run_asgi(app, method, root + path, scope={"root_path": root})
                assert answer.status in (200, 400)
                found |= {each} if answer.status == 400 else set()
            assert found == missing


@one
async def test_outside_of_the_unit_it_says_where_it_belongs(backend: Backend, database: Database) -> None:
    app = Starlette(routes=[Route("/work", fine, methods=["POST"])])
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    app.add_middleware(IdempotencyMiddleware, principal=None)
    assert "has to be inside of UnitOfWorkMiddleware" in str((await send(app)).error)
    assert (await send(app, None)).status == 200


@one
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
async def test_without_a_key_nothing_is_opened(backend: Backend, connect: Connect, method: str) -> None:
    """L20; GET and HEAD do not even with one."""
    database = connect(backend, observer=(told := Told()))
    answer = await send(keyed(fine, database), "k-1" if method in ("GET", "HEAD") else None, method=method)
    assert (answer.status, told.waits, told.outcomes) == (200, [], [])


@one
async def test_what_is_no_request_passes_by(backend: Backend, database: Database) -> None:
    seen: list[str] = []

    async def socket(web_socket: WebSocket) -> None:
        seen.append(web_socket.scope["type"])
        await web_socket.close()

    app = keyed(fine, database)
    app.router.routes.append(WebSocketRoute("/socket", socket))
    headers = [(b"idempotency-key", b"k")]
    scope = {"type": "websocket", "path": "/socket", "headers": headers, "subprotocols": []}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def take(message: Any) -> None:
        sent.append(message["type"])

    await app(scope, receive, take)
    assert (seen, sent) == (["websocket"], ["websocket.close"])


@both
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_the_kind_of_session_can_be_said(backend: Backend, database: Database, kind: Mode) -> None:
    """Of an app that is no Starlette's, nothing is known about its endpoints."""
    make_keys(backend)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "sync":
            session = current_sync_session()
            session.connection().exec_driver_sql("INSERT INTO items (name) VALUES ('one')")
        else:
            await add("one")
        await JSONResponse({"done": True}, 201)(scope, receive, send)

    sessions: Any = kind
    inner = IdempotencyMiddleware(app, principal=None, sessions=sessions)
    outer = UnitOfWorkMiddleware(inner, database=database)
    first, again = [await send(outer, path="/any") for _ in range(2)]
    assert (first.status, again.status, again.headers[REPLAYED]) == (201, 201, "true")
    assert names(backend) == ["one"]


@one
async def test_a_guess_that_is_wrong_is_told(backend: Backend, database: Database) -> None:
    make_keys(backend)

    async def handle(_: Request) -> Response:
        current_sync_session()
        raise AssertionError("it got one")

    answer = await send(keyed(handle, database))
    assert (answer.status, answer.json()["type"]) == (500, "/problems/mixed-sessions")


class Resource(HTTPEndpoint):
    async def post(self, _: Request) -> Response:
        await add("from a class")
        return JSONResponse({}, 201)

    def put(self, _: Request) -> Response:
        session = current_sync_session()
        session.connection().exec_driver_sql("INSERT INTO items (name) VALUES ('in a thread')")
        return JSONResponse({}, 201)


@one
async def test_a_class_of_endpoints_has_both_kinds(backend: Backend, database: Database) -> None:
    make_keys(backend)
    app = Starlette(routes=[Route("/work", Resource)])
    app.add_middleware(IdempotencyMiddleware, principal=None)
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    for method, key in (("POST", "a"), ("PUT", "b")):
        answers = [await send(app, key, method=method) for _ in range(2)]
        assert [REPLAYED in answer.headers for answer in answers] == [False, True]
    assert names(backend) == ["from a class", "in a thread"]


def test_what_is_known_of_an_endpoint_already_is_used() -> None:
    scope = {"method": "POST", "endpoint": fine}
    assert find_endpoint(scope) is fine
    assert is_sync(partial(partial(make_keys)), scope)
    assert not is_sync(partial(fine), scope)


def test_what_is_wrapped_is_what_it_wraps() -> None:
    """As frameworks see it: a decorator may be of the other kind."""

    @functools.wraps(fine)
    def handing_on(*args: Any) -> Any:
        return fine(*args)

    @functools.wraps(make_keys)
    async def in_a_thread(*args: Any) -> None:
        raise AssertionError("nobody asks")

    assert not is_sync(handing_on, {"method": "POST"})
    assert is_sync(in_a_thread, {"method": "POST"})


def test_what_is_no_function_is_taken_for_async() -> None:
    scope = {"method": "POST"}
    assert not any(is_sync(each, scope) for each in (None, Nothing(), Resource, type("Empty", (), {})))


@one
async def test_another_header_can_have_the_key(backend: Backend, database: Database) -> None:
    make_keys(backend)
    app = keyed(counting("async", Counted()), database, header="X-Request-Key", required=["POST /work"])
    missing = await send(app)
    assert (missing.status, missing.json()["detail"]) == (400, "Send X-Request-Key with this request.")
    answers = [await send(app, None, headers={"X-Request-Key": "k"}) for _ in range(2)]
    assert answers[1].headers[REPLAYED] == "true"


@one
async def test_people_see_in_the_table_what_was_asked(backend: Backend, database: Database) -> None:
    make_keys(backend)
    app = keyed(counting("async", Counted()), database)
    app.router.routes.append(Route("/{path:path}", counting("async", Counted()), methods=["POST"]))
    await send(app, "a", path="/caf\u00e9/\x00 %")
    await send(app, "b", path="/" + "x" * 1000)
    (plain,), (cut,) = backend.query("SELECT request FROM idempotency_keys ORDER BY key")
    assert plain == "POST /caf%C3%A9/%00%20%25"
    assert (len(cut), cut[:8]) == (512, "POST /xx")
    assert len(rows(backend)) == 2


@both
def test_the_table_of_a_migration_is_that_of_the_metadata(backend: Backend) -> None:
    assert_table_is_that_of_the_metadata(backend, idempotency)


@pytest.mark.parametrize("nobody", [None, 0, b"", ()])
@one
async def test_a_principal_that_is_no_text_is_refused_and_shares_nothing(
    backend: Backend, database: Database, nobody: Any
) -> None:
    """It would be taken for "nobody in particular", and all such would share their answers."""
    make_keys(backend)
    app = keyed(counting("async", Counted()), database, principal=lambda scope: nobody)

    answer = await send(app)

    assert answer.status == 500
    assert "tells whose key it is as a str" in str(answer.error)
    assert (rows(backend), names(backend)) == ([], [])


@one
async def test_a_wrong_order_stops_the_start(backend: Backend, database: Database) -> None:
    """Else all goes well until the first key comes, which is when it is needed."""
    app = keyed(counting("async", Counted()), database)
    app.user_middleware.reverse()
    with pytest.raises(RuntimeError, match="has to be inside of UnitOfWorkMiddleware"):
        async with lifespan(app):
            raise AssertionError("it has started")
    app.user_middleware.reverse()
    app.middleware_stack = None
    async with lifespan(app):
        pass


TWICE = "two IdempotencyMiddlewares, one inside of the other, take the same key of a request"


@one
async def test_two_of_them_stop_the_start(backend: Backend, database: Database) -> None:
    """One that is added by hand to an app whose configuration has added one, say."""
    app = keyed(fine, database)
    app.user_middleware.append(Middleware(IdempotencyMiddleware, principal=None, header="idempotency-KEY"))
    with pytest.raises(RuntimeError, match=TWICE):
        async with lifespan(app):
            raise AssertionError("it has started")


@both
@pytest.mark.parametrize("principal", [None, lambda scope: "somebody else"])
async def test_two_of_them_that_no_start_can_see_are_told_of_by_the_first_key(
    backend: Backend, database: Database, principal: Any
) -> None:
    """The inner one belongs to an app that is mounted, and sees the row of the outer one."""
    make_keys(backend)
    inner = Starlette(routes=[Route("/work", counting("async", work := Counted()), methods=["POST"])])
    inner.add_middleware(IdempotencyMiddleware, principal=principal)
    app = keyed(fine, database)
    app.router.routes.append(Mount("/inner", inner))

    for _ in range(2):
        answer = await send(app, path="/inner/work")
        assert (answer.status, work.runs, rows(backend), names(backend)) == (500, 0, [], [])
        assert f"POST /inner/work: {TWICE}" in str(answer.error)
        assert "Leave one of them out" in str(answer.error)
    assert (await send(app, None, path="/inner/work")).status == 201


@both
async def test_two_of_them_with_a_header_each_are_in_order(backend: Backend, database: Database) -> None:
    """While clients move from one name to the other; some send both, with a key of its own each."""
    make_keys(backend)
    app = keyed(counting("async", work := Counted()), database)
    app.user_middleware.append(Middleware(IdempotencyMiddleware, principal=None, header="X-Key"))
    async with lifespan(app):
        first = await send(app, "a", headers={"X-Key": "b"})
        repeats = [await send(app, "a"), await send(app, None, headers={"X-Key": "b"})]

    assert (first.status, work.runs, names(backend)) == (201, 1, ["run-1"])
    for answer in repeats:
        assert (answer.body, answer.headers[REPLAYED]) == (first.body, "true")
