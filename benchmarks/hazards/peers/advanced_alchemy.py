"""`AdvancedAlchemy` with `commit_mode="autocommit"`, and `Depends(alchemy.provide_session())`.

The wiring is that of its guide: https://advanced-alchemy.litestar.dev/latest/usage/frameworks/fastapi.html
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from advanced_alchemy.extensions.fastapi import (
    AdvancedAlchemy,
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
)
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.app.settings import async_url, engine_options
from benchmarks.hazards.app.wiring import AsyncGetter, Wiring


def create_app() -> ASGIApp:
    config = SQLAlchemyAsyncConfig(
        connection_string=async_url(),
        engine_config=EngineConfig(**engine_options()),
        session_config=AsyncSessionConfig(expire_on_commit=False),
        commit_mode="autocommit",
    )
    app = FastAPI()
    alchemy = AdvancedAlchemy(config=config, app=app)

    async def give(session: Annotated[AsyncSession, Depends(alchemy.provide_session())]) -> AsyncGetter:
        async def get() -> AsyncSession:
            return session

        return get

    @asynccontextmanager
    async def own() -> AsyncIterator[AsyncSession]:
        async with alchemy.with_async_session() as session:
            yield session
            await session.commit()

    return build(app, Wiring(give, own))
