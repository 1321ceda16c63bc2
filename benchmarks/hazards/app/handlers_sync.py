"""The same handlers as `def` endpoints, for a peer that has sync sessions only."""

import threading
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, BackgroundTasks, Depends, HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from benchmarks.hazards.app.model import Counter, Item
from benchmarks.hazards.app.watch import stand_at_gate_in_thread, tell
from benchmarks.hazards.app.wiring import Numbered, OutOfStock, SyncGetter, SyncWiring


def add(db: SyncGetter, name: str, **values: Any) -> Session:
    """Write an item, as a repository does: without a commit."""
    session = db()
    session.add(Item(name=name, **values))
    session.flush()
    return session


def created(name: str, background: BackgroundTasks | None = None) -> Response:
    return JSONResponse({"name": name}, 201, background=background)


def routes(wiring: SyncWiring) -> APIRouter:
    router = APIRouter()
    for some in (_answers, _errors, _refused, _swallowed, _streams, _afterwards, _load):
        some(router, wiring)
    return router


def _answers(router: APIRouter, wiring: SyncWiring) -> None:
    """Ways to end a request."""

    @router.post("/items")
    def create(name: str, db: Any = Depends(wiring.give)) -> Response:
        add(db, name)
        return created(name)

    @router.get("/items")
    def names(db: Any = Depends(wiring.give)) -> list[str]:
        session = db()
        return list(session.scalars(select(Item.name)))

    @router.post("/redirect")
    def redirect(name: str, db: Any = Depends(wiring.give)) -> Response:
        add(db, name)
        return RedirectResponse("/ping", 303)

    @router.post("/waits")
    def waits(name: str, db: Any = Depends(wiring.give)) -> Response:
        add(db, name)
        stand_at_gate_in_thread(name)
        return created(name)

    @router.get("/touch")
    def touch(name: str, db: Any = Depends(wiring.give)) -> dict[str, str]:
        add(db, name)
        return {"name": name}


def _errors(router: APIRouter, wiring: SyncWiring) -> None:
    """Ways to end one with an error."""

    @router.post("/returned")
    def returned(name: str, db: Any = Depends(wiring.give)) -> Response:
        add(db, name)
        return JSONResponse({"detail": "too many"}, 409)

    @router.post("/raised")
    def raised(name: str, db: Any = Depends(wiring.give)) -> Response:
        add(db, name)
        raise HTTPException(404, "no such shelf")

    @router.post("/mapped")
    def mapped(name: str, db: Any = Depends(wiring.give)) -> Response:
        add(db, name)
        raise OutOfStock("none left")

    @router.post("/broken")
    def broken(name: str, db: Any = Depends(wiring.give)) -> Response:
        add(db, name)
        raise RuntimeError("a bug")

    @router.post("/invalid", response_model=Numbered)
    def invalid(name: str, db: Any = Depends(wiring.give)) -> dict[str, str]:
        add(db, name)
        return {"number": "none"}


def _refused(router: APIRouter, wiring: SyncWiring) -> None:
    """What the database refuses, and handlers that settle by themselves."""

    @router.post("/orphans")
    def orphan(name: str, background: BackgroundTasks, db: Any = Depends(wiring.give)) -> Response:
        add(db, name, parent_id=-1)
        background.add_task(tell, name, "background ran")
        return created(name, background)

    @router.post("/unflushed")
    def unflushed(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = db()
        session.add(Item(name=name))
        return created(name)

    @router.post("/commits")
    def commits(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = add(db, name)
        session.commit()
        return JSONResponse({"detail": "too many"}, 409)


def _swallowed(router: APIRouter, wiring: SyncWiring) -> None:
    """Errors of the database that a handler catches."""

    @router.post("/swallowed-statement")
    def swallowed_statement(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = add(db, name)
        try:
            session.execute(insert(Item).values(name=name))
        except IntegrityError:
            tell(name, "swallowed")
        return created(name)

    @router.post("/swallowed-flush")
    def swallowed_flush(name: str, db: Any = Depends(wiring.give)) -> Response:
        add(db, name)
        try:
            add(db, name)
        except IntegrityError:
            tell(name, "swallowed")
        return created(name)

    @router.post("/savepoint")
    def savepoint(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = add(db, name)
        try:
            with session.begin_nested():
                session.execute(insert(Item).values(name=name))
        except IntegrityError:
            tell(name, "contained")
        return created(name)


def _streams(router: APIRouter, wiring: SyncWiring) -> None:
    @router.get("/stream")
    def stream(name: str, db: Any = Depends(wiring.give)) -> Response:
        def lines() -> Iterator[str]:
            yield "names:\n"
            session = db()
            for found in session.scalars(select(Item.name)):
                yield f"{found}\n"
            yield "end\n"

        return StreamingResponse(lines())

    @router.get("/long-stream")
    def long_stream(name: str, db: Any = Depends(wiring.give)) -> Response:
        def lines() -> Iterator[str]:
            yield "names:\n"
            session = db()
            session.scalar(select(Item.name))
            stand_at_gate_in_thread(name)
            yield f"{session.scalar(select(Item.name))}\n"

        return StreamingResponse(lines())

    @router.post("/stream")
    def stream_that_writes(name: str, db: Any = Depends(wiring.give)) -> Response:
        def lines() -> Iterator[str]:
            yield "writing\n"
            add(db, name)
            yield "end\n"

        return StreamingResponse(lines())


def _afterwards(router: APIRouter, wiring: SyncWiring) -> None:
    def write(db: SyncGetter, name: str) -> None:
        try:
            add(db, name)
        except Exception as error:
            tell(name, f"refused: {type(error).__name__}")
            raise
        tell(name, "written")

    @router.post("/background")
    def background(name: str, background: BackgroundTasks, db: Any = Depends(wiring.give)) -> dict[str, str]:
        background.add_task(write, db, name)
        return {"name": name}

    @router.post("/background-own")
    def background_own(name: str, background: BackgroundTasks) -> dict[str, str]:
        def write_own() -> None:
            with wiring.own() as session:
                session.add(Item(name=name))

        background.add_task(write_own)
        return {"name": name}

    @router.post("/task")
    def outlives(name: str, db: Any = Depends(wiring.give)) -> Response:
        db().scalar(select(Item.name))

        def later() -> None:
            stand_at_gate_in_thread(name)
            write(db, name)

        threading.Thread(target=later, daemon=True).start()
        return created(name)


def _load(router: APIRouter, wiring: SyncWiring) -> None:
    @router.post("/slow")
    def slow(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = add(db, name)
        session.execute(text("SELECT pg_sleep(0.05)"))
        return created(name)

    @router.get("/large")
    def large(name: str, db: Any = Depends(wiring.give)) -> Response:
        db().scalar(select(Item.name))

        def chunks() -> Iterator[bytes]:
            for _ in range(500):
                yield b"x" * 65_536

        return StreamingResponse(chunks())

    @router.post("/counters")
    def increment(name: str, db: Any = Depends(wiring.give)) -> Response:
        session = db()
        counter = session.get_one(Counter, 1)
        counter.value = counter.value + 1
        session.flush()
        return created(name)
