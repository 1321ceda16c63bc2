"""Apps whose requests have idempotency keys, for tests of `uow.idempotency`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.asgi import Recorder, run_asgi
from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.units import Work, add, endpoint, insert
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session
from uow.idempotency import IdempotencyMiddleware, table

REPLAYED = "idempotency-replayed"
IN_USE = (409, "/problems/idempotency-key-in-use")

both = pytest.mark.backends("sqlite", "pg18")
one = pytest.mark.backends("sqlite")


def make_keys(backend: Backend) -> None:
    """Make the table of the keys."""
    engine = create_engine(backend.url("sync"))
    table(metadata := MetaData())
    metadata.create_all(engine)
    engine.dispose()


def keyed(
    endpoint: Callable[..., Any],
    database: Database,
    *,
    unit: dict[str, Any] | None = None,
    **options: Any,
) -> Starlette:
    """An app with one endpoint at `/work`; `unit` is for UnitOfWorkMiddleware."""
    handlers = options.pop("handlers", None)
    app = Starlette(
        routes=[Route("/work", endpoint, methods=["GET", "POST", "PUT"])], exception_handlers=handlers
    )
    app.add_middleware(IdempotencyMiddleware, **{"principal": None, **options})
    app.add_middleware(UnitOfWorkMiddleware, database=database, **(unit or {}))
    return app


class Counted:
    """Work that inserts a row, and answers how often it was run."""

    def __init__(self, *, status: int = 201, work: Work[Any] | None = None) -> None:
        self.runs = 0
        self.status = status
        self.work = work

    def __call__(self, session: Any) -> dict[str, int]:
        self.runs += 1
        insert(f"run-{self.runs}")(session)
        if self.work is not None:
            self.work(session)
        return {"run": self.runs}


def counting(mode: Mode, work: Counted) -> Callable[[Request], Any]:
    """The endpoint that does it."""
    if mode == "async":

        async def handle(_: Request) -> Response:
            return JSONResponse(await current_session().run_sync(work), work.status)

        return handle

    def handle_sync(_: Request) -> Response:
        return JSONResponse(work(current_sync_session()), work.status)

    return handle_sync


def answering(response: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that inserts a row and answers so."""

    async def handle(_: Request) -> Response:
        await add(f"row-{len(made)}")
        made.append(1)
        return response()

    made: list[int] = []
    return handle


class Held:
    """An endpoint that inserts a row and then waits until it is let go, each time it runs."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = [*statuses]
        self.runs = 0
        self.entered = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0)

    async def __call__(self, _: Request) -> Response:
        self.runs += 1
        run = self.runs
        await add(f"run-{run}")
        self.entered.release()
        await self.go.acquire()
        return JSONResponse({"run": run}, self.statuses.pop(0) if self.statuses else 201)

    @property
    def endpoint(self) -> Callable[[Request], Any]:
        async def handle(request: Request) -> Response:
            return await self(request)

        return handle


def problem(answer: Recorder) -> tuple[int | None, str]:
    return answer.status, answer.json()["type"]


async def held_elsewhere(held: Held, database: Database, key: str = "k-1") -> asyncio.Task[Any]:
    """A first request that has got as far as into its endpoint."""
    first = asyncio.ensure_future(send(keyed(held.endpoint, database), key))
    await held.entered.acquire()
    return first


def path_of_locks(backend: Backend) -> str:
    assert isinstance(backend, SqliteBackend)
    return f"{os.path.realpath(backend.path)}-keys"


def open_lock_files(backend: Backend) -> int:
    """How many this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found += os.readlink(entry) == path_of_locks(backend)
    return found


async def send(
    app: Any, key: str | None = "k-1", *, method: str = "POST", path: str = "/work", **options: Any
) -> Recorder:
    """One request with a key."""
    headers = dict(options.pop("headers", {}))
    if key is not None:
        headers["Idempotency-Key"] = key
    return await run_asgi(app, method, path, headers=headers, **options)


def rows(backend: Backend) -> list[tuple[Any, ...]]:
    """The keys that a second connection sees, each with the status of its answer."""
    return backend.query('SELECT principal, "key", status FROM idempotency_keys ORDER BY principal, "key"')


__all__ = [
    "IN_USE", "REPLAYED", "Counted", "Held", "answering", "both", "counting", "endpoint", "held_elsewhere",
    "keyed", "make_keys", "one", "open_lock_files", "path_of_locks", "problem", "rows", "send",
]  # fmt: skip
