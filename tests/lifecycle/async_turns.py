"""The cases of tasks that share the one session of their unit."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import Response

from tests.lifecycle.model import ADD_ITEM, ALL_NAMES, ROWS, Item, PurposelyFailed, answer, tell
from uow import current_session

router = APIRouter()


async def _insert(name: str) -> None:
    """A call of a repository."""
    await current_session().execute(ADD_ITEM, {"name": name})


async def _insert_rows(name: str) -> None:
    await asyncio.gather(*(_insert(f"{name}-{number}") for number in ROWS))


async def _statements(name: str, session: AsyncSession) -> None:
    counts = [session.scalar(select(func.count()).select_from(Item)) for _ in ROWS]
    await asyncio.gather(_insert_rows(name), *counts)


async def _reads(name: str, session: AsyncSession) -> None:
    items = (await session.scalars(select(Item).where(Item.name.like("seed-%")).order_by(Item.id))).all()

    async def cursor() -> int:
        return len([row async for row in await session.stream_scalars(ALL_NAMES)])

    async def parts(item: Item) -> int:
        return len(await item.awaitable_attrs.parts)

    found = await asyncio.gather(
        *map(parts, items), cursor(), session.get(Item, 1), session.refresh(items[0])
    )
    tell(name, f"parts {found[:3]}")
    await _insert(name)


async def _one_fails(name: str, session: AsyncSession) -> None:
    await asyncio.gather(_insert_rows(name), _insert(f"{name}-1"))


async def _inside_a_savepoint(name: str, session: AsyncSession) -> None:
    async with session.begin_nested():
        await _insert_rows(name)


async def _inside_an_undone_savepoint(name: str, session: AsyncSession) -> None:
    await _insert(name)
    with contextlib.suppress(PurposelyFailed):
        async with session.begin_nested():
            await _insert_rows(name)
            raise PurposelyFailed("a savepoint")


async def _undone(name: str, session: AsyncSession, opened: asyncio.Event) -> None:
    """A savepoint that is rolled back, and stays open while others have all the time to get in."""
    with contextlib.suppress(PurposelyFailed):
        async with session.begin_nested():
            await _insert(f"{name}-undone")
            opened.set()
            for number in ROWS:
                await _insert(f"{name}-undone-{number}")
            tell(name, "undone")
            raise PurposelyFailed("a savepoint")


async def _savepoint_beside_calls(name: str, session: AsyncSession) -> None:
    opened = asyncio.Event()

    async def beside() -> None:
        await opened.wait()
        await _insert(f"{name}-kept")
        tell(name, "beside")

    await asyncio.gather(_undone(name, session, opened), beside())


async def _two_savepoints(name: str, session: AsyncSession) -> None:
    opened = asyncio.Event()

    async def beside() -> None:
        await opened.wait()
        async with session.begin_nested():
            await _insert(f"{name}-kept")

    await asyncio.gather(_undone(name, session, opened), beside())


async def _both(first: Awaitable[None], second: Awaitable[None]) -> None:
    """Two tasks with names, each of them to its end."""
    tasks = [asyncio.ensure_future(each) for each in (first, second)]
    for number, task in enumerate(tasks, start=1):
        task.set_name(f"task-{number}")
    await asyncio.wait(tasks)
    await asyncio.gather(*tasks)


async def _adds(name: str, session: AsyncSession) -> None:
    async def add(number: int) -> None:
        session.add(Item(name=f"{name}-{number}"))
        await session.flush()

    await _both(add(1), add(2))


async def _adds_beside_a_savepoint(name: str, session: AsyncSession) -> None:
    opened = asyncio.Event()

    async def beside() -> None:
        await opened.wait()
        session.add(Item(name=f"{name}-kept"))

    await _both(_undone(name, session, opened), beside())


_GATHERS: dict[str, Callable[[str, AsyncSession], Awaitable[None]]] = {
    "statements": _statements,
    "reads": _reads,
    "one fails": _one_fails,
    "inside a savepoint": _inside_a_savepoint,
    "inside an undone savepoint": _inside_an_undone_savepoint,
    "a savepoint beside calls": _savepoint_beside_calls,
    "two savepoints": _two_savepoints,
    "adds": _adds,
    "adds beside a savepoint": _adds_beside_a_savepoint,
}


@router.post("/shares")
async def shares(name: str, how: str) -> Response:
    await _GATHERS[how](name, current_session())
    return answer(name, 201)
