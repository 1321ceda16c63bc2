"""The examples as a server process runs them, the first two with routes more that end in an unusual way.

The programs of `examples/moving` may run in the environment of a peer, so that nothing else is imported here.
"""

import os
from importlib import import_module
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import Pool

from tests.support.gate import install_commit_gate
from uow import current_session


def quickstart() -> FastAPI:
    _prepare()
    from examples.quickstart import Item, app  # noqa: PLC0415 - the engine's file lies where it is made

    @app.post("/refused-items/")
    async def refuse(name: str) -> JSONResponse:
        return await _refuse(current_session(), Item(name=name))

    @app.post("/twice/")
    async def twice(name: str) -> dict[str, str]:
        return await _twice(current_session(), Item(id=1, name=name), Item(id=1, name="again"))

    return app


def depends() -> FastAPI:
    _prepare()
    from examples.depends import Db, Item, app  # noqa: PLC0415 - the engine's file lies where it is made

    @app.post("/refused-items/")
    async def refuse(name: str, db: Db) -> JSONResponse:
        return await _refuse(db, Item(name=name))

    @app.post("/twice/")
    async def twice(name: str, db: Db) -> dict[str, str]:
        return await _twice(db, Item(id=1, name=name), Item(id=1, name="again"))

    return app


def moving() -> FastAPI:
    """The program that the environment names."""
    _prepare()
    app: FastAPI = import_module(os.environ["TESTS_PROGRAM"]).app
    return app


def moving_from_pure_asgi() -> FastAPI:
    """The same with the other middleware of context-async-sqlalchemy."""
    app = moving()
    app.user_middleware.clear()
    app.add_middleware(import_module("context_async_sqlalchemy.asgi_utils").ASGIHTTPDBSessionMiddleware)
    return app


async def _refuse(session: AsyncSession, item: Any) -> JSONResponse:
    """Write, and then find out that it must not be."""
    session.add(item)
    await session.flush()
    return JSONResponse({"detail": "there are too many items"}, 409)


async def _twice(session: AsyncSession, item: Any, again: Any) -> dict[str, str]:
    """Write, and swallow the error of a second write."""
    session.add(item)
    await session.flush()
    session.expunge(item)
    try:
        session.add(again)
        await session.flush()
    except IntegrityError:
        pass  # it is there already, so all is well, thinks whoever wrote this
    return {"name": item.name}


def _prepare() -> None:
    """Go where the test wants the database; let COMMIT be held, and be refused."""
    os.chdir(os.environ["TESTS_FOLDER"])
    install_commit_gate()
    event.listen(Pool, "connect", _enforce_foreign_keys)


def _enforce_foreign_keys(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
