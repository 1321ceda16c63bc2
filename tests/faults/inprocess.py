"""The fault tests' app in this process, where a test can cancel exactly what it wants to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio

from tests.faults.app import Told, make_app
from tests.support.asgi import ASGIApp, AsgiCall, Message
from tests.support.backends import Backend, Mode
from tests.support.gate import install_commit_gate
from tests.uow.units import wait_for_threads
from uow import Database
from uow._options import UnitOptions

Cancel = Callable[[], None]


class Service:
    """The app, its database, and what its observer was told."""

    def __init__(self, database: Database, told: Told) -> None:
        self.database = database
        self.told = told
        self.app = make_app(database, told)
        self.standing: list[str] = self.app.state.standing

    def post(self, path: str, **options: Any) -> AsgiCall:
        return AsgiCall(options.pop("app", self.app), "POST", path, **options)

    async def works(self, mode: Mode, name: str = "works") -> None:
        """A later request is served as if nothing had happened."""
        recorder = await self.post(f"/{mode}/items/{name}").run()
        assert recorder.status == 201, recorder.error


@contextlib.asynccontextmanager
async def service(backend: Backend, **options: Any) -> AsyncIterator[Service]:
    """The app on this database; on SQLite its COMMITs can be held."""
    told = Told()
    async with Database(backend.database_url, observer=told, **options) as database:
        if backend.dialect == "sqlite":
            for asynchronous in (True, False):
                engine = database.engine(UnitOptions(), asynchronous=asynchronous)
                install_commit_gate(engine, backend.gate)
        yield Service(database, told)
    await wait_for_threads()


class Scoped:
    """An app inside a cancel scope of anyio's, as a framework's time-out puts it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.scope = anyio.CancelScope()

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        with self.scope:
            await self._app(scope, receive, send)


WAYS = ("task.cancel", "anyio scope", "client leaves a stream")


def start(service: Service, way: str, mode: Mode, name: str) -> tuple[asyncio.Task[Any], AsgiCall, Cancel]:
    """A request that runs, and the way to cancel it."""
    if way == "client leaves a stream":
        call = service.post(f"/{mode}/stream/{name}")
        return asyncio.ensure_future(call.run()), call, call.disconnect
    if way == "anyio scope":
        scoped = Scoped(service.app)
        call = service.post(f"/{mode}/items/{name}", app=scoped)
        return asyncio.ensure_future(call.run()), call, scoped.scope.cancel
    call = service.post(f"/{mode}/items/{name}")
    task = asyncio.ensure_future(call.run())

    def cancel() -> None:
        task.cancel()

    return task, call, cancel


async def let_others_run() -> None:
    """Enough turns of the event loop for a cancellation to arrive everywhere."""
    for _ in range(50):
        await asyncio.sleep(0)
