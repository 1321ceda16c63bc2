"""One way to write a test for async and sync sessions alike: the work is a function of a `Session`."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import ModuleType
from typing import Any, TypeVar

import anyio.to_thread
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.asgi import Recorder, run_asgi
from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from uow import Database, UnitOfWork, UnitOfWorkMiddleware, current_session, current_sync_session
from uow.observe import Settlement, UnitObserver

Result = TypeVar("Result")
Work = Callable[[Session], Result]

SCHEMA = (
    """CREATE TABLE items (id {serial} PRIMARY KEY, name VARCHAR(20) UNIQUE NOT NULL,
        stock INTEGER DEFAULT 0 CHECK (stock >= 0), version INTEGER DEFAULT 1)""",
    """CREATE TABLE notes (id {serial} PRIMARY KEY, item INTEGER REFERENCES items(id),
        later INTEGER REFERENCES items(id) DEFERRABLE INITIALLY DEFERRED)""",
)

IN_MEMORY = (
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite:///file:x?mode=memory&uri=true",
    "sqlite:///file::memory:?cache=shared&uri=true",
    "sqlite:///file:/shared?vfs=memdb&uri=true",
)
"""The ways to ask for a database that is no file."""


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    stock: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's own way to say it


def make_tables(backend: Backend) -> None:
    for statement in SCHEMA:
        serial = "SERIAL" if backend.dialect == "postgresql" else "INTEGER"
        backend.execute(statement.format(serial=serial))


def run(sql: str, **parameters: Any) -> Work[None]:
    """Work that sends one statement."""

    def work(session: Session) -> None:
        session.execute(text(sql), parameters)

    return work


def insert(name: str) -> Work[None]:
    return run("INSERT INTO items (name) VALUES (:name)", name=name)


def count(session: Session) -> int:
    return int(session.execute(text("SELECT count(*) FROM items")).scalar_one())


def names(backend: Backend) -> list[str]:
    """What a second connection sees."""
    return [row[0] for row in backend.query("SELECT name FROM items ORDER BY id")]


async def within(database: Database, mode: Mode, work: Work[Result], **options: Any) -> Result:
    """Do the work in a unit of its own."""
    if mode == "async":
        async with database.new_unit(**options) as unit:
            return await unit.session.run_sync(work)

    def in_thread() -> Result:
        with database.new_unit(**options) as unit:
            return work(unit.sync_session)

    return await anyio.to_thread.run_sync(in_thread)


def endpoint(mode: Mode, work: Work[Any], status: int = 201) -> Callable[[Request], Any]:
    """An endpoint that does the work and answers with what it returned."""
    if mode == "async":

        async def handle(_: Request) -> Response:
            return JSONResponse(await current_session().run_sync(work), status)

        return handle

    def handle_sync(_: Request) -> Response:
        return JSONResponse(work(current_sync_session()), status)

    return handle_sync


def app_of(endpoint: Callable[[Request], Any], database: Database, **options: Any) -> Starlette:
    """An app with one endpoint at `/work`; `handlers` are its exception handlers."""
    handlers = options.pop("handlers", None)
    methods = ["GET", "POST", "PUT"]
    app = Starlette(routes=[Route("/work", endpoint, methods=methods)], exception_handlers=handlers)
    app.add_middleware(UnitOfWorkMiddleware, database=database, **options)
    return app


async def request(
    database: Database,
    mode: Mode,
    work: Work[Any],
    *,
    method: str = "POST",
    status: int = 201,
    **options: Any,
) -> Recorder:
    """Do the work in a request, and record its answer."""
    return await run_asgi(app_of(endpoint(mode, work, status), database, **options), method, "/work")


class Told(UnitObserver):
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.waits: list[tuple[str, float]] = []
        self.statements: list[tuple[str, float]] = []
        self.outcomes: list[tuple[str, str | None]] = []
        self.ends: list[Settlement] = []
        self.opened_names: list[str] = []
        self.gone: list[str] = []

    def opened(self, unit: UnitOfWork) -> None:
        self.opened_names.append(unit.name)

    def connected(self, unit: UnitOfWork, waited: float) -> None:
        self.waits.append((unit.name, waited))

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        self.statements.append((unit.name, seconds))

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        self.outcomes.append((unit.name, unit.outcome))
        self.ends.append(how)

    def client_gone(self, unit: UnitOfWork) -> None:
        self.gone.append(unit.name)


async def in_thread(call: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    return await anyio.to_thread.run_sync(functools.partial(call, *args, **kwargs))


def elsewhere(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """Run it in a task that is inside no unit, whatever is open here."""
    return asyncio.get_running_loop().create_task(work, context=Context())


async def wait_for_threads() -> None:
    """Return when aiosqlite's threads have ended: each tells its loop so, which must still be there."""
    await wait_until_async(
        lambda: not any("_connection_worker" in thread.name for thread in threading.enumerate()),
        "every connection of aiosqlite is closed",
    )


async def add(name: str) -> None:
    """What a repository does: a statement on the session of the running unit."""
    await current_session().execute(text("INSERT INTO items (name) VALUES (:name)"), {"name": name})


async def waiting(unit: UnitOfWork, calls: int) -> None:
    """Return when so many calls wait for their turn."""
    assert unit._work is not None
    work = unit._work
    await wait_until_async(lambda: len(work._queue) >= calls, "the calls to wait")


def garbage() -> list[str]:
    """The types of ours that a collection finds; by name, because a failed test would keep the objects."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return sorted({_name_of(found) for found in gc.garbage} - {""})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def _name_of(found: Any) -> str:
    kind = type(found)
    module = "" if isinstance(found, ModuleType) else str(kind.__module__)
    return f"{module}.{kind.__name__}" if module.partition(".")[0] == "uow" else ""
