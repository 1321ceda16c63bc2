"""Rules: options for the units of chosen routes, which have the last word over the code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Host, Match, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from tests.support.asgi import lifespan, run_asgi
from tests.support.backends import Backend, SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.units import app_of, endpoint, insert, make_tables
from uow import Database, UnitOfWorkMiddleware, current_unit, unit_options

pytestmark = pytest.mark.backends("sqlite")

Rules = list[Mapping[str, Any]]


@pytest.fixture
def one(sqlite: SqliteBackend) -> Database:
    return Database(sqlite.database_url)


def tell(options: Any) -> dict[str, Any]:
    return {"isolation": options.isolation, "read_only": options.read_only, "snapshot": options.snapshot}


async def plain(_: Request) -> Response:
    return JSONResponse(tell(current_unit().options))


async def other(_: Request) -> Response:
    return JSONResponse(tell(current_unit().options))


@unit_options(isolation="repeatable read", snapshot=True)
async def marked(_: Request) -> Response:
    return JSONResponse(tell(current_unit().options))


class Resource(HTTPEndpoint):
    async def get(self, _: Request) -> Response:
        return JSONResponse(tell(current_unit().options))

    @unit_options(isolation="repeatable read")
    async def post(self, _: Request) -> Response:
        return JSONResponse(tell(current_unit().options))


async def foreign(scope: Scope, receive: Receive, send: Send) -> None:
    """An app of another make: it has no routes that could be seen."""
    await JSONResponse(tell(current_unit().options))(scope, receive, send)


async def socket(websocket: WebSocket) -> None:
    await websocket.close()


class NoRoute(BaseRoute):
    """A route of somebody's own make, which does not say what it serves."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return Match.NONE, {}


def starlette() -> Starlette:
    return Starlette(
        routes=[
            NoRoute(),
            Route("/orders/", plain, methods=["GET", "POST"]),
            Route("/orders/special", other, methods=["POST"]),
            Route("/orders/{order}", marked, methods=["GET", "POST"]),
            Route("/orders/{order}/again", plain, methods=["POST"]),
            Route("/resource", Resource),
            WebSocketRoute("/socket", socket),
            Mount("/inner", routes=[Route("/orders/", marked, methods=["POST"])]),
            Mount("/foreign", foreign),
            Host("shop.example", Starlette(routes=[Route("/shop", plain, methods=["POST"])])),
        ]
    )


def fastapi() -> FastAPI:
    app, router, deeper = FastAPI(), APIRouter(prefix="/orders"), APIRouter()

    async def tell_it() -> dict[str, Any]:
        return tell(current_unit().options)

    async def tell_another() -> dict[str, Any]:
        return tell(current_unit().options)

    async def tell_marked() -> dict[str, Any]:
        return tell(current_unit().options)

    unit_options(isolation="repeatable read", snapshot=True)(tell_marked)
    router.add_api_route("/", tell_it, methods=["GET", "POST"])
    router.add_api_route("/special", tell_another, methods=["POST"])
    deeper.add_api_route("/{order}", tell_marked, methods=["GET", "POST"])
    deeper.add_api_route("/{order}/again", tell_it, methods=["POST"])
    router.include_router(deeper)
    app.include_router(router)
    inner = FastAPI()
    inner.add_api_route("/orders/", tell_marked, methods=["POST"])
    app.mount("/inner", inner)
    return app


async def isolation(app: ASGIApp, line: str, **headers: str) -> Any:
    method, path = line.split()
    answer = await run_asgi(app, method, path, headers=headers)
    return answer.json()["isolation"] if method != "HEAD" else answer.status


def ruled(app: Starlette, database: Database, rules: Rules) -> Starlette:
    app.add_middleware(UnitOfWorkMiddleware, database=database, rules=rules)
    return app


SERIALIZABLE = "SERIALIZABLE"
DECORATED = "REPEATABLE READ"
CASES = [
    ("POST /orders/", "POST /orders/", SERIALIZABLE),
    ("POST /orders/", "GET /orders/", None),
    ("POST /orders/", "POST /orders/special", None),
    ("POST /orders/", "POST /inner/orders/", DECORATED),
    ("POST /orders/{order}", "POST /orders/7", SERIALIZABLE),
    ("POST /orders/{order}", "GET /orders/7", DECORATED),
    ("POST /orders/{order}", "POST /orders/special", None),
    ("POST /orders/{order}/again", "POST /orders/7/again", SERIALIZABLE),
    ("POST /orders/{order}/again", "POST /orders/", None),
    ("* /orders/", "GET /orders/", SERIALIZABLE),
    ("POST /orders/*", "POST /orders/7/again", SERIALIZABLE),
    ("POST /orders/*", "GET /orders/7", DECORATED),
    ("GET *", "GET /orders/7", SERIALIZABLE),
    ("* *", "POST /inner/orders/", SERIALIZABLE),
    ("POST /inner/orders/", "POST /inner/orders/", SERIALIZABLE),
    ("POST /inner/orders/", "POST /orders/", None),
]


