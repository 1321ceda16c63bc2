"""Apps whose one request touches no database: bare, with an empty middleware, and with `uow`."""

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from uow import Database, UnitOfWorkMiddleware


class EmptyMiddleware:
    """The least that any ASGI middleware costs: one call that hands on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def bare_app() -> FastAPI:
    app = FastAPI()

    @app.get("/ping")
    async def ping() -> dict[str, str]:
        return {"answer": "pong"}

    return app


def app_with_empty_middleware() -> FastAPI:
    app = bare_app()
    app.add_middleware(EmptyMiddleware)
    return app


def app_with_idle_uow(database: Database) -> FastAPI:
    app = bare_app()
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    return app
