"""`DatabaseContext` in the lifespan, `SessionMiddleware`, and `SessionDependency` as a parameter.

The wiring is that of its README: https://github.com/abhiaagarwal/asgi-sqlalchemy#fastapi
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgi_sqlalchemy import (
    DatabaseContext,
    SessionMiddleware,
)
from asgi_sqlalchemy.fastapi import (
    SessionDependency,
)
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.app.settings import async_url, engine_options
from benchmarks.hazards.app.wiring import AsyncGetter, Wiring


async def give(session: SessionDependency) -> AsyncGetter:
    async def get() -> AsyncSession:
        return session

    return get


def create_app() -> ASGIApp:
    database = DatabaseContext(async_url(), engine_kwargs=engine_options())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with database as db:
            yield {"db": db}

    @asynccontextmanager
    async def own() -> AsyncIterator[AsyncSession]:
        async with database.session_maker.begin() as session:
            yield session

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(SessionMiddleware)
    return build(app, Wiring(give, own))
