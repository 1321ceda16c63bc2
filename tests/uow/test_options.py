"""The options of a unit: the middleware's defaults, changed by the decorator of the endpoint."""

from __future__ import annotations

import functools
from typing import Any, cast

import fastapi
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Host, Mount, Route, Router

from tests.support.asgi import ASGIApp, run_asgi
from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.units import app_of, count, endpoint, insert, make_tables, names, within
from uow import Database, UnitOfWorkMiddleware, current_session, current_unit, unit_options

pytestmark = pytest.mark.backends("sqlite", "pg18")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "chaos"}, "'chaos' is none of READ COMMITTED, REPEATABLE READ, SERIALIZABLE"),
        ({"commit_on": [201]}, r"commit_on=\[201\]: name 4xx and 5xx statuses only"),
        ({"commit_on": [600, 404]}, r"commit_on=\[600\]"),
    ],
)
def test_what_does_not_exist_is_refused_where_it_is_written(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unit_options(**options)


def test_the_same_holds_for_the_middleware_and_for_new_unit(sqlite: SqliteBackend) -> None:
    database = Database(sqlite.database_url)

    with pytest.raises(ValueError, match="4xx and 5xx statuses only"):
        UnitOfWorkMiddleware(Starlette(), database=database, commit_on=[302])
    with pytest.raises(ValueError, match="is none of"):
        database.new_unit(isolation="snapshot")


@pytest.mark.parametrize("level", ["repeatable read", "REPEATABLE_READ", "repeatable-read"])
@pytest.mark.backends("pg18", "pgsystem")
async def test_the_isolation_level_reaches_the_database(
    backend: Backend, mode: Mode, database: Database, level: str
) -> None:
    def work(session: Session) -> Any:
        insert(level)(session)
        return session.execute(text("SHOW transaction_isolation")).scalar_one()

    marked = unit_options(isolation=level)(endpoint(mode, work))
    recorder = await run_asgi(app_of(marked, database), "POST", "/work")

    assert (recorder.status, recorder.json()) == (201, "repeatable read")
    assert (
        await within(database, mode, lambda s: s.scalar(text("SHOW transaction_isolation")))
        == "read committed"
    )
    assert await within(database, mode, isolation_of, isolation="serializable") == "serializable"


def isolation_of(session: Session) -> Any:
    return session.scalar(text("SHOW transaction_isolation"))


@pytest.mark.backends("sqlite")
async def test_on_sqlite_every_level_is_the_one_writers(
    backend: Backend, mode: Mode, database: Database
) -> None:
    await within(database, mode, insert("nut"), isolation="read committed")

    assert names(backend) == ["nut"]


async def test_the_decorator_says_which_statuses_commit(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L1: beside those of the middleware, or instead of them."""
    plain = app_of(endpoint(mode, insert("plain"), 402), database, commit_on=[402])
    marked = app_of(
        unit_options(commit_on=[401])(endpoint(mode, insert("marked"), 401)), database, commit_on=[402]
    )
    instead = app_of(
        unit_options(commit_on=[401])(endpoint(mode, insert("instead"), 402)), database, commit_on=[402]
    )

    statuses = [(await run_asgi(app, "POST", "/work")).status for app in (plain, marked, instead)]

    assert statuses == [402, 401, 402]
    assert names(backend) == ["plain", "marked"]


async def test_the_decorator_says_whether_a_unit_reads_only(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L25."""
    writing = unit_options(read_only=False)(endpoint(mode, insert("by GET"), 200))
    reading = unit_options(read_only=True)(endpoint(mode, insert("by POST"), 200))

    assert (await run_asgi(app_of(writing, database), "GET", "/work")).status == 200
    recorder = await run_asgi(app_of(reading, database), "POST", "/work")

    assert recorder.json()["type"] == "/problems/read-only-unit"
    assert names(backend) == ["by GET"]


async def test_the_middleware_says_which_methods_read_only(
    backend: Backend, mode: Mode, database: Database
) -> None:
    app = app_of(endpoint(mode, insert("by GET"), 200), database, read_only_methods=["put"])

    assert (await run_asgi(app, "GET", "/work")).status == 200
    assert (await run_asgi(app, "PUT", "/work")).json()["type"] == "/problems/read-only-unit"
    assert names(backend) == ["by GET"]


async def test_a_snapshot_sees_one_moment(backend: Backend, mode: Mode, database: Database) -> None:
    def work(session: Session) -> tuple[int, int]:
        before = count(session)
        backend.execute("INSERT INTO items (name) VALUES ('meanwhile')")
        return before, count(session)

    plain = app_of(endpoint(mode, work, 200), database)
    marked = app_of(unit_options(snapshot=True)(endpoint(mode, work, 200)), database)

    assert (await run_asgi(plain, "GET", "/work")).json() == [0, 1]
    backend.execute("DELETE FROM items")
    assert (await run_asgi(marked, "GET", "/work")).json() == [0, 0]
    backend.execute("DELETE FROM items")
    assert await within(database, mode, work, read_only=True, snapshot=True) == (0, 0)
    assert await within(database, mode, count, read_only=True) == 1
    backend.wait_until_at_rest()


async def told_read_only(_: Request) -> Response:
    return JSONResponse(current_unit().options.read_only)


@unit_options(read_only=True)
async def marked(_: Request) -> Response:
    return await told_read_only(_)


class Marked(HTTPEndpoint):
    @unit_options(read_only=True)
    async def post(self, request: Request) -> Response:
        return await marked(request)

    async def put(self, request: Request) -> Response:
        return await told_read_only(request)


class MarkedAsAWhole:
    """An endpoint that is an object, called like a function."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def starlette_app(database: Database, middleware: type[Any]) -> Starlette:
    inner = Starlette(routes=[Route("/marked/{n}", marked, methods=["POST"])])
    routes: list[BaseRoute] = [
        Route("/other", told_read_only, methods=["POST"]),
        Route("/marked/{n:int}", marked, methods=["POST"]),
        Route("/marked/{n:int}", told_read_only, methods=["PUT"]),
        Route("/class", Marked),
        Mount("/mount", routes=[Mount("/deep", routes=[Route("/marked", marked, methods=["POST"])])]),
        Mount("/router", Router([Route("/marked", marked, methods=["POST"])])),
        Mount("/app", inner),
        Mount("/asgi", MarkedAsAWhole(inner)),
        Host("other.test", Router([Route("/host", marked, methods=["POST"])])),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(cast("Any", middleware))
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    return app


class Early:
    """A middleware that asks for the unit before routing has happened."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await current_session().run_sync(count)
            before = dict(scope["path_params"]) if "path_params" in scope else None
            assert before is None
        await self.app(scope, receive, send)


class Late:
    """A middleware that does nothing: the endpoint is known when it asks."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize("middleware", [Early, Late])
async def test_the_endpoint_is_found_before_and_after_routing(
    sqlite: SqliteBackend, connect: Connect, middleware: type[Any]
) -> None:
    make_tables(sqlite)
    app = starlette_app(connect(sqlite), middleware)

    async def read_only(method: str, path: str, **headers: str) -> Any:
        return (await run_asgi(app, method, path, headers=headers)).json()

    assert await read_only("POST", "/marked/1") is True
    assert await read_only("PUT", "/marked/1") is False
    assert await read_only("POST", "/other") is False
    assert await read_only("POST", "/class") is True
    assert await read_only("PUT", "/class") is False
    assert await read_only("POST", "/mount/deep/marked") is True
    assert await read_only("POST", "/router/marked") is True
    assert await read_only("POST", "/app/marked/1") is True
    assert await read_only("POST", "/host", host="other.test") is True
    assert (await run_asgi(app, "POST", "/nowhere")).status == 404


def fastapi_app(database: Database, middleware: type[Any]) -> fastapi.FastAPI:
    app = fastapi.FastAPI()
    inner, deeper = fastapi.APIRouter(prefix="/inner"), fastapi.APIRouter(prefix="/deeper")

    @app.post("/marked/{n}")
    @inner.post("/marked/{n}")
    @deeper.post("/marked/{n}")
    @unit_options(read_only=True)
    async def marked(n: int) -> bool:
        return current_unit().options.read_only

    @inner.post("/other")
    def other() -> bool:
        return current_unit().options.read_only

    inner.include_router(deeper)
    app.include_router(inner)
    app.add_middleware(cast("Any", middleware))
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    return app


@pytest.mark.parametrize("middleware", [Early, Late])
async def test_the_endpoint_is_found_in_fastapi_with_included_routers(
    sqlite: SqliteBackend, connect: Connect, middleware: type[Any]
) -> None:
    make_tables(sqlite)
    app = fastapi_app(connect(sqlite), middleware)

    for path, expected in {
        "/marked/1": True,
        "/inner/marked/1": True,
        "/inner/deeper/marked/1": True,
        "/inner/other": False,
    }.items():
        recorder = await run_asgi(app, "POST", path)
        assert (recorder.status, recorder.json()) == (200, expected)
    assert (await run_asgi(app, "POST", "/inner/nowhere")).status == 404


class Tunnelled(Route):
    """A route whose requests say in a header which method they mean."""

    def matches(self, scope: Any) -> Any:
        return super().matches(self._meant(scope))

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await super().handle(self._meant(scope), receive, send)

    def _meant(self, scope: Any) -> Any:
        return {**scope, "method": dict(scope["headers"])[b"x-method"].decode()}


functools.update_wrapper(Tunnelled.matches, Route.matches)  # as decorators do: it is still its own


@pytest.mark.parametrize("middleware", [Early, Late])
async def test_a_route_that_has_its_own_idea_of_methods_is_asked(
    sqlite: SqliteBackend, connect: Connect, middleware: type[Any]
) -> None:
    make_tables(sqlite)

    @unit_options(read_only=True)
    async def marked(_: Request) -> Response:
        return JSONResponse(current_unit().options.read_only)

    app = Starlette(routes=[Tunnelled("/marked", marked, methods=["PUT"])])
    app.add_middleware(cast("Any", middleware))
    app.add_middleware(UnitOfWorkMiddleware, database=connect(sqlite))

    assert (await run_asgi(app, "POST", "/marked", headers={"X-Method": "PUT"})).json() is True


async def test_the_options_are_found_where_starlettes_own_middleware_copies_the_request(
    sqlite: SqliteBackend, connect: Connect
) -> None:
    """BaseHTTPMiddleware runs the app in a task of its own."""
    make_tables(sqlite)

    class Copying(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    app = fastapi_app(connect(sqlite), Copying)

    assert (await run_asgi(app, "POST", "/marked/1")).json() is True


async def test_a_marked_endpoint_is_still_itself(sqlite: SqliteBackend) -> None:
    def plain() -> int:
        return 1

    assert unit_options(read_only=True)(plain) is plain
    assert plain() == 1