@pytest.mark.parametrize("make", [starlette, fastapi])
@pytest.mark.parametrize(("match", "line", "expected"), CASES)
async def test_a_rule_is_for_the_route_that_it_names_and_for_no_other(
    one: Database, make: Callable[[], Starlette], match: str, line: str, expected: str | None
) -> None:
    app = ruled(make(), one, [{"match": match, "isolation": "serializable"}])

    assert await isolation(app, line) == expected


@pytest.mark.parametrize(
    ("match", "line", "expected"),
    [
        ("GET /resource", "GET /resource", SERIALIZABLE),
        ("POST /resource", "GET /resource", None),
        ("POST /resource", "POST /resource", SERIALIZABLE),
        ("GET /resource", "POST /resource", DECORATED),
        ("POST /foreign/*", "POST /foreign/anything", SERIALIZABLE),
        ("GET /foreign/*", "POST /foreign/anything", None),
        ("POST /shop", "POST /shop", SERIALIZABLE),
    ],
)
async def test_classes_hosts_and_apps_of_another_make_have_rules_as_well(
    one: Database, match: str, line: str, expected: str | None
) -> None:
    app = ruled(starlette(), one, [{"match": match, "isolation": "serializable"}])

    host = "shop.example" if "shop" in line else "testserver"
    assert await isolation(app, line, host=host) == expected


async def test_a_rule_for_get_is_for_head_and_a_unit_may_be_asked_for_before_routing(one: Database) -> None:
    seen: list[Any] = []

    class Asking:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                seen.append(current_unit().options.isolation)
            await self.app(scope, receive, send)

    app = starlette()
    app.add_middleware(Asking)
    ruled(app, one, [{"match": "GET /orders/", "isolation": "serializable"}])

    assert await isolation(app, "HEAD /orders/") == 200
    assert await isolation(app, "POST /orders/") is None
    assert seen == [SERIALIZABLE, None]


async def test_a_path_below_a_root_path_is_found(one: Database) -> None:
    app = ruled(starlette(), one, [{"match": "POST /orders/{order}/again", "isolation": "serializable"}])

    answer = await run_asgi(app, "POST", "/v1/orders/7/again", scope={"root_path": "/v1"})

    assert answer.json()["isolation"] == SERIALIZABLE


async def test_later_rules_win_and_what_no_rule_names_stays(one: Database) -> None:
    """Default < decorator < rule."""
    rules: Rules = [
        {"match": "* *", "isolation": "serializable", "read_only": True},
        {"match": "POST /orders/{order}", "isolation": "read committed"},
    ]
    app = ruled(starlette(), one, rules)

    answer = await run_asgi(app, "POST", "/orders/7")

    assert answer.json() == {"isolation": "READ COMMITTED", "read_only": True, "snapshot": True}


