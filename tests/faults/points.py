"""Every point of a request at which something can go wrong, counted; at the N-th, something does.

A point is a moment at which a task of the request waits, an event of SQLAlchemy, or a call of the
server's `send` or `receive`. The tasks that the request starts count as well: that of the settling,
the children of a `gather`, those of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool

from tests.support.wait import LIMIT

Source = Literal["await", "event", "message"]
Way = Literal["raise", "cancel", "cancel late"]

ENGINE_EVENTS = (
    "before_cursor_execute",
    "after_cursor_execute",
    "begin",
    "commit",
    "rollback",
    "savepoint",
    "rollback_savepoint",
    "release_savepoint",
)
POOL_EVENTS = ("checkout", "checkin")
NEVER_RAISES = frozenset({"checkin"})
"""SQLAlchemy calls these listeners before it takes the connection back, and loses it if one raises."""
SESSION_EVENTS = ("before_flush", "after_flush")

TURNS = 50
"""So many turns of the event loop take a cancellation everywhere."""
NEVER_FAIL = frozenset({"_shield._done_or_late"})
"""Who waits for a bell of its own, which only rings: no exception can come from there."""


class Injected(Exception):
    """What goes wrong; nothing in the code under test knows it."""


@dataclass(frozen=True)
class Fault:
    """What happens at the N-th point of a source.

    "await" and "raise": the wait ends with an exception where its result should be. "cancel" cancels the
    request's task as the wait begins, "cancel late" as it ends: its result is there, and is lost. "event"
    raises in a listener, or cancels there. "message" lets the server's `send` or `receive` fail.
    """

    source: Source
    way: Way

    def __str__(self) -> str:
        return f"{self.way} at {self.source}"


class Points:
    """Counts the points of one request, and acts at the N-th of them."""

    def __init__(self, fault: Fault, nth: int) -> None:
        self.fault = fault
        self.nth = nth
        self.count = 0
        self.hit: str | None = None
        """Where the fault came; None if there was no N-th point."""
        self.tasks: list[asyncio.Task[Any]] = []
        self.cancelled = False

    async def run(self, request: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the request in a task of its own; returns when it and every task it has begun are done."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._make_task)
        try:
            task = loop.create_task(request)
            while pending := [task for task in self.tasks if not task.done()]:
                _, late = await asyncio.wait(pending, timeout=LIMIT)
                if late:
                    raise AssertionError(f"{self}: never at an end: {late}")
        finally:
            loop.set_task_factory(None)
        return task

    def awaited(self, waited_for: Any, coroutine: Any) -> Injected | None:
        """A task begins to wait; returns what it is to get instead of a result."""
        if self.fault.source != "await":
            return None
        where = _where(coroutine)
        if self.fault.way == "raise" and where in NEVER_FAIL:
            return None
        if not self._is_nth("await", lambda: where):
            return None
        if self.fault.way == "raise":
            return Injected(self.hit)
        if self.fault.way == "cancel":
            self._cancel()
        elif waited_for is None:  # a bare yield, which ends with the next turn of the loop
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            waited_for.add_done_callback(lambda _: self._cancel())
        return None

    def event(self, name: str) -> None:
        """SQLAlchemy tells of something, on the loop or in a worker thread."""
        if self.fault.way == "raise" and name in NEVER_RAISES:
            return
        if not self._is_nth("event", lambda: name):
            return
        if self.fault.way == "raise":
            raise Injected(name)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._cancel_from_thread()
        else:
            self._cancel()

    def message(self, what: str) -> None:
        """The app calls the server."""
        if self._is_nth("message", lambda: what):
            raise OSError(f"{what}: the client has gone")

    def __str__(self) -> str:
        return f"{self.fault}, point {self.nth} ({self.hit})"

    def _is_nth(self, source: Source, what: Callable[[], str]) -> bool:
        if source != self.fault.source:
            return False
        self.count += 1
        if self.count != self.nth:
            return False
        self.hit = what()
        return True

    def _cancel(self) -> None:
        self.cancelled = self.tasks[0].cancel()  # the first is the request's own

    def _cancel_from_thread(self) -> None:
        """Return when the loop has taken it as far as it can, so that the thread goes on after it."""
        loop, done = self.tasks[0].get_loop(), threading.Event()

        def turn(left: int) -> None:
            if left:
                loop.call_soon(turn, left - 1)
            else:
                done.set()

        def cancel() -> None:
            self._cancel()
            turn(TURNS)

        loop.call_soon_threadsafe(cancel)
        assert done.wait(LIMIT)

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(Stepped(work, self), loop=loop, **options)
        self.tasks.append(task)
        return task


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine whose every wait is a point."""

    def __init__(self, inner: Coroutine[Any, Any, Any], points: Points) -> None:
        self._inner = inner
        self._points = points
        self._instead: Injected | None = None

    def send(self, value: Any) -> Any:
        instead, self._instead = self._instead, None
        return self._waits(self._inner.send(value) if instead is None else self._inner.throw(instead))

    def throw(self, *error: Any) -> Any:
        self._instead = None
        return self._waits(self._inner.throw(*error))

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("only a task drives it")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # anyio looks at `cr_running` and its like

    def _waits(self, waited_for: Any) -> Any:
        self._instead = self._points.awaited(waited_for, self._inner)
        return waited_for


def _where(waiting: Any) -> str:
    """The module and the name of the function, below a coroutine, that waits."""
    while (below := getattr(waiting, "cr_await", None) or getattr(waiting, "ag_await", None)) is not None:
        if not hasattr(below, "cr_code") and not hasattr(below, "ag_code"):
            break
        waiting = below
    code = getattr(waiting, "cr_code", None) or getattr(waiting, "ag_code", None)
    return type(waiting).__name__ if code is None else f"{Path(code.co_filename).stem}.{code.co_qualname}"


class Listening:
    """Listeners for every event of an engine, its pool and all sessions; they tell whom they are given."""

    def __init__(self) -> None:
        self.points: Points | None = None

    @contextlib.contextmanager
    def on(self, engine: Engine | AsyncEngine) -> Iterator[None]:
        sync_engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        targets: list[tuple[Engine | Pool | type[Session], tuple[str, ...]]] = [
            (sync_engine, ENGINE_EVENTS),
            (sync_engine.pool, POOL_EVENTS),
            (Session, SESSION_EVENTS),
        ]
        listeners = [(target, name, self._listener(name)) for target, names in targets for name in names]
        for listener in listeners:
            event.listen(*listener)
        try:
            yield
        finally:
            for listener in listeners:
                event.remove(*listener)

    def _listener(self, name: str) -> Callable[..., None]:
        def listener(*_: Any) -> None:
            if self.points is not None:
                self.points.event(name)

        return listener
