"""The handlers, as an app would write them for async sessions. All peers serve these same ones."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.hazards.app.model import Counter, Item
from benchmarks.hazards.app.watch import stand_at_gate, tell
from benchmarks.hazards.app.wiring import AsyncGetter, Numbered, OutOfStock, Wiring

# So that a task outlives the request that made it.
_tasks: set[asyncio.Task[None]] = set()


async def add(db: AsyncGetter, name: str, **values: Any) -> AsyncSession:
    """Write an item, as a repository does: without a commit."""
    session = await db()
    session.add(Item(name=name, **values))
    await session.flush()
    return session


def created(name: str, background: BackgroundTasks | None = None) -> Response:
    return JSONResponse({"name": name}, 201, background=background)


async def gathered(name: str, *calls: Awaitable[Any]) -> None:
    try:
        await asyncio.gather(*calls)
    except Exception as error:
        tell(name, f"refused: {type(error).__name__}")
        raise


def routes(wiring: Wiring) -> APIRouter:
    router = APIRouter()
    for some in (_answers, _errors, _refused, _swallowed, _streams, _afterwards, _load):
        some(router, wiring)
    return router


def _answers(router: APIRouter, wiring: Wiring) -> None:
    """Ways to end a request."""

    @router.post("/items")
    async def create(name: str, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name)
        return created(name)

    @router.get("/items")
    async def names(db: Any = Depends(wiring.give)) -> list[str]:
        session = await db()
        return list(await session.scalars(select(Item.name)))

    @router.post("/redirect")
    async def redirect(name: str, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name)
        return RedirectResponse("/ping", 303)

    @router.post("/waits")
    async def waits(name: str, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name)
        await stand_at_gate(name)
        return created(name)

    @router.get("/touch")
    async def touch(name: str, db: Any = Depends(wiring.give)) -> dict[str, str]:
        await add(db, name)
        return {"name": name}


def _errors(router: APIRouter, wiring: Wiring) -> None:
    """Ways to end one with an error."""

    @router.post("/returned")
    async def returned(name: str, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name)
        return JSONResponse({"detail": "too many"}, 409)

    @router.post("/raised")
    async def raised(name: str, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name)
        raise HTTPException(404, "no such shelf")

    @router.post("/mapped")
    async def mapped(name: str, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name)
        raise OutOfStock("none left")

    @router.post("/broken")
    async def broken(name: str, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name)
        raise RuntimeError("a bug")

    @router.post("/invalid", response_model=Numbered)
    async def invalid(name: str, db: Any = Depends(wiring.give)) -> dict[str, str]:
        await add(db, name)
        return {"number": "none"}


def _refused(router: APIRouter, wiring: Wiring) -> None:
    """What the database refuses, and handlers that settle by themselves."""

    @router.post("/orphans")
    async def orphan(name: str, background: BackgroundTasks, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name, parent_id=-1)
        background.add_task(tell, name, "background ran")
        return created(name, background)

    @router.post("/unflushed")
    async def unflushed(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = await db()
        session.add(Item(name=name))
        return created(name)

    @router.post("/commits")
    async def commits(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = await add(db, name)
        await session.commit()
        return JSONResponse({"detail": "too many"}, 409)


def _swallowed(router: APIRouter, wiring: Wiring) -> None:
    """Errors of the database that a handler catches."""

    @router.post("/swallowed-statement")
    async def swallowed_statement(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = await add(db, name)
        try:
            await session.execute(insert(Item).values(name=name))
        except IntegrityError:
            tell(name, "swallowed")
        return created(name)

    @router.post("/swallowed-flush")
    async def swallowed_flush(name: str, db: Any = Depends(wiring.give)) -> Response:
        await add(db, name)
        try:
            await add(db, name)
        except IntegrityError:
            tell(name, "swallowed")
        return created(name)

    @router.post("/savepoint")
    async def savepoint(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = await add(db, name)
        try:
            async with session.begin_nested():
                await session.execute(insert(Item).values(name=name))
        except IntegrityError:
            tell(name, "contained")
        return created(name)


def _streams(router: APIRouter, wiring: Wiring) -> None:
    @router.get("/stream")
    async def stream(name: str, db: Any = Depends(wiring.give)) -> Response:
        async def lines() -> AsyncIterator[str]:
            yield "names:\n"
            session = await db()
            for found in await session.scalars(select(Item.name)):
                yield f"{found}\n"
            yield "end\n"

        return StreamingResponse(lines())

    @router.get("/long-stream")
    async def long_stream(name: str, db: Any = Depends(wiring.give)) -> Response:
        async def lines() -> AsyncIterator[str]:
            yield "names:\n"
            session = await db()
            await session.scalar(select(Item.name))
            await stand_at_gate(name)
            yield f"{await session.scalar(select(Item.name))}\n"

        return StreamingResponse(lines())

    @router.post("/stream")
    async def stream_that_writes(name: str, db: Any = Depends(wiring.give)) -> Response:
        async def lines() -> AsyncIterator[str]:
            yield "writing\n"
            await add(db, name)
            yield "end\n"

        return StreamingResponse(lines())


def _afterwards(router: APIRouter, wiring: Wiring) -> None:
    async def write(db: AsyncGetter, name: str) -> None:
        try:
            await add(db, name)
        except Exception as error:
            tell(name, f"refused: {type(error).__name__}")
            raise
        tell(name, "written")

    @router.post("/background")
    async def background(
        name: str, background: BackgroundTasks, db: Any = Depends(wiring.give)
    ) -> dict[str, str]:
        background.add_task(write, db, name)
        return {"name": name}

    @router.post("/background-own")
    async def background_own(name: str, background: BackgroundTasks) -> dict[str, str]:
        async def write_own() -> None:
            async with wiring.own() as session:
                session.add(Item(name=name))

        background.add_task(write_own)
        return {"name": name}

    @router.post("/task")
    async def outlives(name: str, db: Any = Depends(wiring.give)) -> Response:
        await (await db()).scalar(select(Item.name))

        async def later() -> None:
            await stand_at_gate(name)
            await write(db, name)

        task = asyncio.create_task(later())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        return created(name)


def _load(router: APIRouter, wiring: Wiring) -> None:
    @router.post("/gather")
    async def gather(name: str, db: Any = Depends(wiring.give)) -> Response:
        await gathered(name, *(add(db, f"{name}-{number}") for number in range(5)))
        return created(name)

    @router.post("/gather-statements")
    async def gather_statements(name: str, db: Any = Depends(wiring.give)) -> Response:
        async def write(number: int) -> None:
            await (await db()).execute(insert(Item).values(name=f"{name}-{number}"))

        await gathered(name, *(write(number) for number in range(5)))
        return created(name)

    @router.post("/slow")
    async def slow(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = await add(db, name)
        await session.execute(text("SELECT pg_sleep(0.05)"))
        return created(name)

    @router.get("/large")
    async def large(name: str, db: Any = Depends(wiring.give)) -> Response:
        await (await db()).scalar(select(Item.name))

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(500):
                yield b"x" * 65_536

        return StreamingResponse(chunks())

    @router.post("/counters")
    async def increment(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = await db()
        counter = await session.get_one(Counter, 1)
        counter.value = counter.value + 1
        await session.flush()
        return created(name)
