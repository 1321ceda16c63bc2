"""`SQLAlchemyMiddleware` with `commit_on_exit`, and the global `db`.

The wiring is that of its README: https://github.com/h0rn3t/fastapi-async-sqlalchemy#examples
which has `pool_pre_ping`, and opens `db()` for work outside the request.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_async_sqlalchemy import (
    SQLAlchemyMiddleware,
    db,
)
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.app.settings import async_url, engine_options
from benchmarks.hazards.app.wiring import AsyncGetter, Wiring


def create_app() -> ASGIApp:
    app = FastAPI()
    app.add_middleware(
        SQLAlchemyMiddleware,
        db_url=async_url(),
        engine_args={"pool_pre_ping": True, **engine_options()},
        commit_on_exit=True,
    )

    async def session() -> AsyncSession:
        return db.session

    async def give() -> AsyncGetter:
        return session

    @asynccontextmanager
    async def own() -> AsyncIterator[AsyncSession]:
        async with db(commit_on_exit=True):
            yield db.session

    return build(app, Wiring(give, own))
