"""Puts the handlers on an app."""

from fastapi import FastAPI
from sqlalchemy.exc import IntegrityError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from benchmarks.hazards.app import handlers, handlers_sync
from benchmarks.hazards.app.settings import handles_integrity_errors
from benchmarks.hazards.app.watch import Watch
from benchmarks.hazards.app.wiring import OutOfStock, SyncWiring, Wiring


def build(app: FastAPI, wiring: Wiring | SyncWiring) -> ASGIApp:
    """The peer's app with all handlers, watched."""
    if isinstance(wiring, Wiring):
        app.include_router(handlers.routes(wiring))
    else:
        app.include_router(handlers_sync.routes(wiring))

    @app.get("/ping")
    async def ping() -> dict[str, str]:
        return {"status": "up"}

    app.add_exception_handler(OutOfStock, _unprocessable)
    if handles_integrity_errors():
        app.add_exception_handler(IntegrityError, _conflict)
    return Watch(app)


async def _unprocessable(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 422)


async def _conflict(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "the app's own answer"}, 409)
