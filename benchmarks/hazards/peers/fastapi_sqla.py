"""`setup_middlewares`, and `AsyncSession` as a parameter; the engine is configured by environment variables.

The wiring is that of its README: https://github.com/dialoguemd/fastapi-sqla#quick-example
It asks for a FastAPI below 0.142, so it has an environment of its own.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fastapi_sqla
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.app.settings import async_url, engine_options
from benchmarks.hazards.app.wiring import AsyncGetter, Wiring


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await fastapi_sqla.startup()
    yield


def create_app() -> ASGIApp:
    for name, value in {"url": async_url(), **engine_options()}.items():
        os.environ[f"sqlalchemy_{name}"] = str(value)
    app = FastAPI(lifespan=lifespan)
    fastapi_sqla.setup_middlewares(app)

    async def give(session: fastapi_sqla.AsyncSession) -> AsyncGetter:
        async def get() -> AsyncSession:
            return session

        return get

    return build(app, Wiring(give, fastapi_sqla.open_async_session))
