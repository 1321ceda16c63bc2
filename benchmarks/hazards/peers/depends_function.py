"""A session from a dependency with `yield` whose exit runs before the answer is sent.

The wiring is FastAPI's own, with the commit that projects add to it:
https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/#early-exit-and-scope
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

    async def give(session: AsyncSession = Depends(get_db, scope="function")) -> AsyncGetter:
        async def get() -> AsyncSession:
            return session

        return get

    @asynccontextmanager
    async def own() -> AsyncIterator[AsyncSession]:
        async with make_session.begin() as session:
            yield session

    return build(FastAPI(), Wiring(give, own))
