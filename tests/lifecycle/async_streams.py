"""The cases of answers that stream, in `async def` endpoints with async generators; `sync_streams` has the
same ones, word for word.

A generator stops after its first chunk and goes on when the test says so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncScalarResult, AsyncSession
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from tests.lifecycle.async_endings import add_item
from tests.lifecycle.model import (
    ADD_ITEM,
    ALL_NAMES,
    MISSING_TABLE,
    NO_SUCH_ITEM,
    ROWS,
    Item,
    Part,
    PurposelyFailed,
    attempt_told,
    releases,
    rows_of,
    tell,
)
from uow import current_session, new_unit

router = APIRouter()


async def _pause(name: str) -> None:
    gate = asyncio.Event()
    releases[name] = gate.set
    tell(name, "paused")
    await gate.wait()


def _streamed(chunks: AsyncIterator[str], name: str, status: int, length: int) -> Response:
    headers = {"content-length": str(length)} if length else None
    return StreamingResponse(chunks, status, headers, background=BackgroundTask(tell, name, "background"))


# On a unit that reads


async def _rows(name: str, how: str, begun: AsyncScalarResult[str] | None) -> AsyncIterator[str]:
    session = current_session()
    if begun is not None:
        async for row in begun:
            yield row
    elif how == "cursor":
        async for row in await session.stream_scalars(rows_of(name)):
            yield row
    elif how == "execute":
        for row in await session.scalars(rows_of(name)):
            yield row
    else:
        for number in ROWS:
            one = await session.scalars(select(Item.name).where(Item.name == f"{name}-{number}"))
            yield one.one()


async def _lines(name: str, pad: int, end: str, rows: AsyncIterator[str]) -> AsyncIterator[str]:
    first = True
    try:
        async for row in rows:
            yield f"{row:{pad}}\n"
            if first:
                first = False
                await _pause(name)
                await _ends(name, end)
    finally:
        tell(name, "generator ended")


async def _ends(name: str, end: str) -> None:
    if end == "raises":
        raise PurposelyFailed("a generator")
    if end == "writes":
        await current_session().execute(ADD_ITEM, {"name": f"{name}-written"})


@router.get("/stream")
async def stream(
    name: str, how: str, end: str = "whole", status: int = 200, pad: int = 0, length: int = 0
) -> Response:
    begun = None
    if how == "cursor of the handler":
        begun = await current_session().stream_scalars(rows_of(name))
    return _streamed(_lines(name, pad, end, _rows(name, how, begun)), name, status, length)


@router.get("/stream-refused")
async def stream_refused(name: str, how: str) -> Response:
    if how == "swallows":
        try:
            await current_session().execute(MISSING_TABLE)
        except Exception:
            tell(name, "swallowed")
    else:
        current_session().add(Item(name=name))
    return _streamed(_lines(name, 0, "whole", _rows(name, "execute", None)), name, 200, 0)


# On a unit that writes


def _touches(session: AsyncSession, item: Item, begun: Any) -> dict[str, Callable[[], Awaitable[object]]]:
    async def current() -> object:
        return current_session()

    async def add() -> object:
        session.add(Item(name="never"))
        return None

    async def lazy_load() -> object:
        return item.parts

    return {
        "execute": lambda: session.execute(ALL_NAMES),
        "flush": session.flush,
        "add": add,
        "cursor of the handler": begun.all,
        "lazy load": lazy_load,
        "current_session": current,
    }


async def _own_unit(name: str) -> None:
    async with new_unit() as unit:
        unit.session.add(Item(name=f"{name}-own"))


async def _write_early(session: AsyncSession, name: str) -> None:
    try:
        await session.execute(ADD_ITEM, {"name": f"{name}-early"})
    except Exception as error:
        attempt_told(name, "early", error)
        raise


@router.post("/stream-after-writing")
async def stream_after_writing(name: str, how: str = "", status: int = 201, length: int = 0) -> Response:
    session = await add_item(name)
    begun = await session.stream_scalars(rows_of(name))
    touches = _touches(session, (await session.scalars(select(Item).limit(1))).one(), begun)
    if how == "refused":
        session.add(Part(name=name, item_id=NO_SUCH_ITEM))

    async def chunks() -> AsyncIterator[str]:
        if how == "early":
            await _write_early(session, name)
        yield "first\n"
        await _pause(name)
        if how in touches:
            try:
                await touches[how]()
            except Exception as error:
                attempt_told(name, how, error)
                raise
            tell(name, f"{how}: nothing raised")
        elif how == "new_unit":
            await _own_unit(name)
        elif how == "raises":
            raise PurposelyFailed("a generator")
        yield "last\n"

    return _streamed(chunks(), name, status, length)
