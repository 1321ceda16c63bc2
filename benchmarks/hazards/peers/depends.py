"""A session from a dependency with `yield`, committed at its exit.

The wiring is FastAPI's own: https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/
with the commit that projects add to it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.app.settings import async_url, engine_options
from benchmarks.hazards.app.wiring import AsyncGetter, Wiring


def create_app() -> ASGIApp:
    engine = create_async_engine(async_url(), **engine_options())
    make_session = async_sessionmaker(engine, expire_on_commit=False)

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with make_session() as session:
            try:
                yield session
                await session.commit()
            except Exception:
                await session.rollback()
                raise

    async def give(session: AsyncSession = Depends(get_db)) -> AsyncGetter:
        async def get() -> AsyncSession:
            return session

        return get

    @asynccontextmanager
    async def own() -> AsyncIterator[AsyncSession]:
        async with make_session.begin() as session:
            yield session

    return build(FastAPI(), Wiring(give, own))
