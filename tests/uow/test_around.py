"""What stands around the middleware: limits, logs, and other middlewares."""

from __future__ import annotations

import logging

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.support.asgi import run_asgi
from tests.support.backends import Backend
from tests.uow.units import insert, names
from uow import Database, UnitOfWorkMiddleware, current_session, current_unit

pytestmark = pytest.mark.backends("sqlite", "pg18")


@pytest.mark.parametrize(("announced", "status", "kept"), [(11, 413, []), (10, 200, ["kept"])])
async def test_L2_a_body_over_the_limit_of_the_app_keeps_nothing_though_nobody_has_read_it(
    backend: Backend, database: Database, announced: int, status: int, kept: list[str]
) -> None:
    """Starlette answers 413 outside of all middleware, whatever the endpoint has answered."""

    async def create(request: Request) -> Response:
        await current_session().run_sync(insert("kept"))
        return PlainTextResponse("created")

    app = Starlette(routes=[Route("/work", create, methods=["POST"])], max_body_size=10)
    app.add_middleware(UnitOfWorkMiddleware, database=database)

    headers = {"content-length": str(announced)}
    recorder = await run_asgi(app, "POST", "/work", headers=headers, body=[b"x" * announced])

    assert recorder.status == status
    assert names(backend) == kept


async def test_a_filter_of_the_log_may_ask_for_the_unit_that_is_being_made(
    backend: Backend, database: Database
) -> None:
    """The wiring is looked at with the first unit where there is no start-up, and what it finds is logged."""
    seen: list[str] = []

    def remember(record: logging.LogRecord) -> bool:
        seen.append(current_unit().name)
        return True

    async def create(request: Request) -> Response:
        await current_session().run_sync(insert("kept"))
        return PlainTextResponse("created")

    app = Starlette(routes=[Route("/work", create, methods=["POST"])])
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    logging.getLogger("uow").addFilter(remember)
    try:
        recorder = await run_asgi(app, "POST", "/work")
    finally:
        logging.getLogger("uow").removeFilter(remember)

    assert recorder.status == 200
    assert set(seen) == {"POST /work"}
