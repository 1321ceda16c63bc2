"""One deadline for a request: what has not begun to answer by then is rolled back, and answered with 503."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from ._context import current_place
from ._messages import deadline_over


class Clock:
    """The time that a request has, from when it came until its answer begins.

    It is set when the options of the unit are known, in whatever thread that is: a request that never asks
    for its unit has all the time that it takes.
    """

    __slots__ = ("_began", "_is_over", "_loop", "_timeout", "seconds")

    def __init__(self, timeout: asyncio.Timeout, began: float) -> None:
        self.seconds = 0.0
        self._timeout = timeout
        self._began = began
        self._is_over = False
        self._loop = asyncio.get_running_loop()

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
        self._is_over = True  # the options may be asked for just now, to judge the answer

    def _set(self, when: float | None) -> None:
        if not self._is_over and not self._timeout.expired():
            self._timeout.reschedule(when)


class Timed(Protocol):
    """A request that has a clock."""

    name: str
    clock: Clock | None

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
                request.clock = Clock(timeout, request.began())
                try:
                    await self.app(scope, receive, send)
                finally:
                    request.clock.stop()
        except TimeoutError:
            if not timeout.expired() or request.clock is None:
                raise  # the app's own
            raise deadline_over(request.name, request.clock.seconds) from None
