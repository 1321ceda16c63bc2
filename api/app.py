"""The wiring of the service, and all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from api import health, problems
from api.items.router import router as items
from api.logging import RequestLogMiddleware, RequestObserver
from api.orders.router import router as orders
from api.settings import Settings
from uow import Database, UnitOfWorkMiddleware


def create_app(settings: Settings) -> FastAPI:
    """Wire the service: one database, one middleware stack, one router per feature."""
    database = Database(
        settings.database.url,
        **settings.database.pool(),
        settle_timeout=settings.unit_of_work.settle_timeout,
        observer=RequestObserver(),
    )
    app = FastAPI(
        title=settings.service.title,
        summary="Items with stock, and orders that reserve it.",
        responses=problems.documented_everywhere(),
        lifespan=_closing(database),
    )
    app.state.database = database
    # The last one added is the outermost: it sees what the client sees.
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    app.add_middleware(RequestLogMiddleware)
    problems.register(app)
    app.include_router(items)
    app.include_router(orders)
    app.include_router(health.router)
    return app


def _closing(database: Database) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with database:
            yield

    return lifespan
