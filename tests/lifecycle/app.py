"""The app under test, as a server process makes it from its environment: TESTS_PLAIN_URL, and
TESTS_POOL_SIZE for the size of each pool.

Every case is there twice, below `/async` and below `/sync`. Below `/handled` stands the same app
with a handler of its own for IntegrityError.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from sqlalchemy import Engine, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import Pool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.lifecycle import async_endings, async_units, sync_endings, sync_units
from tests.lifecycle.model import (
    MappedError,
    TellingObserver,
    attempt_told,
    count,
    counts,
    releases,
    request_name,
    told,
)
from tests.support.gate import install_commit_gate
from uow import Database, UnitOfWorkMiddleware, current_session, errors

HANDLED = "/handled"


def create_app() -> ASGIApp:
    """The app, with its pools watched from the first connection on."""
    install_commit_gate()
    for name, by in (("connect", 1), ("checkout", 1), ("checkin", -1)):
        event.listen(Pool, name, _counter(name, by))
    event.listen(Engine, "begin", _counter("begin", 1))
    database = Database(
        os.environ["TESTS_PLAIN_URL"],
        pool_size=int(os.environ["TESTS_POOL_SIZE"]),
        max_overflow=0,
        pool_timeout=25,
        observer=TellingObserver(),
    )
    plain, handled = _build(database), _build(database)
    handled.add_exception_handler(IntegrityError, _own_answer)
    return _Outermost(plain, handled)


def _build(database: Database) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            current_session()
        except errors.UnitOfWorkError as error:
            attempt_told("lifespan", "current_session", error)
        yield
        await database.dispose()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(UnitOfWorkMiddleware, database=database, commit_on={402})
    app.add_exception_handler(MappedError, _mapped_answer)
    for module in (async_endings, async_units):
        app.include_router(module.router, prefix="/async")
    for module in (sync_endings, sync_units):
        app.include_router(module.router, prefix="/sync")
    return app


async def _mapped_answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, MappedError)
    return Response(status_code=error.status)


async def _own_answer(request: Request, error: Exception) -> Response:
    status = int(request.query_params.get("handled", "418"))
    return JSONResponse({"own": type(error).__name__}, status)


def _counter(name: str, by: int) -> Any:
    def listener(*_: Any) -> None:
        count(name)
        if name in ("checkout", "checkin"):
            count("checked_out", by)

    return listener


class _Outermost:
    """Around everything: knows which requests are not yet through, background tasks included, and
    tells the tests.
    """

    def __init__(self, plain: ASGIApp, handled: ASGIApp) -> None:
        self._plain = plain
        self._handled = handled
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._plain(scope, receive, send)
            return
        name = parse_qs(scope["query_string"].decode()).get("name", [""])[0]
        if scope["path"] == "/seen":
            seen = {**counts, "in_flight": self._in_flight, "told": told(name)}
            await Response(json.dumps(seen))(scope, receive, send)
        elif scope["path"] == "/release":
            releases.pop(name)()
            await Response(status_code=204)(scope, receive, send)
        else:
            await self._count(name, scope, receive, send)

    async def _count(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        token = request_name.set(name)
        self._in_flight += 1
        try:
            if scope["path"].startswith(HANDLED):
                path = scope["path"].removeprefix(HANDLED)
                await self._handled({**scope, "path": path, "raw_path": path.encode()}, receive, send)
            else:
                await self._plain(scope, receive, send)
        finally:
            self._in_flight -= 1
            request_name.reset(token)
