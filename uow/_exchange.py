"""One request and its one answer: the answer waits for the unit, and a refused one never leaves."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

import anyio
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from . import _messages
from ._context import AFTERWARDS, Place
from ._options import UnitOptions, options_of
from ._unit import UnitOfWork
from .database import Database
from .errors import NoUnitOfWork, UnitOfWorkDoomed, UnitOfWorkError
from .problems import PROBLEMS, Condition, Problem, misuse_of, problem_response

logger = logging.getLogger("uow")


_OF_AN_ANSWER = ("http.response.body", "http.response.pathsend", "http.response.trailers")


class _Unwind(Exception):
    """Leaves the app, so that nothing of a refused answer goes on: no body, no background task.

    Private, so that no handler of the app can be registered for it; an Exception, so that a dependency's
    `except Exception: undo()` runs. What arrives at the other end may be something else (dependencies
    swallow, task groups wrap), so nobody looks at it: the exchange knows what it refused.
    """


class Exchange(Place):
    """The state of one request: made for it, and gone with it.

    Its unit is made when it is asked for, so that a request without one pays for nothing but this object.
    """

    __slots__ = (
        "_default", "_handled", "_head", "_receive", "_refused", "_scope", "_send", "_started", "_torn",
        "_withheld", "over",
    )  # fmt: skip

    def __init__(
        self, database: Database, default: UnitOptions, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.database = database
        self.unit = None
        self._default = default
        self._scope = scope
        self._receive = receive
        self._send = send
        self._head: Message | None = None  # the start of the app's answer: only the first is judged
        self._started = False  # it went to the server
        self.over = False  # the last body as well, or there will be none
        self._refused: Exception | None = None  # why the client gets another answer than the app's
        self._torn = False  # the app has begun a second answer
        self._handled = False  # the app's handlers have seen the error already
        self._withheld: list[Message] | None = None  # a 500 that may be no more than the sign of a crash

    @property
    def name(self) -> str:
        """What the log and the errors call this request."""
        return f"{self._scope['method']} {self._scope['path']}"

    def current(self) -> UnitOfWork:
        """The unit of this request; NoUnitOfWork after its answer."""
        if self.over:
            raise NoUnitOfWork(AFTERWARDS)
        if self.unit is None:
            if self._started:
                raise _messages.closed(self.name)
            with self.database.opening:  # two threads of one request must not have two units
                if self.unit is None:
                    options = partial(options_of, self._scope, self._default)
                    self.unit = UnitOfWork(self.database, self.name, options, is_request=True)
            if self._started:  # by the event loop just now: it looks for a unit after it has said so
                raise _messages.closed(self.name)
        return self.unit

    async def receive(self) -> Message:
        """The server's `receive`, which tells the observer when the client leaves early."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._client_gone()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """The server's `send`, held back at the start of the answer until the unit is settled.

        A request without a unit gets the server's own awaitable: there is nothing to wait for.
        """
        if self.unit is not None or self._refused is not None:
            return self._send_judged(message)
        if self._started:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.over = True
        elif message["type"] == "http.response.start":
            self._started = True
            if self.unit is not None:  # made by a thread just now: see current()
                self._started = False
                return self._send_judged(message)
        return self._send(message)

    async def _send_judged(self, message: Message) -> None:
        if self._refused is not None:
            return  # dropped: the client gets another answer
        kind = message["type"]
        if self._withheld is not None:
            self._withheld.append(message)
        elif kind == "http.response.start":
            await self._take_head(message)
        elif (self._started and not self._torn) or kind not in _OF_AN_ANSWER:
            await self._pass_on(message)

    async def _take_head(self, message: Message) -> None:
        """Settle by the status of the answer, and begin it; a second answer has no say any more."""
        if self._head is not None:
            # Of a time-out that gave up on an answer which waits for its COMMIT, say. Nobody can tell the
            # two bodies apart from here on, so none goes out, and the server cuts the connection.
            self._torn = True
            return
        self._head = message
        unit = self.unit
        assert unit is not None
        status = message["status"]
        try:
            await unit.settle(commit=200 <= status < 400 or unit.options.commits(status))
        except Exception as error:
            self._refused = error
            raise _Unwind from error
        failure = unit.failure
        if status == 500 and isinstance(failure, Exception) and self._problem(failure) is not None:
            self._withheld = [message]
        else:
            await self._begin_answer(message)

    async def _begin_answer(self, head: Message) -> None:
        if not self._started:
            self._started = True
            await self._pass_on(head)

    async def _pass_on(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self._client_gone()
            raise
        kind = message["type"]
        if kind == "http.response.body":
            if not message.get("more_body", False):
                await self._after()
        elif kind == "http.response.pathsend":
            await self._after()

    async def _after(self) -> None:
        """The answer is out: there is no unit any more, and what waited for the commit runs."""
        self.over = True
        assert self.unit is not None  # without one nothing passes here: see send()
        await self.unit.run_callbacks()

    async def failed(self, error: BaseException) -> None:
        """The app has raised: roll back, and answer if the database or a misuse of ours is the reason."""
        if self._refused is not None:
            if _is_being_cancelled(error) or _ends_process(error):
                raise error
            return  # what arrives here says nothing new
        unit = self.unit
        try:
            if unit is not None:
                await unit.settle(commit=False)  # does nothing but wait if it is being settled already
        except UnitOfWorkError as unknown:
            logger.error("%s: %s", self.name, unknown, exc_info=unknown)
            error = unknown if isinstance(error, Exception) else error
        kept = unit is not None and self._head is not None and unit.outcome == "committed"
        if kept or self._started or not isinstance(error, Exception) or self._problem(error) is None:
            await self.end()
            raise error
        self._withheld = None  # Starlette's own 500, sent on the way out of an inner app
        self._refused = error
        self._handled = True

    async def end(self) -> None:
        """The app has ended and its last body has not gone out: refused, cut off or never begun."""
        if self._refused is not None:
            await self._answer(self._refused)
        elif self._withheld is not None:
            await self._send_withheld(self._withheld)
        elif self.unit is not None:
            await self.unit.settle(commit=False)
            if self._head is not None and self.unit.outcome == "committed":
                # The app was cancelled while COMMIT was on its way. Without a start the server would
                # answer 500 for what was kept; after it, it cuts the connection.
                with anyio.CancelScope(shield=True):
                    await self._begin_answer(self._head)
            await self._after()
        self.over = True

    async def _send_withheld(self, messages: list[Message]) -> None:
        """The app has mapped the failure to a 500 of its own, and that is its answer."""
        self._withheld = None
        await self._begin_answer(messages[0])
        for message in messages[1:]:
            await self._pass_on(message)

    async def _answer(self, error: Exception) -> None:
        """Answer instead of the app: by its own handler for the error, else by a problem document."""
        logger.error("%s: %s", self.name, error, exc_info=error)
        handler = None if self._handled else _handler_of(self._scope, error)
        response = None if handler is None else await self._handled_by(handler, error)
        if response is None:
            response = problem_response(
                self._problem(error) or PROBLEMS[Condition.OTHER],
                detail=str(error) if isinstance(error, UnitOfWorkError) else None,
                instance=self._scope["path"],
                outcome="rolled_back" if self.unit is None else self.unit.outcome,
            )
        await response(self._scope, self._receive, self._send)

    async def _handled_by(self, handler: Any, error: Exception) -> Any:
        """The response of the app's handler; None if it fails, or says 2xx or 3xx of what was not kept."""
        request = Request(self._scope, self._receive)
        try:
            if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(handler.__call__):
                response = await handler(request, error)
            else:
                limiter = self.database.limiter
                response = await anyio.to_thread.run_sync(handler, request, error, limiter=limiter)
        except Exception:
            logger.exception("%s: the handler for %s failed", self.name, type(error).__name__)
            return None
        status = getattr(response, "status_code", 500)
        if status < 400:
            logger.error("%s: a handler said %d of a unit that was not committed", self.name, status)
            return None
        return response

    def _problem(self, error: Exception) -> Problem | None:
        """The problem of an error; None if neither the database nor a misuse of ours is its cause."""
        condition = self._condition(error)
        if isinstance(error, UnitOfWorkDoomed) and isinstance(error.__cause__, Exception):
            condition = self._condition(error.__cause__)
            if condition is not None and condition.known_aborted:
                return PROBLEMS[condition]  # the request may be tried again
        if isinstance(error, UnitOfWorkError):
            return misuse_of(error)
        return None if condition is None else PROBLEMS[condition]

    def _condition(self, error: Exception) -> Condition | None:
        return self.database.condition(error) if self.unit is None else self.unit.condition(error)

    def _client_gone(self) -> None:
        if self.unit is not None and not self.over:
            self.database.tell_client_gone(self.unit)


def _is_being_cancelled(error: BaseException) -> bool:
    """Whether somebody cancels this task, as opposed to a task group that was cancelled inside the app."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _ends_process(error: BaseException) -> bool:
    return isinstance(error, (SystemExit, KeyboardInterrupt))


def _handler_of(scope: Scope, error: Exception) -> Any:
    """The handler that the app has for a class of the error below `Exception`, as Starlette looks it up.

    A handler for `Exception` itself is Starlette's answer to a crash, and this is none.
    """
    handlers: Mapping[Any, Any]
    if "starlette.exception_handlers" in scope:
        handlers = scope["starlette.exception_handlers"][0]
    else:
        handlers = getattr(scope.get("app"), "exception_handlers", {})
    below = type(error).__mro__[: type(error).__mro__.index(Exception)]
    return next((handlers[cls] for cls in below if cls in handlers), None)
