"""`UnitOfWorkMiddleware`, and `current_session()` wherever a session is needed.

The wiring is that of the README: ../../../README.md
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.app.settings import engine_options, plain_url
from benchmarks.hazards.app.wiring import AsyncGetter, Wiring
from uow import Database, UnitOfWorkMiddleware, current_session, new_unit


async def session() -> AsyncSession:
    return current_session()


async def give() -> AsyncGetter:
    return session


@asynccontextmanager
async def own() -> AsyncIterator[AsyncSession]:
    async with new_unit() as unit:
        yield unit.session


def create_app() -> ASGIApp:
    database = Database(plain_url(), **engine_options())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with database:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    return build(app, Wiring(give, own))
