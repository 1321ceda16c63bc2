"""A database, the app of `kinds.py` on it, and a second connection that sees what became of each request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from tests.faults.kinds import KINDS, SEEDS, App, Ending, Kind, Ledger
from tests.faults.points import Fault, Listening, Points
from tests.support.asgi import Message, Recorder, watch
from tests.support.backends import Backend, Mode, PostgresBackend
from tests.support.wait import wait_until_async
from tests.uow.units import make_tables, wait_for_threads
from uow import Database
from uow._options import UnitOptions

ENOUGH = 10
"""So many violations tell what is wrong; what follows is mostly what they left behind."""

ASYNCPG_BROKEN_OFF = "unexpected connection_lost() call"
"""Of a future that asyncpg keeps to itself, and forgets, when it is interrupted while it connects."""


class Wire(Recorder):
    """The server's side of one connection; it may have to wait before and after it takes a message."""

    def __init__(self, incoming: list[Message], points: Points, timeline: list[str]) -> None:
        super().__init__(timeline=timeline)
        self._incoming = incoming
        self._points = points
        self._gone = False

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        self._points.message("receive")
        if self._incoming:
            return self._incoming.pop(0)
        if not self._gone:
            await asyncio.get_running_loop().create_future()  # until whoever asks is cancelled
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        try:
            if self._gone:
                raise OSError("the client has gone")
            self._points.message("send")
        except OSError:
            self._gone = True
            raise
        self.messages.append(message)
        self.timeline.append(told(message))
        await asyncio.sleep(0)


def told(message: Message) -> str:
    """One word for a message."""
    if message["type"] == "http.response.start":
        return f"start {message['status']}"
    if message["type"] == "http.response.body":
        return "body" if message.get("more_body", False) else "body last"
    return str(message.get("text", message["type"]))


@dataclass
class Run:
    """One request, the fault that came to it, and what is left of it."""

    kind: Kind
    mode: Mode
    ending: Ending
    points: Points
    ledger: Ledger
    wire: Wire
    task: asyncio.Task[None]
    rows: dict[str, set[str]]
    """What a second connection sees of each unit."""
    left: list[str] = field(default_factory=list)
    """What is not as it was before the request."""

    @property
    def hit(self) -> bool:
        """Whether there was an N-th point."""
        return self.points.hit is not None

    def outcomes(self, unit: str) -> list[str | None]:
        return [outcome for name, outcome in self.ledger.outcomes if name == unit]

    def __str__(self) -> str:
        error = "cancelled" if self.task.cancelled() else repr(self.task.exception())
        return (
            f"{self.kind.name}, {self.mode}, {self.ending}; {self.points}: timeline {self.wire.timeline}, "
            f"{self.ledger}, rows {self.rows}, {error}"
        )


class Second:
    """A connection of its own to the same database, kept open because it is asked thousands of times."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._postgres = None
        if isinstance(backend, PostgresBackend):
            self._postgres = backend.server.connect(backend.dbname)

    def names(self, key: str) -> list[str]:
        """The names of the rows of one request."""
        names = "SELECT name FROM items WHERE name LIKE "
        if self._postgres is None:
            return [row[0] for row in self._backend.query(f"{names} ?", (f"{key}:%",))]
        return [row[0] for row in self._postgres.execute(f"{names} %s", (f"{key}:%",))]

    def sees_rest(self, *, reads: bool) -> bool:
        """Whether nobody is in a transaction, idle or not; a reader's is looked for if it may be there."""
        if self._postgres is None:
            return self._backend.write_lock_free() and not (reads and self._backend.idle_in_transaction())
        return self._postgres.execute(_IN_TRANSACTION).fetchall() == [(0,)]

    def close(self) -> None:
        if self._postgres is not None:
            self._postgres.close()


