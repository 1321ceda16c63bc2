"""The answer of a request: held back until its unit is settled; a refused one never leaves."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Scope

from ._messages import stream_too_long
from .errors import DeadlineExceeded, UnitOfWorkDoomed, UnitOfWorkError
from .problems import PROBLEMS, Condition, Problem, misuse_of, problem_response

if TYPE_CHECKING:
    from ._exchange import Exchange
    from ._unit import UnitOfWork

logger = logging.getLogger("uow")


_MAX_BODY_SIZE = "starlette.max_body_size"
_SECONDS_FOR_HEAD = 1.0
_OF_AN_ANSWER = ("http.response.body", "http.response.pathsend", "http.response.trailers")


class _Unwind(Exception):
    """Leaves the app, so that nothing of a refused answer goes on: no body, no background task.

    Private, so that no handler of the app can be registered for it; an Exception, so that a dependency's
    `except Exception: undo()` runs. What arrives at the other end may be something else (dependencies
    swallow, task groups wrap), so nobody looks at it: the answer knows what was refused.
    """


class Answer:
    """How a request is answered that has a unit, or whose app has failed: made when that is known."""

    __slots__ = (
        "_commit", "_cut", "_exchange", "_gone", "_handled", "_head", "_late", "_send", "_timer",
        "_torn", "_withheld", "refused",
    )  # fmt: skip

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._send = exchange.server_send
        self._head: Message | None = None  # the start of the app's answer: only the first is judged
        self.refused: Exception | None = None  # why the client gets another answer than the app's
        self._commit = True  # what its status means
        self._torn = False  # the app has begun a second answer
        self._handled = False  # the app's handlers have seen the error already
        self._withheld: list[Message] | None = None  # a 500 that may be no more than the sign of a crash
        self._timer: asyncio.TimerHandle | None = None  # of a stream
        self._late: Exception | None = None  # it has run out
        self._gone = False  # the client, before it had all of it
        self._cut: asyncio.Task[None] | None = None  # closes the unit of a stream that nobody gets

    @property
    def _unit(self) -> UnitOfWork:
        """The request's; where it may have none, the exchange is asked."""
        unit = self._exchange.unit
        assert unit is not None
        return unit

    async def send(self, message: Message) -> None:
        """Pass on what the app sends, as far as it is, or may be, the client's answer."""
        if self.refused is not None:
            return
        if self._late is not None:
            raise self._late
        kind = message["type"]
        if self._withheld is not None:
            self._withheld.append(message)
        elif kind == "http.response.start":
            await self._take_head(message)
        elif (self._exchange.started and not self._torn) or kind not in _OF_AN_ANSWER:
            await self._pass_on(message)

    async def _take_head(self, message: Message) -> None:
        """Settle by the status of the answer, and begin it; a second answer has no say any more."""
        if self._head is not None:
            # Of a time-out that gave up on an answer which waits for its COMMIT, say. Nobody can tell the
            # two bodies apart from here on, so none goes out, and the server cuts the connection.
            self._torn = True
            return
        unit = self._unit
        self._exchange.answering()
        if unit.is_sync:  # a thread does not see that its request was cancelled
            await anyio.lowlevel.checkpoint_if_cancelled()
        self._head = message  # not before: who catches the cancellation may answer it
        self._commit = commit = unit.options.commits(self._status(message))
        try:
            if not commit and self._is_replayed():
                await unit.settle(commit=False)
                raise unit.failure or RuntimeError  # has the same end as if it had been let out
            if not (unit.outlives_start and _has_body(message) and (commit or unit.failure is None)):
                await unit.settle(commit=commit)
            elif commit:
                await unit.judge()
        except Exception as error:
            self._refuse(error)
            raise _Unwind from error
        if message["status"] == 500 and self._may_be_a_crash(unit.failure, sys.exception()):
            self._withheld = [message]
        else:
            await self._begin_answer(message)

    def _may_be_a_crash(self, *errors: BaseException | None) -> bool:
        """Whether a 500 may be no more than what an inner app says before it raises one of these."""
        return any(isinstance(error, Exception) and self._problem(error) is not None for error in errors)

    def _answers(self, error: Exception) -> bool:
        """Whether an error that the app lets out has an answer here; if not, it is the server's."""
        return self._problem(error) is not None or self._is_replayed()

    def _is_replayed(self) -> bool:
        """Whether the database has undone the unit, so that whatever the app says the request runs again."""
        unit = self._exchange.unit
        return unit is not None and unit.failure is not None and self._exchange.may_replay(unit.failure)

    def _status(self, head: Message) -> int:
        """The status that the client will read.

        Starlette's limit of the body's size stands outside of all middleware, and puts a 413 in the place
        of any answer to a request that has announced more, also if its body was never read.
        """
        limit = self._exchange.scope.get(_MAX_BODY_SIZE)
        if limit is not None:
            announced = Headers(scope=self._exchange.scope).get("content-length", "")
            if announced.isdigit() and int(announced) > limit:
                return 413
        return int(head["status"])

    async def _begin_answer(self, head: Message) -> None:
        if not self._exchange.started:
            self._exchange.begun()
            await self._pass_on(head)

    async def _pass_on(self, message: Message) -> None:
        kind = message["type"]
        more = message.get("more_body", False)
        last = kind == "http.response.pathsend" or (kind == "http.response.body" and not more)
        if last:
            await self._close(commit=self._commit)  # before it is out: a client may be slow to read
        elif more or (kind == "http.response.start" and _length(message) is None):
            self.begin_stream()
        try:
            await self._send(message)
        except OSError:
            self._tell_client_gone()
            raise
        if last:
            await self._after()

    async def _close(self, *, commit: bool) -> None:
        """Settle a unit that has outlived the start; does nothing for one that is settled already."""
        if self._timer is not None:
            self._timer.cancel()
        await self._unit.settle(commit=commit)

    def begin_stream(self) -> None:
        """Bound how long the answer may hold the connection of a read-only unit from here on."""
        unit = self._unit
        if self._timer is not None or not unit.is_open or not unit.options.stream_timeout:
            return
        with suppress(RuntimeError):  # a thread: its next chunk comes through here
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(unit.options.stream_timeout, self._time_up)

    def _time_up(self) -> None:
        self._late = stream_too_long(self._exchange.name, self._unit.options.stream_timeout or 0)
        self._cut_off()

    @property
    def is_cut(self) -> bool:
        """Whether nobody gets the rest of it."""
        return self._cut is not None

    def client_left(self) -> None:
        """The client has gone; in the middle of the answer, a background task may come next."""
        self._tell_client_gone()
        if self._exchange.started:
            self._cut_off()

    def _tell_client_gone(self) -> None:
        if not self._gone:
            self._gone = True
            self._exchange.database.telling.client_gone(self._unit)

    def _cut_off(self) -> None:
        """Nobody gets the rest of a stream: give its connection back, whatever the app is waiting for."""
        if self._cut is None:
            self._cut = asyncio.ensure_future(self._after_cut())

    async def _after_cut(self) -> None:
        await self._close(commit=False)
        await self._after()

    async def _after(self) -> None:
        """The answer is out: there is no unit any more, and what waited for the commit runs."""
        self._exchange.over = True
        await self._unit.run_callbacks()

    async def failed(self, error: BaseException) -> None:
        """The app has raised: roll back, and answer if the database or a misuse of ours is the reason."""
        if self.refused is not None:
            if _is_being_cancelled(error) or _ends_process(error):
                raise error
            return  # what arrives here says nothing new
        unit = self._exchange.unit
        try:
            if unit is not None:
                unit.hurries = isinstance(error, DeadlineExceeded)
                await unit.settle(commit=False)  # does nothing but wait if it is being settled already
        except UnitOfWorkError as unknown:
            logger.error("%s: %s", self._exchange.name, unknown, exc_info=unknown)
            error = unknown if isinstance(error, Exception) else error
        kept = unit is not None and self._head is not None and unit.outcome == "committed"
        if kept or self._exchange.started or not isinstance(error, Exception) or not self._answers(error):
            await self.end()
            raise error
        self._withheld = None  # Starlette's own 500, sent on the way out of an inner app
        self._refuse(error)
        self._handled = True

    def _refuse(self, error: Exception) -> None:
        """From here on nothing that the app sends goes out, with or without a unit."""
        self.refused = error
        self._exchange.server_send = drop

    def silence(self) -> None:
        """Nothing goes out any more, whoever is still at work on it."""
        self._send = drop

    async def end(self) -> None:
        """The app has ended and its last body has not gone out: refused, cut off or never begun."""
        if self._cut is not None:
            await asyncio.wait((self._cut,))
        if self.refused is not None:
            await self._answer(self.refused)
        elif self._withheld is not None:
            await self._send_withheld(self._withheld)
        elif self._exchange.unit is not None:
            await self._close(commit=False)
            if self._head is not None and self._exchange.unit.outcome == "committed":
                # The app was cancelled while COMMIT was on its way. Without a start the server would
                # answer 500 for what was kept; after it, it cuts the connection. A server takes it at
                # once, but a middleware around may have nobody left who reads what it passes on.
                with anyio.move_on_after(_SECONDS_FOR_HEAD, shield=True):
                    await self._begin_answer(self._head)
            await self._after()

    async def _send_withheld(self, messages: list[Message]) -> None:
        """The app has mapped the failure to a 500 of its own, and that is its answer."""
        self._withheld = None
        await self._begin_answer(messages[0])
        for message in messages[1:]:
            await self._pass_on(message)

    async def _answer(self, error: Exception) -> None:
        """Answer instead of the app: by its own handler for the error, else by a problem document."""
        logger.error("%s: %s", self._exchange.name, error, exc_info=error)
        handler = None if self._handled else _handler_of(self._exchange.scope, error)
        response = None if handler is None else await self._handled_by(handler, error)
        if response is None:
            unit = self._exchange.unit
            known: dict[str, Any] = {} if unit is None else {"outcome": unit.outcome}
            response = problem_response(
                self._problem(error) or PROBLEMS[Condition.OTHER],
                detail=str(error) if isinstance(error, UnitOfWorkError) else None,
                instance=self._exchange.scope["path"],
                **known,
            )
        await response(self._exchange.scope, self._exchange.server_receive, self._send)

    async def _handled_by(self, handler: Any, error: Exception) -> Any:
        """The response of the app's handler; None if it fails, or says 2xx or 3xx of what was not kept."""
        request = Request(self._exchange.scope, self._exchange.server_receive)
        try:
            if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(handler.__call__):
                response = await handler(request, error)
            else:
                limiter = self._exchange.database.limiter
                response = await anyio.to_thread.run_sync(handler, request, error, limiter=limiter)
        except Exception:
            logger.exception("%s: the handler for %s failed", self._exchange.name, type(error).__name__)
            return None
        status = getattr(response, "status_code", 500)
        if status < 400:
            logger.error(
                "%s: a handler said %d of a unit that was not committed", self._exchange.name, status
            )
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
        return (
            self._exchange.database.condition(error)
            if self._exchange.unit is None
            else self._exchange.unit.condition(error)
        )


def _length(head: Message) -> bytes | None:
    """The length of the body, if the answer says it: it is made already, and does not stream."""
    return next((value for name, value in head.get("headers", ()) if name.lower() == b"content-length"), None)


def _has_body(head: Message) -> bool:
    """Whether there is a body to come; without one the client has the whole answer with its start."""
    return head["status"] not in (204, 304) and _length(head) != b"0"


async def drop(message: Message) -> None:
    """A `send` for what the client does not get."""


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
