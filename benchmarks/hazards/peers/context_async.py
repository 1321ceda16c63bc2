"""The middleware for FastAPI, and `db_session(connection)` wherever a session is needed.

The wiring is that of its guide: https://krylosov-aa.github.io/context-async-sqlalchemy/getting_started/
which has `pool_pre_ping`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from context_async_sqlalchemy import (
    DBConnect,
    db_session,
    new_non_ctx_atomic_session,
)
from context_async_sqlalchemy.fastapi_utils import (
    add_fastapi_http_db_session_middleware,
)
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.app.settings import async_url, engine_options
from benchmarks.hazards.app.wiring import AsyncGetter, Wiring


def create_engine(host: str) -> AsyncEngine:
    return create_async_engine(async_url(), pool_pre_ping=True, **engine_options())


def create_session_maker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)


connection = DBConnect(
    host="127.0.0.1", engine_creator=create_engine, session_maker_creator=create_session_maker
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await connection.close()


async def session() -> AsyncSession:
    return await db_session(connection)


async def give() -> AsyncGetter:
    return session


WIRING = Wiring(give, lambda: new_non_ctx_atomic_session(connection))


def create_app() -> ASGIApp:
    app = FastAPI(lifespan=lifespan)
    add_fastapi_http_db_session_middleware(app)
    return build(app, WIRING)
