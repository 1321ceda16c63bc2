"""What the start-up check finds is worth a warning: each of these apps breaks a promise."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm.exc import DetachedInstanceError
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.asgi import run_asgi
from tests.support.backends import SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.units import Item, insert, make_tables, names
from uow import Database, UnitOfWorkMiddleware, UnitSession, current_session
from uow.wiring import check_wiring


class Expiring(UnitSession):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "expire_on_commit": True})


async def add(request: Request) -> Response:
    await current_session().run_sync(insert("nut"))
    return Response(status_code=201)


@pytest.fixture
def database(sqlite: SqliteBackend, connect: Connect) -> Database:
    make_tables(sqlite)
    return connect(sqlite)


def stacked(route: Route, *outermost_first: Middleware) -> Starlette:
    return Starlette(routes=[route], middleware=outermost_first)


def codes(app: Starlette) -> list[str]:
    return [finding.code for finding in check_wiring(app)]


async def test_a_middleware_around_takes_an_answer_back(sqlite: SqliteBackend, database: Database) -> None:
    async def undo(request: Request, call_next: Any) -> Response:
        await call_next(request)
        return Response(status_code=500)

    around = Middleware(BaseHTTPMiddleware, dispatch=undo)
    ours = Middleware(UnitOfWorkMiddleware, database=database)
    kept = []
    for order in ((ours, around), (around, ours)):
        app = stacked(Route("/", add, methods=["PUT"]), *order)
        assert (await run_asgi(app, "PUT", "/")).status == 500
        kept.append((codes(app), names(sqlite)))

    assert kept == [([], []), (["base-http-middleware-around"], ["nut"])]


async def test_a_problem_document_that_browsers_keep_to_themselves(
    sqlite: SqliteBackend, database: Database
) -> None:
    sqlite.execute("INSERT INTO items (name) VALUES ('nut')")
    cors = Middleware(CORSMiddleware, allow_origins=["*"])
    ours = Middleware(UnitOfWorkMiddleware, database=database)
    seen = []
    for order in ((cors, ours), (ours, cors)):
        app = stacked(Route("/", add, methods=["PUT"]), *order)
        answer = await run_asgi(app, "PUT", "/", headers={"Origin": "http://example.org"})
        seen.append((codes(app), answer.status, "access-control-allow-origin" in answer.headers))

    assert seen == [([], 409, True), (["middleware-order"], 409, False)]


async def test_a_success_that_is_made_behind_our_back(sqlite: SqliteBackend, database: Database) -> None:
    class Redirecting(HTTPEndpoint):
        async def put(self, request: Request) -> Response:
            await current_session().run_sync(insert(request.url.path))
            raise HTTPException(303)

    ours = Middleware(UnitOfWorkMiddleware, database=database)
    around_the_app = stacked(Route("/app", Redirecting), ours)
    around_the_route = stacked(Route("/route", Redirecting, middleware=[ours]))
    assert (await run_asgi(around_the_app, "PUT", "/app")).status == 303
    assert (await run_asgi(around_the_route, "PUT", "/route")).status == 303

    assert names(sqlite) == ["/app"]
    assert (codes(around_the_app), codes(around_the_route)) == ([], ["middleware-order"])


@pytest.mark.parametrize(("session_class", "code"), [(UnitSession, []), (Expiring, ["expires-on-commit"])])
async def test_objects_that_have_expired(
    sqlite: SqliteBackend, connect: Connect, session_class: type[UnitSession], code: list[str]
) -> None:
    make_tables(sqlite)
    database = connect(sqlite, session_class=session_class)
    async with database.new_unit() as unit:
        item = Item(name="nut")
        unit.session.add(item)

    app = stacked(Route("/", add), Middleware(UnitOfWorkMiddleware, database=database))
    assert codes(app) == code
    if code:
        with pytest.raises(DetachedInstanceError):
            assert item.name == "nut"
    else:
        assert item.name == "nut"
