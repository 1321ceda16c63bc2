"""One deadline for a request: what has not begun to answer by then is rolled back, and answered with 503."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any, Protocol, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from ._context import current_place
from ._messages import deadline_over

_GRACE = 0.5  # seconds after the deadline that a driver has to leave by itself


class Holder(Protocol):
    """What holds the connection of a request, or waits for one."""

    def cut(self) -> bool:
        """End the link under it, for whoever waits for an answer there; False if nobody does."""
        ...


class Clock:
    """The time that a request has, from when it came until its answer begins.

    It is set when the options of the unit are known, in whatever thread that is: a request that never asks
    for its unit has all the time that it takes.
    """

    __slots__ = (
        "_began", "_cutting", "_loop", "_task", "_timeout", "has_cut", "holders", "is_over", "seconds",
    )  # fmt: skip

    def __init__(self, timeout: asyncio.Timeout, began: float, task: asyncio.Task[Any]) -> None:
        self.seconds = 0.0
        self.holders: set[Holder] = set()  # the units of the request, and those inside of it
        self.has_cut = False
        self._timeout = timeout
        self._began = began
        self.is_over = False
        self._loop = asyncio.get_running_loop()
        self._task = task
        self._cutting: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """The request has so many seconds."""
        self.seconds = seconds
        self._loop.call_soon_threadsafe(self._set, self._began + seconds)

    @property
    def left(self) -> float | None:
        """The seconds that are left; None if it has all the time."""
        return self._began + self.seconds - self._loop.time() if self.seconds else None

    def stop(self) -> None:
        """The answer is there: what it takes to settle the unit has a bound of its own."""
        self._set(None)
        self.is_over = True  # the options may be asked for just now, to judge the answer

    def stop_soon(self) -> None:
        """The same from any thread: a generator may run in one."""
        self._loop.call_soon_threadsafe(self.stop)

    def end(self) -> None:
        """The app was left."""
        self.stop()
        self._cutting = None  # what knows each other would be kept until a garbage collection
        self.holders.clear()
        if self.has_cut:
            self._task.uncancel()  # of the second time: the first is the time-out's own

    def _set(self, when: float | None) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
        if not self.is_over and not self._timeout.expired():
            self._timeout.reschedule(when)
            if when is not None:
                # In no context: that of the request would keep it until its deadline.
                self._cutting = self._loop.call_at(when + _GRACE, self._cut, context=Context())

    def _cut(self) -> None:
        """A driver that was cancelled asks the server to stop, and on a dead link it waits for its answer."""
        was_needed = [holder.cut() for holder in tuple(self.holders)]
        if any(was_needed):
            self.has_cut = True
            self._task.cancel()


class Timed(Protocol):
    """A request that has a clock."""

    name: str
    started: bool
    clock: Clock | None
    seconds: float
    """How long it may take, where an attempt before this one has learnt it; else 0."""

    def began(self) -> float:
        """When it came, in the time of the event loop."""
        ...


_used: list[bool] = []


def use() -> None:
    """An endpoint has a deadline: middlewares that are made from here on keep the time."""
    _used.append(True)


def are_used() -> bool:
    """Whether an endpoint has a deadline."""
    return bool(_used)


class Timing:
    """The app, left when the time of a request is over."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app  # by this name the wiring is looked at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = cast("Timed", current_place())
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                await self._run(request, timeout, scope, receive, send)
        except Exception as error:
            clock = request.clock
            is_ours = isinstance(error, TimeoutError) and timeout.expired()
            if clock is not None and not request.started and (clock.has_cut or is_ours):
                raise deadline_over(request.name, clock.seconds) from None
            raise  # the app's own

    async def _run(
        self, request: Timed, timeout: asyncio.Timeout, scope: Scope, receive: Receive, send: Send
    ) -> None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        clock = request.clock = Clock(timeout, request.began(), task)
        try:
            if request.seconds:
                clock.set(request.seconds)
            await self.app(scope, receive, send)
        finally:
            clock.end()
