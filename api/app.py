"""The wiring of the service, and all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from api import health, problem_pages, problems
from api.database import open_database
from api.items.router import router as items
from api.logging import RequestLogMiddleware, RequestObserver
from api.orders.router import router as orders
from api.request_id import ProblemDocumentMiddleware
from api.settings import Settings
from api.strict import strict_request
from uow import Database, UnitOfWorkMiddleware

MAX_BODY_SIZE = 1024 * 1024


def create_app(
    settings: Settings, *, require_if_match: bool = False, max_body_size: int = MAX_BODY_SIZE
) -> FastAPI:
    """Wire the service: one database, one middleware stack, one router per feature.

    With `require_if_match` nobody edits what they have not seen; longer bodies than `max_body_size`
    bytes are refused.
    """
    database = open_database(settings, RequestObserver())
    app = FastAPI(
        title=settings.service.title,
        summary="Items with stock, and orders that reserve it.",
        responses=problems.documented_everywhere(),
        lifespan=_closing(database),
    )
    app.state.database = database
    app.state.require_if_match = require_if_match
    # The last one added is the outermost: it sees what the client sees.
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    # Not FastAPI's own argument: that one stands outside of all middleware, so nothing of it was logged.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=max_body_size)
    app.add_middleware(ProblemDocumentMiddleware)
    app.add_middleware(RequestLogMiddleware)
    problems.register(app)
    # Whoever probes the health may add what they like.
    for router in (items, orders, problem_pages.router):
        app.include_router(router, dependencies=[Depends(strict_request)])
    app.include_router(health.router)
    return app


def _closing(database: Database) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with database:
            yield

    return lifespan
