"""The wiring of the service, and all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import Depends, FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.errors import ServerErrorMiddleware

from api import documentation, health, problem_pages, problems, security
from api.database import open_database
from api.items.router import router as items
from api.logging import RequestLogMiddleware, RequestObserver
from api.orders.router import router as orders
from api.outbox import relaying
from api.request_id import ProblemDocumentMiddleware
from api.settings import Settings, UnitOfWorkSettings
from api.slow_units import observer_of
from api.strict import strict_request
from uow import Database, UnitOfWorkMiddleware
from uow.idempotency import IdempotencyMiddleware, sweeping
from uow.outbox import Outbox
from uow.retry import Retry


def create_app(settings: Settings) -> FastAPI:
    """Wire the service: one database, one middleware stack, one router per feature."""
    observer = observer_of(settings.logging)
    storage = health.Storage(observer)
    database = open_database(settings, storage)
    outbox = settings.outbox.opened(database)
    app = FastAPI(
        title=settings.service.title,
        responses=problems.documented_everywhere(),
        **documentation.OPTIONS,
        lifespan=_running(outbox, observer, settings),
    )
    app.state.database, app.state.storage = database, storage
    app.state.require_if_match = settings.service.require_if_match
    # The last one added is the outermost: it sees what the client sees.
    _add_units(app, database, settings)
    # Not FastAPI's own argument: that one stands outside of all middleware, so nothing of it was logged.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.server.max_body_size)
    # The framework has one of these outside of all middleware, whose answers have none of its headers.
    app.add_middleware(ServerErrorMiddleware, handler=problems.internal_error)
    security.protect(app, settings.security)
    app.add_middleware(ProblemDocumentMiddleware)
    app.add_middleware(security.SecurityHeadersMiddleware, hsts_max_age=settings.security.hsts_max_age)
    app.add_middleware(RequestLogMiddleware)
    problems.register(app)
    guarded = security.described(settings.security)
    # Whoever probes the health may add what they like.
    for router in (items, orders):
        app.include_router(
            router, dependencies=[Depends(strict_request), *guarded.dependencies], responses=guarded.responses
        )
    app.include_router(problem_pages.router, dependencies=[Depends(strict_request)])
    app.include_router(health.router)
    app.include_router(documentation.router)
    return app


def _add_units(app: FastAPI, database: Database, settings: Settings) -> None:
    """A unit for each request, and inside of it the keys, whose rows it commits."""
    if settings.idempotency.enabled:
        options = settings.idempotency.options(request_limit=settings.server.max_body_size)
        app.add_middleware(IdempotencyMiddleware, **options)
    app.add_middleware(
        UnitOfWorkMiddleware,
        database=database,
        stream_timeout=settings.unit_of_work.stream_timeout,
        retry=_retry(settings.unit_of_work),
        deadline=settings.unit_of_work.deadline or None,
        rules=[rule.as_given() for rule in settings.unit_of_work.rules],
    )


def _retry(settings: UnitOfWorkSettings) -> Retry | None:
    """No handler here reaches outside of the database, so every route may run again."""
    if settings.retry_attempts == 1:
        return None
    return Retry(
        attempts=settings.retry_attempts,
        seconds=settings.retry_seconds,
        body_limit=settings.replay_body_limit,
    )


def _running(
    outbox: Outbox, observer: RequestObserver, settings: Settings
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keys = settings.idempotency
        every = keys.sweep_every if keys.enabled else 0
        listens = not settings.database.pooler
        async with (
            (database := outbox.database),
            sweeping(database, every=every),
            relaying(settings.outbox, outbox, listens=listens),
        ):
            with observer.watching():
                yield

    return lifespan