_IN_TRANSACTION = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    AND (state LIKE 'idle in transaction%' OR backend_xid IS NOT NULL)"""


class Rig:
    """Runs requests of one kind, one after the other, each with its own fault."""

    def __init__(self, backend: Backend, mode: Mode, kind: Kind, database: Database, app: App) -> None:
        self._second = Second(backend)
        self._mode: Mode = mode
        self._kind = kind
        self._app = app
        self.asgi = app.on(database, mode)
        self._timeline: list[str] = []
        self._listening = Listening()
        self._errors: list[str] = []
        self._runs = 0
        options = UnitOptions(read_only=kind.read_only)
        self._engine: AsyncEngine | Engine = database.engine(options, asynchronous=mode == "async")
        self.lost_connection = True
        """Whether the next request has to connect, and its driver to learn its statements."""
        sync_engine = getattr(self._engine, "sync_engine", self._engine)
        event.listen(sync_engine, "close", self._closed)
        if backend.dialect == "sqlite":
            event.listen(sync_engine, "connect", _never_wait_for_the_disk)

    @contextlib.asynccontextmanager
    async def set_up(self) -> AsyncIterator[Rig]:
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()
        loop.set_exception_handler(self._told)
        gc.freeze()  # what is there already need not be looked at in the end
        logging.disable()  # thousands of tracebacks, each of them meant
        try:
            with watch(self._timeline, self._engine), self._listening.on(self._engine):
                yield self
        finally:
            logging.disable(logging.NOTSET)
            self._second.close()
            gc.collect()  # a task whose exception nobody looked at says so when it is freed
            gc.unfreeze()
            loop.set_exception_handler(before)
        if self._errors:
            raise AssertionError(f"the event loop was told of {self._errors}")

    def _closed(self, *_: object) -> None:
        self.lost_connection = True

    def _told(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the event loop has to complain about."""
        if str(context.get("exception")) != ASYNCPG_BROKEN_OFF:
            self._errors.append(str(context))

    async def run(self, ending: Ending, fault: Fault, nth: int) -> Run:
        """Make the request with the fault at its N-th point, and look at what is left."""
        self._runs += 1
        key = str(self._runs)
        points, ledger = Points(fault, nth), Ledger()
        self._app.ledger = ledger
        self._timeline.clear()
        scope, incoming = _request(self._kind, key, ending)
        wire = Wire(incoming, points, self._timeline)
        if self._kind.cold:
            await self._forget_connections()
        self._listening.points = points
        try:
            task = await points.run(self.asgi(scope, wire.receive, wire.send))
            _ = task.cancelled() or task.exception()  # a server looks at it
            await wait_until_async(lambda: self._app.threads == 0, "every thread has left its handler")
        finally:
            self._listening.points = None
        wire.timeline = list(self._timeline)
        run = Run(self._kind, self._mode, ending, points, ledger, wire, task, self._rows(key))
        run.left = await self._left(points)
        return run

    async def _forget_connections(self) -> None:
        if isinstance(self._engine, AsyncEngine):
            await self._engine.dispose()
        else:
            self._engine.dispose()

    def _rows(self, key: str) -> dict[str, set[str]]:
        rows: dict[str, set[str]] = {unit: set() for unit in self._kind.units}
        for name in self._second.names(key):
            _, unit, letter = name.split(":")
            rows[unit].add(letter)
        return rows

    async def _left(self, points: Points) -> list[str]:
        """What is not at rest."""
        left, self._errors[:] = list(self._errors), []
        pool = self._engine.pool
        if pool.checkedout() if isinstance(pool, QueuePool) else "in use" in pool.status():
            left.append(f"I6: a connection is checked out: {pool.status()}")
        rests = partial(self._second.sees_rest, reads=self._kind.read_only)
        await wait_until_async(rests, f"I6: nobody is in a transaction after {points}")
        return left


def _never_wait_for_the_disk(connection: Any, _: object) -> None:
    """The power does not fail here, and there are thousands of commits."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=OFF")
    cursor.close()


@contextlib.asynccontextmanager
async def rig(backend: Backend, mode: Mode, kind_name: str) -> AsyncIterator[Rig]:
    """A pool of one connection, so that one that is lost is missed by the next request."""
    make_tables(backend)
    backend.execute("INSERT INTO items (name) VALUES (?), (?), (?)", SEEDS)
    app, kind = App(), KINDS[kind_name]
    options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
    async with (
        Database(backend.database_url, observer=app, **options) as database,
        Rig(backend, mode, kind, database, app).set_up() as made,
    ):
        yield made
    await wait_for_threads()


async def exhaust(
    made: Rig, ending: Ending, fault: Fault, judge: Callable[[Run], list[str]]
) -> tuple[list[str], list[str]]:
    """The fault at the 1st, 2nd, ... point until there is no N-th; where it came, and what was wrong.

    Each must find nothing of the one before. One that lost its connection is followed by a request without
    a fault: the next one has the same points then as any other, because its connection has seen everything.
    """
    hits: list[str] = []
    wrong: list[str] = []
    before: Run | None = None
    while len(wrong) < ENOUGH:
        if made.lost_connection:
            made.lost_connection = False
            undisturbed = await made.run(ending, fault, 0)
            wrong += [f"{violation} | {undisturbed}, after {before}" for violation in judge(undisturbed)]
        run = before = await made.run(ending, fault, len(hits) + 1)
        wrong += [f"{violation} | {run}" for violation in judge(run)]
        if run.points.hit is None:
            if run.points.count != len(hits):
                wrong.append(f"there were {len(hits)} points, and then {run.points.count} | {run}")
            break
        hits.append(run.points.hit)
        assert len(hits) < 1000, "the points of a request have no end"
    return hits, wrong


def _request(kind: Kind, key: str, ending: Ending) -> tuple[dict[str, Any], list[Message]]:
    path, query = f"/{kind.endpoint or kind.name}/{key}", f"ending={ending}"
    if kind.name == "websocket":
        messages: list[Message] = [{"type": "websocket.connect"}]
        messages += [{"type": "websocket.receive", "text": "write"}] * len(kind.units)
        return scope_of("websocket", "GET", path, query), messages
    scope = scope_of("http", "GET" if kind.read_only else "POST", path, query)
    scope["asgi"]["spec_version"] = kind.spec_version
    return scope, [{"type": "http.request", "body": b"", "more_body": False}]


def scope_of(protocol: str, method: str, path: str, query: str = "") -> dict[str, Any]:
    scope: dict[str, Any] = {
        "type": protocol,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http" if protocol == "http" else "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        "state": {},
    }
    scope["method" if protocol == "http" else "subprotocols"] = method if protocol == "http" else []
    return scope
