"""A request leaves nothing behind that only a garbage collection would find."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI, HTTPException
from sqlalchemy import text
from starlette.responses import StreamingResponse

from tests.support.asgi import run_asgi
from tests.support.backends import Mode
from tests.uow.units import garbage, insert, within
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session

pytestmark = pytest.mark.backends("sqlite", "pg18")


def _app(database: Database, mode: Mode) -> FastAPI:
    app = FastAPI()
    app.add_middleware(UnitOfWorkMiddleware, database=database)

    @app.get("/streamed")
    async def streamed() -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            yield "a"
            yield str(await current_session().scalar(text("SELECT 1")))

        return StreamingResponse(rows())

    async def insert_async(status: int) -> None:
        await current_session().run_sync(insert("row"))
        _fail(status)

    def insert_sync(status: int) -> None:
        insert("row")(current_sync_session())
        _fail(status)

    app.post("/{status}")(insert_async if mode == "async" else insert_sync)
    return app


def _fail(status: int) -> None:
    if status >= 400:
        raise HTTPException(status)


@pytest.mark.parametrize("request_line", ["POST /200", "POST /409", "GET /streamed"])
async def test_L18_nothing_of_a_unit_waits_for_the_garbage_collector(
    database: Database, mode: Mode, request_line: str
) -> None:
    app = _app(database, mode)
    method, path = request_line.split()

    async def ask(times: int) -> None:
        for _ in range(times):
            assert (await run_asgi(app, method, path)).complete

    await within(database, mode, insert("warm"))
    await ask(3)
    gc.collect()
    gc.disable()
    try:
        await ask(5)
        left = garbage()
    finally:
        gc.enable()

    assert left == []
