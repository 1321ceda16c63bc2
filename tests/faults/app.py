"""The app that the fault tests run in server processes: one database, async and sync endpoints side by side.

`/async/...` uses `current_session()`, `/sync/...` uses `current_sync_session()` in a worker thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.gate import install_commit_gate
from tests.support.variant import retry_of_this_run
from uow import Database, UnitOfWork, UnitOfWorkMiddleware, current_session, current_sync_session
from uow.observe import Settlement, UnitObserver

SCHEMA = (
    "CREATE TABLE items (id {serial} PRIMARY KEY, name VARCHAR(50) UNIQUE NOT NULL)",
    "CREATE TABLE counters (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)",
    "INSERT INTO counters VALUES (1, 0)",
)


def schema(dialect: str) -> tuple[str, ...]:
    serial = "SERIAL" if dialect == "postgresql" else "INTEGER"
    return tuple(statement.format(serial=serial) for statement in SCHEMA)


class Told(UnitObserver):
    """An observer that can be asked over HTTP what it was told."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str | None] = {}
        self.gone: list[str] = []

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        self.outcomes[unit.name] = unit.outcome

    def client_gone(self, unit: UnitOfWork) -> None:
        self.gone.append(unit.name)


def insert(session: Session, name: str) -> None:
    session.execute(text("INSERT INTO items (name) VALUES (:name)"), {"name": name})


def increment(session: Session) -> int:
    """Read, change in Python, write: what loses updates where two may read the same value."""
    n = int(session.execute(text("SELECT n FROM counters WHERE id = 1")).scalar_one())
    session.execute(text("UPDATE counters SET n = :n WHERE id = 1"), {"n": n + 1})
    return n + 1


async def add_async(request: Request) -> Response:
    name = request.path_params["name"]
    await current_session().run_sync(insert, name)
    return JSONResponse({"name": name}, int(request.query_params.get("status", 201)))


def add_sync(request: Request) -> Response:
    name = request.path_params["name"]
    insert(current_sync_session(), name)
    return JSONResponse({"name": name}, int(request.query_params.get("status", 201)))


async def increment_async(_: Request) -> Response:
    return JSONResponse({"n": await current_session().run_sync(increment)})


def increment_sync(_: Request) -> Response:
    return JSONResponse({"n": increment(current_sync_session())})


async def stream_async(request: Request) -> Response:
    await current_session().run_sync(insert, request.path_params["name"])
    return StreamingResponse(iter([b"a", b"b"]), 201)


def stream_sync(request: Request) -> Response:
    insert(current_sync_session(), request.path_params["name"])
    return StreamingResponse(iter([b"a", b"b"]), 201)


async def stand_async(request: Request) -> Response:
    """Write, and then stand still until somebody cancels."""
    await current_session().run_sync(insert, request.path_params["name"])
    request.app.state.standing.append(request.path_params["name"])
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


async def wait_for_disconnect(request: Request) -> Response:
    """Write, notice that the client has gone, and answer all the same."""
    name = request.path_params["name"]
    await current_session().run_sync(insert, name)
    request.app.state.standing.append(name)
    while not await request.is_disconnected():  # noqa: ASYNC110 - Starlette has no event for it
        await anyio.sleep(0.01)
    return JSONResponse({"name": name}, int(request.query_params.get("status", 201)))


def state(request: Request) -> Response:
    """What the observer was told, and who stands still."""
    told: Told = request.app.state.told
    return JSONResponse(
        {"outcomes": told.outcomes, "gone": told.gone, "standing": request.app.state.standing}
    )


def make_app(database: Database, told: Told) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with database:
            yield

    def post(path: str, endpoint: Callable[[Request], Any]) -> Route:
        return Route(path, endpoint, methods=["POST"])

    routes = [
        post("/async/items/{name}", add_async),
        post("/sync/items/{name}", add_sync),
        post("/async/increment", increment_async),
        post("/sync/increment", increment_sync),
        post("/async/stream/{name}", stream_async),
        post("/sync/stream/{name}", stream_sync),
        post("/async/stand/{name}", stand_async),
        post("/async/until-gone/{name}", wait_for_disconnect),
        Route("/state", state),
    ]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.told = told
    app.state.standing = []
    app.add_middleware(UnitOfWorkMiddleware, database=database, retry=retry_of_this_run())
    return app


def create_app() -> Starlette:
    """The app as a server process makes it, from the environment of `backend.environment()`."""
    install_commit_gate()
    told = Told()
    return make_app(Database(os.environ["TESTS_PLAIN_URL"], observer=told), told)
