"""The cases behind different arrangements of frameworks and middlewares, each under a name."""

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from pydantic import TypeAdapter
from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from tests.lifecycle import (
    async_endings,
    async_streams,
    async_turns,
    async_units,
    sync_endings,
    sync_streams,
    sync_turns,
    sync_units,
    web_sockets,
)
from tests.lifecycle.model import MappedError, attempt_told
from tests.support.variant import retry_of_this_run
from tests.support.wait import LIMIT
from uow import Database, UnitOfWorkMiddleware, current_session, errors

ROUTERS: dict[str, tuple[APIRouter, ...]] = {
    "async": (async_endings.router, async_streams.router, async_turns.router, async_units.router),
    "sync": (sync_endings.router, sync_streams.router, sync_turns.router, sync_units.router),
}
OUT_OF_PATIENCE = 1.0  # seconds that the stack "impatient" gives a stream


def make(name: str, database: Database) -> ASGIApp:
    """The stack of this name; with "-handled" at its end it has a handler of its own for IntegrityError."""
    stack = name.removesuffix("-handled")
    app = _STACKS[stack](database)
    if name != stack:
        for each in _apps(app):
            each.add_exception_handler(IntegrityError, _own_answer)
    return app


def _apps(app: Starlette) -> list[Starlette]:
    """The app and what is mounted in it."""
    mounted = (route.app for route in app.routes if isinstance(route, Mount))
    return [app, *(each for each in mounted if isinstance(each, Starlette))]


def _ours(app: Starlette, database: Database, **options: Any) -> None:
    retry = retry_of_this_run()
    app.add_middleware(UnitOfWorkMiddleware, database=database, commit_on={402}, retry=retry, **options)


def _fastapi(database: Database, *modes: str) -> FastAPI:
    """The cases without our middleware: of one mode at its root, of several each below its name."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            current_session()
        except errors.UnitOfWorkError as error:
            attempt_told("lifespan", "current_session", error)
        yield
        await database.dispose()

    app = FastAPI(lifespan=lifespan)
    app.add_exception_handler(MappedError, _mapped_answer)
    for mode in modes or ROUTERS:
        prefix = "" if modes else f"/{mode}"
        for router in (*ROUTERS[mode], web_sockets.ROUTERS[mode]):
            app.include_router(router, prefix=prefix)
    return app


def _plain(database: Database, **options: Any) -> Starlette:
    app = _fastapi(database)
    _ours(app, database, **options)
    return app


def _impatient(database: Database) -> Starlette:
    return _plain(database, stream_timeout=OUT_OF_PATIENCE)


def _patient(database: Database) -> Starlette:
    return _plain(database, stream_timeout=LIMIT)


def _starlette(database: Database) -> Starlette:
    """No FastAPI at all: its endpoints as Starlette's own."""
    routes = [
        Route(f"/{mode}{route.path}", _as_starlette(route.endpoint), methods=list(route.methods or ()))
        for mode, routers in ROUTERS.items()
        for router in routers
        for route in router.routes
        if isinstance(route, Route)
    ]
    app = Starlette(routes=routes, exception_handlers={MappedError: _mapped_answer})
    _ours(app, database)
    return app


def _mounted(database: Database) -> Starlette:
    """A FastAPI for each mode inside a Starlette that has our middleware."""
    app = Starlette(routes=[Mount(f"/{mode}", _fastapi(database, mode)) for mode in ROUTERS])
    _ours(app, database)
    return app


def _mounted_with_ours(database: Database) -> Starlette:
    """A FastAPI for each mode that has our middleware, inside a Starlette that does not know of it."""
    apps = {mode: _fastapi(database, mode) for mode in ROUTERS}
    for app in apps.values():
        _ours(app, database)
    outside = [Route(f"/{mode}/outside", _asks_outside) for mode in apps]
    return Starlette(routes=[*outside, *(Mount(f"/{mode}", app) for mode, app in apps.items())])


async def _asks_outside(request: Request) -> Response:
    try:
        current_session()
    except errors.UnitOfWorkError as error:
        attempt_told(request.query_params["name"], "current_session", error)
    return Response()


def _theirs_inside(database: Database) -> Starlette:
    app = _fastapi(database)
    app.add_middleware(Theirs)
    _ours(app, database)  # what is added last is outermost
    return app


def _theirs_outside(database: Database) -> Starlette:
    app = _fastapi(database)
    _ours(app, database)
    app.add_middleware(Theirs)
    return app


_STACKS: dict[str, Callable[[Database], Starlette]] = {
    "plain": _plain,
    "impatient": _impatient,
    "patient": _patient,
    "starlette": _starlette,
    "mounted": _mounted,
    "mounted-with-ours": _mounted_with_ours,
    "theirs-inside": _theirs_inside,
    "theirs-outside": _theirs_outside,
}


class Theirs(BaseHTTPMiddleware):
    """A middleware of the user's: reads the body, marks the answer, or says something else instead."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """`says`: the status that it answers with, whatever the app says or raises."""
        await request.body()
        says = request.query_params.get("says")
        try:
            response = await call_next(request)
        except Exception:
            if says is None:
                raise
        else:
            response.headers["x-theirs"] = "yes"
            if says is None:
                return response
        return Response(status_code=int(says))


async def _mapped_answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, MappedError)
    return Response(status_code=error.status)


async def _own_answer(request: Request, error: Exception) -> Response:
    status = int(request.query_params.get("handled", "418"))
    return JSONResponse({"own": type(error).__name__}, status)


def _as_starlette(endpoint: Callable[..., Any]) -> Callable[[Request], Any]:
    """The endpoint with its parameters taken from the query; `wraps` keeps what `unit_options` marked."""
    parameters = inspect.signature(endpoint).parameters.values()

    def arguments(request: Request) -> dict[str, Any]:
        query = request.query_params
        given = {
            p.name: TypeAdapter(p.annotation).validate_python(query[p.name])
            for p in parameters
            if p.name in query
        }
        return given | {p.name: request for p in parameters if p.annotation is Request}

    def response(result: Any) -> Response:
        return result if isinstance(result, Response) else JSONResponse(result)

    @functools.wraps(endpoint)
    async def handle(request: Request) -> Response:
        return response(await endpoint(**arguments(request)))

    @functools.wraps(endpoint)
    def handle_sync(request: Request) -> Response:
        return response(endpoint(**arguments(request)))

    return handle if inspect.iscoroutinefunction(endpoint) else handle_sync
