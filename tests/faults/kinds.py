"""One app with every kind of request: plain, savepoint, stream, gather, background, WebSocket.

Each unit writes rows named `key:unit:letter`, so that a second connection can tell which unit was kept,
and whether all of it was. `?ending=rollback` lets the same work end in a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import insert, select
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.backends import Mode
from tests.support.variant import retry_of_this_run
from tests.uow.units import Item
from uow import (
    Database,
    UnitOfWork,
    UnitOfWorkMiddleware,
    current_session,
    current_sync_session,
    new_unit,
    on_commit,
)
from uow.errors import OutcomeUnknown
from uow.observe import Settlement, UnitObserver

Ending = Literal["commit", "rollback"]
SEEDS = ("seed:1", "seed:2", "seed:3")


@dataclass(frozen=True)
class Kind:
    """One kind of request, and what it writes when nothing goes wrong."""

    name: str
    units: dict[str, frozenset[str]]
    modes: tuple[Mode, ...] = ("async", "sync")
    read_only: bool = False
    endpoint: str = ""
    cold: bool = False
    """Whether each request has to connect."""
    spec_version: str = "2.3"
    """From 2.4 on the framework streams without a task that listens for the client."""

    def status(self, ending: Ending) -> int:
        if ending == "rollback":
            return 409
        return 200 if self.read_only else 201


AB = frozenset("ab")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("plain", {"first": AB}),
        Kind("connecting", {"first": AB}, endpoint="plain", cold=True),
        Kind("savepoint", {"first": AB}),
        Kind("contained", {"first": AB, "inner": AB}),
        Kind("stream", {"first": AB}),
        Kind("stream 2.4", {"first": AB}, endpoint="stream", spec_version="2.4"),
        Kind("reading", {"first": frozenset()}, read_only=True),
        Kind("reading 2.4", {"first": frozenset()}, read_only=True, endpoint="reading", spec_version="2.4"),
        Kind("gather", {"first": frozenset("abc")}, modes=("async",)),
        Kind("background", {"first": AB, "later": AB}),
        Kind("websocket", {"first": AB, "later": AB}),
    )
}


class Refused(Exception):
    """The work of a savepoint or a unit is not wanted after all."""


@dataclass
class Ledger:
    """What the app and the observer saw of one request."""

    outcomes: list[tuple[str, str | None]] = field(default_factory=list)
    called: list[tuple[str, str]] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)


class App(UnitObserver):
    """The app, told by its database what became of each unit."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.threads = 0
        """How many worker threads are inside a handler; one may outlive its request."""
        self._lock = threading.Lock()

    # -- the observer

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        self.ledger.outcomes.append(("first" if unit.is_request else unit.name, unit.outcome))

    # -- the app

    def on(self, database: Database, mode: Mode) -> Any:
        kinds: Any = Async(self) if mode == "async" else Sync(self)
        names = ("plain", "savepoint", "contained", "stream", "reading", "gather", "background")
        routes: list[Any] = [
            Route(f"/{name}/{{key}}", getattr(kinds, name), methods=["GET", "POST"])
            for name in names
            if hasattr(kinds, name)
        ]
        routes.append(WebSocketRoute("/websocket/{key}", functools.partial(self.websocket, kinds.unit)))
        app = Starlette(routes=routes)
        app.add_middleware(UnitOfWorkMiddleware, database=database, retry=retry_of_this_run())
        return app

    async def websocket(self, unit: Callable[[str, str, Ending], Any], websocket: WebSocket) -> None:
        """A unit for each message; what became of it is told when it is over."""
        key, ending = _asked(websocket)
        await websocket.accept()
        for name in ("first", "later"):
            await websocket.receive_text()
            try:
                await unit(key, name, ending)
            except OutcomeUnknown:
                word = "unknown"
            except Exception:
                word = "refused"
            else:
                word = "kept"
            await websocket.send_text(f"{word} {name}")
        await websocket.close()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[None]:
        with self._lock:
            self.threads += 1
        try:
            yield
        finally:
            with self._lock:
                self.threads -= 1

    def note(self, unit: str, *, awaited: bool) -> None:
        """Begin a unit: leave two callbacks with it, the first of which may wait."""
        ledger = self.ledger
        ledger.begun.append(unit)

        async def waits() -> None:
            ledger.called.append((unit, "one"))
            await asyncio.sleep(0)

        on_commit(waits if awaited else lambda: ledger.called.append((unit, "one")))
        on_commit(lambda: ledger.called.append((unit, "two")))


