"""The whole request again, where its unit is known to be aborted: `UnitOfWorkMiddleware(retry=Retry())`.

Optional: the core knows no more of it than that an attempt can be dropped before anything was sent.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self

from anyio import move_on_after
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._context import current_place
from ._exchange import Exchange, OptionedExchange, Settings
from ._unit import UnitOfWork
from .problems import Condition

__all__ = ["Retry"]

logger = logging.getLogger("uow")

_MOST_PARTS = 4096  # of a body that is kept: each costs memory besides its own bytes
# A connection that was lost is counted: the request itself may be what costs the server its processes.
_COUNTED = frozenset(
    {
        Condition.SERIALIZATION,
        Condition.LOCK_TIMEOUT,
        Condition.STALE,
        Condition.READ_ONLY,
        Condition.CONNECTION_LOST,
    }
)


@dataclass(frozen=True, slots=True)
class Retry:
    """How requests are run again whose units are known to be aborted, through no fault of theirs.

    After a deadlock, a serialization failure, a lock time-out, or the loss of a connection before COMMIT was
    sent, a request has `attempts` in all. Where no connection can be made, it is tried for `seconds`; so long
    an attempt waits for those of others, too. The pauses between are random, up to `first_pause` at first,
    twice as long each time and at most `longest_pause` seconds. A request whose body is longer than
    `body_limit` bytes is not run again.

    Raises ValueError for a bound that is none.
    """

    attempts: int = 5
    seconds: float = 10.0
    first_pause: float = 0.01
    longest_pause: float = 1.0
    body_limit: int = 1024 * 1024

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts!r}: a request has at least one attempt")
        for name in ("seconds", "first_pause", "longest_pause", "body_limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r} is below 0")

    def exchange(self, middleware: ASGIApp) -> Exchange:
        """The exchange of a request that may be run again, by this middleware."""
        return _Attempt(self, middleware)

    def app(self, app: ASGIApp) -> ASGIApp:
        """The app, entered by the later attempts of a request one at a time."""
        return _InTurn(app, self)

    def pause(self, attempt: int) -> float:
        """Seconds to wait after this attempt; random, so that those who met do not meet again."""
        return random.uniform(0, min(self.longest_pause, self.first_pause * 2.0 ** min(attempt - 1, 60)))


class _Attempts:
    """The attempts of one request, and what they have read of its body."""

    def __init__(self, retry: Retry, middleware: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self.retry = retry
        self.number = 1
        self.lost = 0
        self.send = send
        self.body_is_kept = True
        self.dropped = False
        self.until = monotonic() + retry.seconds
        self.began = asyncio.get_running_loop().time()
        self.seconds = 0.0  # that the request may take, as soon as it is known
        self._middleware = middleware
        self._scope = scope
        self._receive = receive
        self._saved = _Saved(scope)
        self._read: list[Message] = []
        self._length = 0
        self._reading = asyncio.Lock()

    async def read(self, place: int) -> Message:
        """What comes at this place of the body; one at a time, because attempts may overlap in asking."""
        if place < len(self._read):
            return self._read[place]
        async with self._reading:
            if place < len(self._read):
                return self._read[place]
            message = await self._receive()
            if message["type"] == "http.request" and self.body_is_kept:
                self._length += len(message.get("body", b""))
                self._read.append(message)
                if self._length > self.retry.body_limit or len(self._read) > _MOST_PARTS:
                    self.body_is_kept = False
                    self._read.clear()
            return message

    def may_go_on(self, condition: Condition | None) -> bool:
        """Whether there is another attempt after a failure of this kind."""
        if not self.body_is_kept:
            return False
        if condition is Condition.UNAVAILABLE:
            return monotonic() < self.until
        return condition in _COUNTED and self.lost + 1 < self.retry.attempts

    async def again(self) -> None:
        """Run the app again, from what the middleware had received, until an attempt is not dropped."""
        while self.dropped:
            await asyncio.sleep(self.retry.pause(self.number))
            self.dropped = False
            self.number += 1
            self._saved.restore(self._scope)
            await self._middleware(self._scope, _Reader(self), self.send)


class _Reader:
    """The `receive` of one attempt, from the beginning of the body."""

    def __init__(self, attempts: _Attempts) -> None:
        self.attempts = attempts
        self.is_over = False
        self._place = 0

    async def __call__(self) -> Message:
        if self.is_over:  # a task of a dropped attempt must not take what the next one is to read
            return {"type": "http.disconnect"}
        message = await self.attempts.read(self._place)
        self._place += 1
        return message


class _Saved:
    """The scope as the middleware received it, to be put back in place: outer middlewares hold it."""

    def __init__(self, scope: Scope) -> None:
        self._scope = dict(scope)
        self._inner = {
            name: (dict(scope[name]), dict(getattr(scope[name], "__dict__", {})))
            for name in ("state", "session")
            if name in scope
        }

    def restore(self, scope: Scope) -> None:
        """What a handler has changed in the values of `state` and `session` themselves stays changed."""
        scope.clear()
        scope.update(self._scope)
        for name, (values, marks) in self._inner.items():
            inner: MutableMapping[str, Any] = scope[name]
            inner.clear()
            inner.update(values)
            if hasattr(inner, "__dict__"):  # Starlette's session remembers there that it was changed
                vars(inner).clear()
                vars(inner).update(marks)


class _Attempt(OptionedExchange):
    """One attempt, dropped before anything of it was sent, or the one that answers."""

    __slots__ = ("_attempts", "_middleware", "_reader", "_retry", "turn")

    turn: Callable[[], None] | None
    """How to let others go on who fight for the same rows."""

    def __init__(self, retry: Retry, middleware: ASGIApp) -> None:
        self._retry = retry
        self._middleware = middleware

    def begin(self, settings: Settings, scope: Scope, receive: Receive, send: Send) -> Self:
        before = receive.attempts if isinstance(receive, _Reader) else None
        self._attempts = before or _Attempts(self._retry, self._middleware, scope, receive, send)
        self._reader = _Reader(self._attempts)
        super().begin(settings, scope, self._reader, self._attempts.send)
        self.seconds = self._attempts.seconds
        self.turn = None
        return self

    def leave_lane(self) -> None:
        """The rows are free: neither the body nor what comes after it holds up others."""
        turn, self.turn = self.turn, None
        if turn is not None:
            turn()

    def begun(self) -> None:
        super().begun()
        self.leave_lane()

    def send(self, message: Message) -> Awaitable[None]:
        if self.unit is None:
            self.leave_lane()
        return super().send(message)

    def began(self) -> float:
        return self._attempts.began  # one deadline for all attempts

    @property
    def number(self) -> int:
        """Which attempt it is, from 1."""
        return self._attempts.number

    @property
    def lost(self) -> int:
        """How many of the attempts before it were undone; those that got no connection are not counted."""
        return self._attempts.lost

    def _make_unit(self) -> UnitOfWork:
        unit = super()._make_unit()
        unit.attempt = self.number
        return unit

    def may_replay(self, failure: BaseException) -> bool:
        unit = self.unit
        if self.started or unit is None or self._is_late:
            return False
        if unit.outcome != "rolled_back" and not (unit.outcome is None and unit.is_open):
            return False  # what was kept, or may be, is never done again
        return unit.options.retry and unit.may_retry and self._attempts.may_go_on(self._condition(failure))

    def _condition(self, failure: BaseException) -> Condition | None:
        """What the database did to the unit; None if nothing, or if there was no room for it.

        An error of another unit, which the handler has opened and let out, is not this one's.
        """
        assert self.unit is not None
        cause = failure if isinstance(failure, StaleDataError) else self.unit.failure
        if cause is None or isinstance(cause, PoolTimeout):
            return None
        return self.unit.condition(cause)

    @property
    def _is_late(self) -> bool:
        """Whether the deadline is over: there is no time for another attempt."""
        left = None if self.clock is None else self.clock.left
        return left is not None and left <= 0

    def meets_others(self) -> bool:
        """Whether it may write, and so fight for rows with other requests."""
        return self.scope["method"] not in self._settings.read_only_methods

    async def end(self) -> None:
        """Drop the attempt and make another one, or answer."""
        refused = None if self._answer is None else self._answer.refused
        if refused is None or not self.may_replay(refused):
            await super().end()
            return
        number = self.number
        logger.info("%s: attempt %d was rolled back (%r), and is made again", self.name, number, refused)
        if self._condition(refused) in _COUNTED:
            self._attempts.lost += 1
        self.over = True
        self._reader.is_over = True
        self.let_go()
        self.unit = None  # it is not around the next one
        self._attempts.dropped = True
        self._attempts.seconds = 0.0 if self.clock is None else self.clock.seconds
        if number == 1:
            await self._attempts.again()


class _InTurn:
    """The app, and who runs in it at the same time.

    Requests that fight for one row go on meeting each other when they only wait for a while: under
    SERIALIZABLE one of those that run at once can win. So the later attempts of requests that may write
    run one at a time, and the last one of each while no other such request runs. All these waits are
    bounded, and nobody waits with a transaction open. Other processes are not waited for.
    """

    def __init__(self, app: ASGIApp, retry: Retry) -> None:
        self.app = app  # by this name the wiring is looked at
        self._retry = retry
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}  # those with somebody in them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = current_place() if scope["type"] == "http" else None  # there is none around a lifespan
        if not isinstance(place, _Attempt) or not place.meets_others():
            await self.app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        lane = self._lanes.setdefault(loop, _Lane())
        lane.users += 1
        try:
            place.turn = await lane.enter(place.lost + 1, self._retry)
            await self.app(scope, receive, send)
        finally:
            place.leave_lane()
            lane.users -= 1
            if not lane.users:
                del self._lanes[loop]


class _Lane:
    """Where attempts wait for each other."""

    def __init__(self) -> None:
        self.users = 0
        self._inside = 0
        self._late = asyncio.Lock()
        self._changed = asyncio.Event()
        self._is_closed = False

    async def enter(self, attempt: int, retry: Retry) -> Callable[[], None]:
        """Wait until the attempt may run, not for ever: a handler may call its own service. How to leave."""
        is_last = 1 < attempt == retry.attempts
        is_alone = False

        def leave() -> None:
            if is_alone:
                self._late.release()
                self._is_closed &= not is_last
            self._changed.set()

        try:
            with move_on_after(retry.longest_pause if attempt == 1 else retry.seconds):
                is_alone = attempt > 1 and await self._late.acquire()
                self._is_closed |= is_last
                while self._inside if is_last else self._is_closed and attempt == 1:
                    self._changed.clear()
                    await self._changed.wait()
        except BaseException:
            leave()
            raise
        self._inside += 1

        def done() -> None:
            self._inside -= 1
            leave()

        return done
