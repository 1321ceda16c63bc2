"""The cases about reading, units and what outlives a request, in `async def` endpoints; `sync_units` has the
same ones, word for word.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from sqlalchemy import func, select, text
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response

from tests.lifecycle.async_endings import add_item
from tests.lifecycle.model import (
    ADD_ITEM,
    ALL_NAMES,
    UNLOCK,
    Item,
    PurposelyFailed,
    answer,
    attempt_told,
    releases,
    tell,
    tell_on_commit,
)
from uow import current_session, current_sync_session, current_unit, new_unit, on_commit, unit_options

router = APIRouter()
_tasks: set[asyncio.Task[None]] = set()


@router.get("/health")
async def health() -> Response:
    return Response(status_code=200)


@router.get("/items")
async def names(name: str) -> list[str]:
    return list(await current_session().scalars(ALL_NAMES.where(Item.name == name)))


# After the answer


@router.post("/callbacks")
async def callbacks(name: str, status: int = 201) -> Response:
    async def awaited() -> None:
        tell(name, "awaited")

    def fails() -> None:
        tell(name, "fails")
        raise PurposelyFailed("a callback")

    await add_item(name)
    for callback in (partial(tell, name, "second"), fails, awaited, partial(tell, name, "last")):
        on_commit(callback)
    return answer(name, status)


@router.post("/background")
async def background(name: str, task: str) -> Response:
    await add_item(name)
    return Response(status_code=201, background=BackgroundTask(_BACKGROUND[task], name))


async def _asks_for_session(name: str) -> None:
    try:
        current_session()
    except Exception as error:
        attempt_told(name, "current_session", error)


async def _uses_new_unit(name: str) -> None:
    async with new_unit():
        current_session().add(Item(name=f"{name}-background"))
    tell(name, "background")


async def _fails(name: str) -> None:
    raise PurposelyFailed("a background task")


_BACKGROUND = {"session": _asks_for_session, "new_unit": _uses_new_unit, "fails": _fails}


@router.api_route("/outlives", methods=["GET", "POST"])
async def outlives(name: str) -> Response:
    """Leave a task behind that has captured all there is to capture."""
    attempts, item = await _captured(name)
    gate = asyncio.Event()
    releases[name] = gate.set
    task = asyncio.create_task(_try_later(name, gate, attempts, item))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return Response(status_code=200)


async def _captured(name: str) -> tuple[dict[str, Callable[[], Awaitable[object]]], Item]:
    session = current_session()
    item = (await session.scalars(select(Item).order_by(Item.id))).first()
    assert item is not None
    result = await session.execute(ALL_NAMES)
    scalars = await session.scalars(ALL_NAMES)
    stream = await session.stream(ALL_NAMES)

    async def lazy_load() -> object:
        return item.parts

    async def rows() -> object:
        return result.all()

    async def values() -> object:
        return scalars.all()

    async def current() -> object:
        return current_session()

    async def add() -> object:
        session.add(Item(name=name))
        return None

    attempts: dict[str, Callable[[], Awaitable[object]]] = {
        "execute": lambda: session.execute(ALL_NAMES),
        "get": lambda: session.get(Item, 1),
        "flush": session.flush,
        "begin_nested": lambda: session.begin_nested().start(),
        "commit": session.commit,
        "rollback": session.rollback,
        "add": add,
        "result": rows,
        "scalars": values,
        "stream": stream.all,
        "lazy load": lazy_load,
        "current_session": current,
    }
    return attempts, item


async def _try_later(
    name: str, gate: asyncio.Event, attempts: dict[str, Callable[[], Awaitable[object]]], item: Item
) -> None:
    await gate.wait()
    for kind, attempt in attempts.items():
        try:
            await attempt()
        except Exception as error:
            attempt_told(name, kind, error)
        else:
            attempt_told(name, kind, None)
    tell(name, f"still readable: {item.name}")


# Reading, and who writes although he reads


async def _write_while_reading(name: str, how: str) -> Response:
    session = current_session()
    if how == "orm":
        session.add(Item(name=name))
        await session.flush()
    elif how == "raw":
        await session.execute(text("INSERT INTO items (name) VALUES (:name)"), {"name": name})
    elif how == "nested":
        async with session.begin_nested():
            await session.execute(ADD_ITEM, {"name": name})
    elif how == "swallowed":
        try:
            await session.execute(ADD_ITEM, {"name": name})
        except Exception:
            tell(name, "swallowed")
    else:
        session.add(Item(name=name))
    return Response(status_code=200)


@router.api_route("/reads", methods=["GET", "HEAD", "OPTIONS"])
async def reads(name: str, how: str) -> Response:
    return await _write_while_reading(name, how)


@router.get("/unlocks")
async def unlocks() -> Response:
    session = current_session()
    await session.execute(UNLOCK[session.get_bind().dialect.name])
    return Response(status_code=200)


@router.get("/may-write")
@unit_options(read_only=False)
async def may_write(name: str, how: str) -> Response:
    return await _write_while_reading(name, how)


@router.post("/may-not-write")
@unit_options(read_only=True)
async def may_not_write(name: str, how: str) -> Response:
    return await _write_while_reading(name, how)


# Which unit, which session


async def _unit_of_dependency() -> int:
    return id(current_unit())


@router.post("/one-unit")
async def one_unit(name: str, theirs: Annotated[int, Depends(_unit_of_dependency)]) -> Response:
    session = await add_item(name)
    same = theirs == id(current_unit()) and session is current_session() is current_unit().session
    return JSONResponse({"same": same}, 201)


@router.post("/mixed")
async def mixed(name: str, first: str) -> Response:
    if first == "own":
        await add_item(name)
        current_sync_session()
    else:
        current_sync_session().add(Item(name=name))
        current_session()
    return answer(name, 201)


@router.post("/audit")
async def audit(name: str) -> Response:
    async with new_unit():
        current_session().add(Item(name=f"{name}-audit"))
        on_commit(partial(tell, name, "audited"))
    await add_item(name)
    raise HTTPException(401)


@router.post("/audit-inside")
async def audit_inside(name: str, status: int = 401) -> Response:
    session = await add_item(name)
    async with new_unit(name="the audit"):
        assert current_session() is not session
        await current_session().execute(ADD_ITEM, {"name": f"{name}-audit"})
    assert current_session() is session
    return answer(name, status)


@router.post("/reads-inside")
async def reads_inside(name: str) -> Response:
    await add_item(name)
    async with new_unit(read_only=True) as unit:
        seen = await unit.session.scalar(select(func.count()).where(Item.name == name))
    return JSONResponse({"seen": seen}, 201)


@router.post("/undone-inside")
async def undone_inside(name: str) -> Response:
    try:
        async with new_unit():
            current_session().add(Item(name=f"{name}-undone"))
            await current_session().flush()
            tell_on_commit(f"{name}-undone")
            raise PurposelyFailed("a unit inside")
    except PurposelyFailed:
        await add_item(name)
    return answer(name, 201)
