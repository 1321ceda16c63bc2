"""An app of `def` endpoints on a small pool: each of them blocks its thread while it waits for the database.

What a framework does between two steps of a `def` endpoint (dependencies, exception handlers, the validation
of an answer, the chunks of a stream) takes a thread as well, while the unit has its connection.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Depends, FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.variant import retry_of_this_run
from uow import Database, UnitOfWorkMiddleware, current_sync_session, on_commit

CHUNKS = 3
SLOW = {
    "postgresql": "SELECT pg_sleep(0.005)",
    "sqlite": "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 999) SELECT 1 FROM c",
}
COUNT = text("UPDATE counters SET n = n + 1 WHERE id = 1")
ADD = text("INSERT INTO items (name) VALUES (:name)")


class Name(BaseModel):
    name: str


class Counting:
    """Counts the requests that are in the app."""

    inside = 0

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        Counting.inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            Counting.inside -= 1


def add(name: str) -> None:
    """Wait for the one row that all of them want, and add a row of one's own."""
    current_sync_session().execute(COUNT)
    current_sync_session().execute(ADD, {"name": name})


def keep(request: Request, name: str) -> Response:
    add(name)
    called: list[str] = request.app.state.called
    on_commit(lambda: called.append(name))  # in a thread, because it was registered in one
    return JSONResponse({"name": name}, 201)


def refuse(name: str) -> Response:
    add(name)
    return JSONResponse({"name": name}, 409)


def clash(name: str) -> Response:
    """What the database refuses goes to a handler of the app, when the unit is settled."""
    add(name)
    current_sync_session().execute(text("INSERT INTO later (item) VALUES (-1)"))
    return JSONResponse({"name": name}, 201)


def validated(name: str) -> Any:
    add(name)
    return {"name": name}


def raising(name: str) -> Response:
    add(name)
    raise KeyError(name)


def counted() -> None:
    current_sync_session().execute(COUNT)


def depending(name: str, _: Annotated[None, Depends(counted)]) -> Response:
    current_sync_session().execute(ADD, {"name": name})
    return JSONResponse({"name": name}, 201)


def read(name: str) -> Response:
    current_sync_session().execute(text(SLOW[current_sync_session().get_bind().dialect.name]))
    return JSONResponse({"name": name})


def stream(name: str) -> Response:
    def chunks() -> Iterator[bytes]:
        for number in range(CHUNKS):
            read(name)
            yield f"{name} {number}\n".encode()

    return StreamingResponse(chunks())


def stream_on(name: str) -> Response:
    """As `stream`, with a unit that was there before the first chunk."""
    read(name)
    return stream(name)


def park(request: Request, name: str) -> Response:
    """Stand in the thread, for a reason that the database does not know."""
    gate: threading.Event = request.app.state.gate
    gate.wait()
    return JSONResponse({"name": name})


async def unpark(request: Request) -> None:
    request.app.state.gate.set()


async def livez() -> dict[str, bool]:
    return {"alive": True}


async def state(request: Request) -> dict[str, Any]:
    threads = anyio.to_thread.current_default_thread_limiter().statistics()
    return {
        "inside": Counting.inside - 2,  # without this request and the lifespan
        "called": len(request.app.state.called),
        "threads": threads.borrowed_tokens,
    }


def conflict(_: Request, __: Exception) -> Response:
    return JSONResponse({}, 409)


def create_app() -> FastAPI:
    """The app as a server process makes it, from the environment of `backend.environment()`."""
    # The wait is longer than that of the clients: nobody is to be saved by a 503.
    database = Database(os.environ["TESTS_PLAIN_URL"], pool_size=5, max_overflow=0, pool_timeout=120)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with database:
            yield

    app = FastAPI(lifespan=lifespan)
    app.state.called = []
    app.state.gate = threading.Event()
    for endpoint in (keep, refuse, clash, raising, depending):
        app.add_api_route(f"/{endpoint.__name__}/{{name}}", endpoint, methods=["POST"])
    app.add_api_route("/validated/{name}", validated, methods=["POST"], response_model=Name, status_code=201)
    app.add_api_route("/read/{name}", read)
    app.add_api_route("/stream/{name}", stream)
    app.add_api_route("/stream_on/{name}", stream_on)
    app.add_api_route("/park/{name}", park)
    app.add_api_route("/unpark", unpark)
    app.add_api_route("/livez", livez)
    app.add_api_route("/state", state)
    app.add_exception_handler(IntegrityError, conflict)
    app.add_exception_handler(KeyError, conflict)
    app.add_middleware(UnitOfWorkMiddleware, database=database, retry=retry_of_this_run())
    app.add_middleware(Counting)
    return app
