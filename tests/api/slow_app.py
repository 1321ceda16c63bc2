"""The service with endpoints that stand still inside of their unit until a test lets them go."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
from fastapi import FastAPI
from sqlalchemy import text

from api.app import create_app as create_service
from api.logging import configure_logging
from api.settings import load_settings
from tests.support.wait import wait_until
from uow import Database, current_session, current_sync_session

GO_ON = "TESTS_GO_ON"

_ANYTHING = text("SELECT 1")


def stand(name: str) -> None:
    """Wait for a file of this name."""
    path = Path(os.environ[GO_ON]) / name
    wait_until(path.exists, f"{path} is there")


def create_app() -> FastAPI:
    """The app as a server process makes it, from the environment."""
    settings = load_settings()
    configure_logging(settings.logging)
    app = create_service(settings)
    database: Database = app.state.database

    @app.post("/async/{name}")
    async def stand_async(name: str) -> None:
        await current_session().execute(_ANYTHING)
        await anyio.to_thread.run_sync(stand, name)

    @app.post("/sync/{name}")
    def stand_sync(name: str) -> None:
        current_sync_session().execute(_ANYTHING)
        stand(name)

    @app.get("/reading/{name}")
    async def stand_reading(name: str) -> None:
        await current_session().execute(_ANYTHING)
        await anyio.to_thread.run_sync(stand, name)

    @app.post("/blocking/{name}")
    async def block_the_loop(name: str) -> None:
        await current_session().execute(_ANYTHING)
        stand(name)

    @app.post("/unit/{name}")
    async def stand_in_another_unit(name: str) -> None:
        async with database.new_unit(name=f"job {name}") as unit:
            await unit.session.execute(_ANYTHING)
            await anyio.to_thread.run_sync(stand, name)

    return app
