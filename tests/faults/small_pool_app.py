"""An app whose writers hold their connection for 200 ms, on a pool that is far too small for a rush."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from uow import Database, UnitOfWork, UnitOfWorkMiddleware, current_session, current_sync_session
from uow.observe import Settlement, UnitObserver

HELD = 0.2  # seconds
ADD = text("INSERT INTO items (name) VALUES (:name)")
HOLD = text(f"SELECT pg_sleep({HELD})")


class Told(UnitObserver):
    """Counts."""

    def __init__(self) -> None:
        self.connected_units = 0
        self.open: set[UnitOfWork] = set()

    def connected(self, unit: UnitOfWork, waited: float) -> None:
        self.connected_units += 1
        self.open.add(unit)

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        self.open.discard(unit)


async def add_async(request: Request, name: str) -> Response:
    await current_session().execute(ADD, {"name": name})
    await (current_session().execute(HOLD) if _on_postgres(request) else anyio.sleep(HELD))
    return JSONResponse({"name": name}, 201)


def add_sync(request: Request, name: str) -> Response:
    current_sync_session().execute(ADD, {"name": name})
    if _on_postgres(request):
        current_sync_session().execute(HOLD)
    else:
        time.sleep(HELD)
    return JSONResponse({"name": name}, 201)


def _on_postgres(request: Request) -> bool:
    database: Database = request.app.state.database
    return database.url.get_backend_name() == "postgresql"


async def livez() -> dict[str, bool]:
    return {"alive": True}


async def state(request: Request) -> dict[str, int]:
    told: Told = request.app.state.told
    return {
        "waiting": len(request.app.state.database.waiting),
        "open": len(told.open),
        "connected": told.connected_units,
    }


def create_app() -> FastAPI:
    """The app as a server process makes it; TESTS_POOL are the options of the pool, as JSON."""
    told = Told()
    options: dict[str, Any] = json.loads(os.environ["TESTS_POOL"])
    database = Database(os.environ["TESTS_PLAIN_URL"], observer=told, **options)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with database:
            yield

    app = FastAPI(lifespan=lifespan)
    app.state.database, app.state.told = database, told
    app.add_api_route("/async/{name}", add_async, methods=["POST"])
    app.add_api_route("/sync/{name}", add_sync, methods=["POST"])
    app.add_api_route("/livez", livez)
    app.add_api_route("/state", state)
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    return app