class Async:
    """The kinds with `current_session()`."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def plain(self, request: Request) -> Response:
        key, ending = _asked(request)
        await self.write(key, "first")
        await request.body()
        return Response(status_code=KINDS["plain"].status(ending))

    async def write(self, key: str, unit: str) -> None:
        """A row that is flushed, and one that is left to the end of the unit."""
        self._app.note(unit, awaited=True)
        session = current_session()
        session.add(_item(key, unit, "a"))
        await session.flush()
        session.add(_item(key, unit, "b"))

    async def savepoint(self, request: Request) -> Response:
        """One savepoint that is kept, and one that is undone."""
        key, ending = _asked(request)
        self._app.note("first", awaited=True)
        session = current_session()
        session.add(_item(key, "first", "a"))
        async with session.begin_nested():
            session.add(_item(key, "first", "b"))
        with contextlib.suppress(Refused):
            async with session.begin_nested():
                session.add(_item(key, "first", "c"))
                await session.flush()
                raise Refused
        return Response(status_code=KINDS["savepoint"].status(ending))

    async def contained(self, request: Request) -> Response:
        """Whatever happens inside the savepoint is swallowed around it."""
        key, ending = _asked(request)
        self._app.note("first", awaited=True)
        session = current_session()
        session.add_all([_item(key, "first", "a"), _item(key, "first", "b")])
        await session.flush()
        with contextlib.suppress(Exception):
            async with session.begin_nested():
                await session.execute(insert(Item).values(name=_name(key, "inner", "a")))
                await session.execute(insert(Item).values(name=_name(key, "inner", "b")))
        return Response(status_code=KINDS["contained"].status(ending))

    async def stream(self, request: Request) -> Response:
        key, ending = _asked(request)
        await self.write(key, "first")

        async def body() -> AsyncIterator[bytes]:
            for chunk in (b"a", b"b"):
                await asyncio.sleep(0)
                yield chunk

        return StreamingResponse(body(), KINDS["stream"].status(ending))

    async def reading(self, request: Request) -> Response:
        _, ending = _asked(request)
        self._app.note("first", awaited=True)

        async def body() -> AsyncIterator[str]:
            found = await current_session().stream_scalars(_SEEDS)
            async for name in found:
                yield f"{name} "

        await current_session().scalar(select(Item.name))
        return StreamingResponse(body(), KINDS["reading"].status(ending))

    async def gather(self, request: Request) -> Response:
        key, ending = _asked(request)
        self._app.note("first", awaited=True)

        async def add(letter: str) -> None:
            await current_session().execute(insert(Item).values(name=_name(key, "first", letter)))

        await asyncio.gather(*map(add, "abc"))
        return Response(status_code=KINDS["gather"].status(ending))

    async def background(self, request: Request) -> Response:
        key, ending = _asked(request)
        await self.write(key, "first")
        task = BackgroundTask(self.later, key, ending)
        return Response(status_code=KINDS["background"].status(ending), background=task)

    async def later(self, key: str, ending: Ending) -> None:
        self._app.ledger.ran.append(key)
        with contextlib.suppress(Refused):
            await self.unit(key, "later", ending)

    async def unit(self, key: str, name: str, ending: Ending) -> None:
        async with new_unit(name=name):
            await self.write(key, name)
            if ending == "rollback":
                raise Refused


class Sync:
    """The kinds with `current_sync_session()`, in worker threads."""

    def __init__(self, app: App) -> None:
        self._app = app

    def plain(self, request: Request) -> Response:
        key, ending = _asked(request)
        with self._app.in_thread():
            self.write(key, "first")
        return Response(status_code=KINDS["plain"].status(ending))

    def write(self, key: str, unit: str) -> None:
        session = self._begin(unit)
        session.add(_item(key, unit, "a"))
        session.flush()
        session.add(_item(key, unit, "b"))

    def savepoint(self, request: Request) -> Response:
        key, ending = _asked(request)
        with self._app.in_thread():
            session = self._begin("first")
            session.add(_item(key, "first", "a"))
            with session.begin_nested():
                session.add(_item(key, "first", "b"))
            with contextlib.suppress(Refused), session.begin_nested():
                session.add(_item(key, "first", "c"))
                session.flush()
                raise Refused
        return Response(status_code=KINDS["savepoint"].status(ending))

    def contained(self, request: Request) -> Response:
        key, ending = _asked(request)
        with self._app.in_thread():
            session = self._begin("first")
            session.add_all([_item(key, "first", "a"), _item(key, "first", "b")])
            session.flush()
            with contextlib.suppress(Exception), session.begin_nested():
                session.execute(insert(Item).values(name=_name(key, "inner", "a")))
                session.execute(insert(Item).values(name=_name(key, "inner", "b")))
        return Response(status_code=KINDS["contained"].status(ending))

    def stream(self, request: Request) -> Response:
        key, ending = _asked(request)
        with self._app.in_thread():
            self.write(key, "first")
        return StreamingResponse(iter((b"a", b"b")), KINDS["stream"].status(ending))

    def reading(self, request: Request) -> Response:
        _, ending = _asked(request)

        def body() -> Iterator[str]:
            with self._app.in_thread():
                found = iter(current_sync_session().scalars(_SEEDS))
                name = next(found, None)
            while name is not None:
                yield f"{name} "
                with self._app.in_thread():
                    name = next(found, None)

        with self._app.in_thread():
            self._begin("first").scalar(select(Item.name))
        return StreamingResponse(body(), KINDS["reading"].status(ending))

    def background(self, request: Request) -> Response:
        key, ending = _asked(request)
        with self._app.in_thread():
            self.write(key, "first")
        task = BackgroundTask(self.later, key, ending)
        return Response(status_code=KINDS["background"].status(ending), background=task)

    def later(self, key: str, ending: Ending) -> None:
        self._app.ledger.ran.append(key)
        with contextlib.suppress(Refused):
            self._unit(key, "later", ending)

    async def unit(self, key: str, name: str, ending: Ending) -> None:
        await run_in_threadpool(self._unit, key, name, ending)

    def _unit(self, key: str, name: str, ending: Ending) -> None:
        with self._app.in_thread(), new_unit(name=name):
            self.write(key, name)
            if ending == "rollback":
                raise Refused

    def _begin(self, unit: str) -> Session:
        self._app.note(unit, awaited=False)
        return current_sync_session()


_SEEDS = (
    select(Item.name)
    .where(Item.name.like("seed%"))
    .order_by(Item.name)
    .execution_options(yield_per=1, stream_results=True)
)


def _asked(connection: HTTPConnection) -> tuple[str, Ending]:
    ending: Ending = "rollback" if connection.query_params.get("ending") == "rollback" else "commit"
    return connection.path_params["key"], ending


def _name(key: str, unit: str, letter: str) -> str:
    return f"{key}:{unit}:{letter}"


def _item(key: str, unit: str, letter: str) -> Item:
    return Item(name=_name(key, unit, letter))