async def test_a_rule_reaches_the_database(backend: Backend, connect: Connect) -> None:
    """L25: a rule makes the units of a route read-only, and the database refuses a write."""
    make_tables(backend)
    app = app_of(
        endpoint("async", insert("no")), connect(backend), rules=[{"match": "POST /work", "read_only": True}]
    )

    answer = await run_asgi(app, "POST", "/work")

    assert (answer.status, answer.json()["type"]) == (500, "/problems/read-only-unit")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "rule 1: match=None is no method and path"),
        ({"match": 3}, "rule 1: match=3 is no method and path"),
        ({"match": "/orders/", "read_only": True}, "match='/orders/' is no method and path, such as"),
        ({"match": "post /orders/", "read_only": True}, "match='post /orders/' is no method"),
        ({"match": "POST /*/again", "read_only": True}, "is no method and path"),
        ({"match": "POST /orders/"}, r"rule 1 \(POST /orders/\) sets none of read_only, isolation"),
        ({"match": "POST /orders/", "isolaton": "x"}, r"rule 1 \(POST /orders/\): isolaton is none of"),
        ({"match": "POST /orders/", "isolation": "x"}, r"rule 1 \(POST /orders/\): isolation='x' is none of"),
        ({"match": "POST /orders/", "commit_on": [200]}, r"rule 1 .*: commit_on=\[200\]"),
        ({"match": "POST /orders/", "stream_timeout": 0}, "rule 1 .*: stream_timeout=0 is no number"),
    ],
)
def test_a_wrong_rule_is_refused_where_it_is_written(
    one: Database, rule: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        UnitOfWorkMiddleware(starlette(), database=one, rules=[rule])


@pytest.mark.parametrize(
    ("match", "near"),
    [
        ("POST /order/", "did you mean POST /orders/"),
        ("DELETE /orders/special", "did you mean .*POST /orders/special"),
        ("POST /socket", "did you mean"),
        ("TRACE /~", "there are .*GET /orders/, .*POST /orders/"),
    ],
)
async def test_a_rule_that_matches_no_route_stops_the_start(one: Database, match: str, near: str) -> None:
    rules: Rules = [{"match": "GET /orders/", "snapshot": True}, {"match": match, "read_only": True}]
    app = ruled(starlette(), one, rules)

    with pytest.raises(RuntimeError, match=f'rule 2 matches no route: match = "{match}"; .*{near}'):
        async with lifespan(app):
            pass


async def test_a_start_with_rules_that_match_goes_on(one: Database) -> None:
    app = ruled(starlette(), one, [{"match": "GET /orders/", "snapshot": True}])

    async with lifespan(app):
        assert (await run_asgi(app, "GET", "/orders/")).json()["snapshot"] is True


async def test_where_no_start_is_announced_the_first_unit_says_it(one: Database) -> None:
    app = ruled(starlette(), one, [{"match": "GET /nowhere", "snapshot": True}])

    answer = await run_asgi(app, "POST", "/orders/")

    assert answer.status == 500
    assert "rule 1 matches no route" in str(answer.error)


async def test_an_app_that_is_mounted_has_its_own_rules(one: Database) -> None:
    """Its routes are those below the mount, also where one function has several of them."""
    app = ruled(starlette(), one, [{"match": "GET /orders/", "isolation": "serializable"}])
    around = Starlette(routes=[Mount("/shop", app=app)])

    assert await isolation(around, "GET /shop/orders/") == SERIALIZABLE
    assert await isolation(around, "POST /shop/orders/7/again") is None


async def test_a_root_path_that_the_path_only_begins_like_is_none(one: Database) -> None:
    app = Starlette(routes=[Route("/apikeys", plain), Route("/api/keys", plain)])
    ruled(app, one, [{"match": "GET /apikeys", "isolation": "serializable"}])

    answer = await run_asgi(app, "GET", "/apikeys", scope={"root_path": "/api"})

    assert answer.json()["isolation"] == SERIALIZABLE


async def test_one_function_under_several_methods_and_paths(one: Database) -> None:
    routes = [
        Route("/orders/{order}", plain, methods=["POST"]),
        Route("/orders/mine", plain, methods=["GET"]),
        Mount("/of/{who}", routes=[Route("/to/{who}", plain), Route("/by/{who}", plain)]),
    ]
    rules: Rules = [{"match": "GET /of/{who}/by/{who}", "isolation": "repeatable read"}]
    rules += [{"match": "GET /orders/mine", "isolation": "serializable"}]
    app = ruled(Starlette(routes=routes), one, rules)

    assert await isolation(app, "GET /orders/mine") == SERIALIZABLE
    assert await isolation(app, "POST /orders/mine") is None
    assert await isolation(app, "GET /of/me/by/you") == DECORATED
    assert await isolation(app, "GET /of/me/to/you") is None


async def test_a_mount_behind_a_middleware_is_seen_through(one: Database) -> None:
    class Around:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)

    inner = Starlette(routes=[Route("/x", plain)])
    app = Starlette(routes=[Mount("/m", app=Around(inner)), Route("/y", plain)])
    ruled(app, one, [{"match": "GET /m/x", "isolation": "serializable"}])

    assert await isolation(app, "GET /m/x") == SERIALIZABLE
    assert await isolation(app, "GET /y") is None


def test_a_rule_for_a_websocket_matches_no_route(one: Database) -> None:
    app = FastAPI()
    app.add_api_websocket_route("/socket", socket)
    for each in (app, starlette()):
        middleware = UnitOfWorkMiddleware(
            each, database=one, rules=[{"match": "* /socket", "snapshot": True}]
        )
        assert "matches no route" in str(middleware._wrong_rule())


async def test_a_route_that_is_added_after_the_first_unit_has_no_rules(one: Database) -> None:
    """The routes are looked at once."""
    app = ruled(starlette(), one, [{"match": "* *", "isolation": "serializable"}])
    assert await isolation(app, "GET /orders/") == SERIALIZABLE

    async def late(request: Request) -> Response:
        return await plain(request)

    app.router.routes.append(Route("/late", late))

    assert await isolation(app, "GET /late") is None
