"""The cases of how a request ends, in `async def` endpoints; `sync_endings` has the same, word for word."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request
from starlette.responses import Response

from tests.lifecycle.model import (
    ADD_ITEM,
    FATAL,
    MISSING_TABLE,
    NO_SUCH_ITEM,
    Item,
    MappedError,
    Part,
    PurposelyFailed,
    answer,
    releases,
    tell,
    tell_on_commit,
)
from uow import current_session, current_unit, unit_options

router = APIRouter()


async def add_item(name: str) -> AsyncSession:
    """Write one item, and register a callback."""
    session = current_session()
    session.add(Item(name=name))
    await session.flush()
    tell_on_commit(name)
    return session


# How a request ends


@router.post("/write")
async def write(name: str, status: int = 201, body: bool = False) -> Response:
    await add_item(name)
    return answer(name, status, b"written" if body else b"")


@router.post("/failed-login")
@unit_options(commit_on={401})
async def failed_login(name: str, status: int = 401) -> Response:
    await add_item(name)
    raise HTTPException(status)


@router.post("/raises")
async def raises(name: str, kind: str, status: int = 500) -> Response:
    await add_item(name)
    if kind == "http":
        raise HTTPException(status)
    raise MappedError(status) if kind == "mapped" else PurposelyFailed(name)


class Answer(BaseModel):
    """What `/invalid-answer` promises."""

    id: int


@router.post("/invalid-answer", response_model=Answer)
async def invalid_answer(name: str) -> Any:
    await add_item(name)
    return {"id": "not a number"}


@router.post("/commit-refused")
async def commit_refused(name: str) -> Response:
    session = await add_item(name)
    session.add(Part(name=name, item_id=NO_SUCH_ITEM))
    await session.flush()
    return answer(name, 201)


@router.post("/flush-refused")
async def flush_refused(name: str) -> Response:
    session = await add_item(name)
    session.add(Item(name=name))
    return answer(name, 201)


@router.post("/flush-refused-early")
async def flush_refused_early(name: str) -> Response:
    session = await add_item(name)
    session.add(Item(name=name))
    await session.flush()
    return answer(name, 201)


@router.post("/dry-run")
async def dry_run(name: str) -> Response:
    await add_item(name)
    current_unit().set_rollback_only()
    return answer(name, 201)


# Errors of the database that the handler swallows


async def _fail(session: AsyncSession, name: str, how: str) -> None:
    """Do what the database refuses: the name is taken."""
    if how == "statement":
        await session.execute(ADD_ITEM, {"name": name})
    elif how == "flush":
        session.add(Item(name=name))
        await session.flush()
    elif how == "fatal":
        await session.execute(FATAL[session.get_bind().dialect.name], {"name": name})
    else:
        await session.execute(MISSING_TABLE)


@router.post("/swallows")
async def swallows(name: str, how: str, status: int = 201) -> Response:
    session = await add_item(name)
    with contextlib.suppress(SQLAlchemyError):
        await _fail(session, name, how)
    return answer(name, status)


@router.get("/swallows-reading")
async def swallows_reading() -> Response:
    with contextlib.suppress(SQLAlchemyError):
        await current_session().execute(MISSING_TABLE)
    return Response(status_code=200)


@router.post("/contains")
async def contains(name: str, how: str) -> Response:
    session = await add_item(name)
    try:
        async with session.begin_nested():
            session.add(Item(name=f"{name}-inner"))
            await session.flush()
            await _fail(session, name, how)
    except SQLAlchemyError:
        pass
    session.add(Item(name=f"{name}-later"))
    return answer(name, 201)


@router.post("/swallows-inside")
async def swallows_inside(name: str, how: str, contained: bool) -> Response:
    session = await add_item(name)
    try:
        async with session.begin_nested():
            session.add(Item(name=f"{name}-inner"))
            await session.flush()
            try:
                await _fail(session, name, how)
            except SQLAlchemyError:
                tell(name, "swallowed")
    except SQLAlchemyError:
        tell(name, "raised again")
        if not contained:
            raise
    return answer(name, 201)


# Handlers that settle


async def _begin_block(session: AsyncSession) -> None:
    async with session.begin():
        raise AssertionError("a begin() block was entered")


async def _transaction_commit(session: AsyncSession) -> None:
    transaction = session.get_transaction()
    assert transaction is not None
    await transaction.commit()


async def _connection_commit(session: AsyncSession) -> None:
    await (await session.connection()).commit()


async def _connection_invalidate(session: AsyncSession) -> None:
    await (await session.connection()).invalidate()


async def _connection_block(session: AsyncSession) -> None:
    connection = await session.connection()
    try:
        await connection.commit()
    finally:
        await connection.close()


async def _transaction_close(session: AsyncSession) -> None:
    transaction = session.sync_session.get_transaction()
    assert transaction is not None
    await session.run_sync(lambda _: transaction.close())


async def _driver_commit(session: AsyncSession) -> None:
    raw = await (await session.connection()).get_raw_connection()
    driver: Any = raw.driver_connection
    await driver.execute("COMMIT")


async def _sync_commit(session: AsyncSession) -> None:
    await session.run_sync(lambda inner: inner.commit())


_SETTLES: dict[str, Callable[[AsyncSession], Awaitable[object]]] = {
    "commit": lambda session: session.commit(),
    "begin": _begin_block,
    "reset": lambda session: session.reset(),
    "invalidate": lambda session: session.invalidate(),
    "transaction.commit": _transaction_commit,
    "connection.commit": _connection_commit,
    "connection.invalidate": _connection_invalidate,
    "connection block": _connection_block,
    "transaction.close": _transaction_close,
    "driver's COMMIT": _driver_commit,
    "run_sync.commit": _sync_commit,
    "COMMIT": lambda session: session.execute(text("COMMIT")),
    "commit and chain": lambda session: session.execute(text(" commit and chain")),
    "ROLLBACK": lambda session: session.execute(text("ROLLBACK")),
    "rollback and chain": lambda session: session.execute(text(" rollback and chain")),
}


@router.post("/settles")
async def settles(name: str, how: str, status: int = 201) -> Response:
    session = await add_item(name)
    await _SETTLES[how](session)
    return answer(name, status)


@router.post("/rolls-back")
async def rolls_back(
    name: str, status: int, how: str = "session", more: bool = False, pending: bool = False
) -> Response:
    if pending:
        session = current_session()
        session.add(Item(name=name))
    else:
        session = await add_item(name)
    if how == "session":
        await session.rollback()
    elif how == "transaction":
        transaction = session.get_transaction()
        assert transaction is not None
        await transaction.rollback()
    else:
        await (await session.connection()).rollback()
    if more:
        await session.execute(ADD_ITEM, {"name": f"{name}-more"})
    return answer(name, status)


@router.post("/closes")
async def closes(name: str, how: str) -> Response:
    session = await add_item(name)
    if how == "block":
        async with session:
            pass
    else:
        await session.close()
    session.add(Item(name=f"{name}-later"))
    return answer(name, 201)


# Requests that somebody gives up


@router.post("/stands")
async def stands(name: str) -> Response:
    """Write, and stand still until the test says otherwise."""
    await add_item(name)
    gate = asyncio.Event()
    releases[name] = gate.set
    tell(name, "standing")
    await gate.wait()
    return answer(name, 201)


@router.post("/until-gone")
async def until_gone(request: Request, name: str, status: int) -> Response:
    """Write, notice that the client has gone, and answer all the same."""
    await add_item(name)
    tell(name, "standing")
    while not await request.is_disconnected():  # noqa: ASYNC110 - Starlette has no event for it
        await asyncio.sleep(0.01)
    return answer(name, status)
