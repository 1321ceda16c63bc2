"""The smallest app that commits before it answers, written by hand: what the test infrastructure is
tried on.
"""

import contextlib
import os
from collections.abc import AsyncIterator

from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    select,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.support.gate import install_commit_gate

metadata = MetaData()
items = Table("items", metadata, Column("id", Integer, primary_key=True), Column("name", String, unique=True))
SCHEMA = "CREATE TABLE items (id {serial} PRIMARY KEY, name VARCHAR UNIQUE)"


def schema(dialect: str) -> str:
    """The statement that makes the app's one table."""
    return SCHEMA.format(serial="SERIAL" if dialect == "postgresql" else "INTEGER")


async def _post_async(request: Request) -> JSONResponse:
    engine: AsyncEngine = request.app.state.engine
    async with engine.begin() as connection:
        await connection.execute(insert(items).values(name=request.query_params["name"]))
    return JSONResponse({"pid": os.getpid()}, 201)


async def _list_async(request: Request) -> JSONResponse:
    engine: AsyncEngine = request.app.state.engine
    async with engine.connect() as connection:
        return JSONResponse([row.name for row in await connection.execute(select(items))])


def _post_sync(request: Request) -> JSONResponse:
    engine: Engine = request.app.state.engine
    with engine.begin() as connection:
        connection.execute(insert(items).values(name=request.query_params["name"]))
    return JSONResponse({"pid": os.getpid()}, 201)


def _list_sync(request: Request) -> JSONResponse:
    engine: Engine = request.app.state.engine
    with engine.connect() as connection:
        return JSONResponse([row.name for row in connection.execute(select(items))])


def app_of(engine: Engine | AsyncEngine) -> Starlette:
    """The app on an engine of either kind."""
    is_async = isinstance(engine, AsyncEngine)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"lifespan": "up"}
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()

    post, listing = (_post_async, _list_async) if is_async else (_post_sync, _list_sync)
    routes = [Route("/items/", post, methods=["POST"]), Route("/items/", listing, methods=["GET"])]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.engine = engine
    return app


def create_app() -> Starlette:
    """The app as a server process makes it, from the environment of `backend.environment(mode)`."""
    install_commit_gate()
    url = os.environ["TESTS_DATABASE_URL"]
    return app_of(create_async_engine(url) if os.environ["TESTS_MODE"] == "async" else create_engine(url))


def create_broken_app() -> Starlette:
    """An app that cannot be made."""
    raise RuntimeError("this app cannot start")
