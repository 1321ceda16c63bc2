"""One request: the place where its code runs, and the way on which its answer goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Token
from dataclasses import dataclass
from functools import partial
from typing import Self

from starlette.types import Message, Receive, Scope, Send

from . import _messages
from ._answer import Answer, drop
from ._context import AFTERWARDS, Place
from ._deadlines import Clock
from ._options import UnitOptions, options_of
from ._rules import Rules
from ._unit import UnitOfWork
from .database import Database
from .errors import NoUnitOfWork


@dataclass(frozen=True, slots=True)
class Settings:
    """What all requests of a middleware have in common."""

    database: Database
    writing: UnitOptions
    reading: UnitOptions
    read_only_methods: frozenset[str]
    check_wiring: Callable[[Scope], None]
    rules: Rules | None


class Exchange(Place):
    """The state of one request: made for it, and gone with it.

    Its unit and its answer are made when they are asked for, so that a request without a unit pays for
    nothing but this object.
    """

    __slots__ = (
        "_answer", "_settings", "over", "scope", "server_receive", "server_send", "started", "token",
        "unit",
    )  # fmt: skip

    token: Token[Place]
    """What to leave this place by; it knows the place around."""

    def begin(self, settings: Settings, scope: Scope, receive: Receive, send: Send) -> Self:
        """Take a request; no `__init__`, which Python 3.11 calls by a detour of 70 ns."""
        self.unit: UnitOfWork | None = None
        self.scope = scope
        self.server_receive = receive
        self.server_send = send
        self.started = False  # the start of the answer went to the server
        self.over = False  # its last body as well, or there will be none
        self._settings = settings
        self._answer: Answer | None = None
        return self

    @property
    def database(self) -> Database:
        """The database of the middleware."""
        return self._settings.database

    @property
    def name(self) -> str:
        """What the log and the errors call this request."""
        return f"{self.scope['method']} {self.scope['path']}"

    def current(self) -> UnitOfWork:
        """The unit of this request; NoUnitOfWork after its answer."""
        if self.over or (self._answer is not None and self._answer.is_cut):
            raise NoUnitOfWork(AFTERWARDS)
        if self.unit is None:
            self._settings.check_wiring(self.scope)
            with self.database.opening:  # two threads of one request must not have two units
                if self.unit is None:
                    self.unit = self._make_unit()
            if self.started and not self.unit.outlives_start:  # since just now: see send()
                raise _messages.closed(self.name)
            if self.started:
                self.streaming()
                self.answer.begin_stream()
        return self.unit

    def _make_unit(self) -> UnitOfWork:
        """The unit; once the answer has begun only one that it may keep, for what it streams."""
        options = self._options(self._default_options())
        around = self.token.old_value  # a request may be made inside of a unit, in a test for example
        outer = around.unit if isinstance(around, Place) else None
        unit = UnitOfWork(self.database, self.name, options, is_request=True, outer=outer)
        if self.started and not unit.outlives_start:
            raise _messages.closed(self.name)
        return unit

    def _options(self, default: UnitOptions) -> Callable[[], UnitOptions]:
        """What looks the options up; it must not know this object, or a garbage collector had to free it."""
        return partial(_look_up, self.scope, default, None, "", None)

    def _default_options(self) -> UnitOptions:
        settings = self._settings
        reads = self.scope["method"] in settings.read_only_methods
        return settings.reading if reads else settings.writing

    def send(self, message: Message) -> Awaitable[None]:
        """The server's `send`, held back at the start of the answer until the unit is settled.

        A request without a unit gets the server's own awaitable: there is nothing to wait for.
        """
        if self.unit is None:
            if self.started:
                if "more_body" not in message or not message["more_body"]:  # half the time of get()
                    self.over = True
                return self.server_send(message)
            if message["type"] != "http.response.start":
                return self.server_send(message)
            self.started = True
            if self.unit is None:
                return self.server_send(message)
            self.started = False  # a thread has made one just now: see current()
        return self.answer.send(message)

    async def receive(self) -> Message:
        """The server's `receive`, which tells when the client leaves early."""
        message = await self.server_receive()
        if message["type"] == "http.disconnect" and self.unit is not None and not self.over:
            self.answer.client_left()
        return message

    @property
    def answer(self) -> Answer:
        """The answer, from when it is known that there is something to judge."""
        if self._answer is None:
            self._answer = Answer(self)
        return self._answer

    async def failed(self, error: BaseException) -> None:
        """The app has raised."""
        await self.answer.failed(error)

    def answering(self) -> None:
        """The answer is there, and about to be judged."""

    def streaming(self) -> None:
        """The unit is asked for first by the body, which has a bound of its own; in whatever thread."""

    def begun(self) -> None:
        """The answer begins: the unit is settled, or outlives it."""
        self.started = True

    def may_replay(self, failure: BaseException) -> bool:
        """Whether the request is to run again after its unit has failed so: not by the core."""
        return False

    async def end(self) -> None:
        """The app has ended, and there may be something that it has left undone."""
        if self.unit is not None or self._answer is not None:
            await self.answer.end()
        self.over = True

    def let_go(self) -> None:
        """The request is over: what knows each other would be kept until a garbage collection."""
        self.answer.silence()
        self._answer = None
        self.server_send = drop  # for a task that has kept `send`


class OptionedExchange(Exchange):
    """One request of a middleware that has rules for routes, deadlines, or both."""

    __slots__ = ("_root", "clock", "seconds")

    def begin(self, settings: Settings, scope: Scope, receive: Receive, send: Send) -> Self:
        super().begin(settings, scope, receive, send)
        self._root: str = scope.get("root_path", "")  # mounts inside will move it
        self.clock: Clock | None = None
        self.seconds = 0.0
        return self

    def began(self) -> float:
        """When the request came, in the time of the event loop."""
        return asyncio.get_running_loop().time()

    def _make_unit(self) -> UnitOfWork:
        unit = super()._make_unit()
        unit.clock = self.clock
        return unit

    def answering(self) -> None:
        if self.clock is not None:
            self.clock.stop()

    def streaming(self) -> None:
        if self.clock is not None:
            self.clock.stop_soon()

    def _options(self, default: UnitOptions) -> Callable[[], UnitOptions]:
        return partial(_look_up, self.scope, default, self._settings.rules, self._root, self.clock)


def _look_up(
    scope: Scope, default: UnitOptions, rules: Rules | None, root: str, clock: Clock | None
) -> UnitOptions:
    options = options_of(scope, default, rules, root)
    if options.retry and not default.retry:
        raise RuntimeError(
            "retry=True is asked for by unit_options() or a rule, and the middleware knows no way: give it "
            "retry=Retry(), of uow.retry"
        )
    if options.deadline is not None:
        if clock is None:
            raise RuntimeError(
                "unit_options(deadline=) was used after UnitOfWorkMiddleware was made, which keeps no time "
                "therefore: declare the routes first, or give the middleware a deadline"
            )
        clock.set(options.deadline)
    return options
