"""The middleware: a request with a key is done once, and answered as often as it comes."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._context import Place, current_place
from .._exchange import Exchange, OptionedExchange
from .._unit import UnitOfWork
from ..errors import NoUnitOfWork
from ..middleware import UnitOfWorkMiddleware
from ..problems import Condition, Problem, problem_response
from ._locks import lock_file
from ._lost import Lost
from ._recorder import Recorder, SendingBytes
from ._request import (
    IN_USE,
    INVALID,
    REQUIRED,
    REUSED,
    TOO_LARGE,
    Again,
    Gone,
    TooLarge,
    fingerprint,
    key_of,
    owner_of,
    read,
    request_of,
)
from ._routes import Required, Sessions, find_endpoint, is_sync
from ._row import Row, Stored
from ._turns import Turn, Turns

logger = logging.getLogger("uow")

REPLAYED: Final = (b"idempotency-replayed", b"true")

# RFC 9110, section 9.2.1, and QUERY: they do nothing that could be done twice.
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})
# A cookie is one client's, and the rest is of one connection or one moment.
_NEVER_KEPT: Final = frozenset(
    {b"set-cookie", b"date", b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"server"}
)
_PART_OF_DEADLINE: Final = 0.9  # what a wait may take of it: the rest is for the answer
_LONGEST_TTL: Final = 3650 * 24 * 3600
_LAYERS: Final = 100  # more than any app has: one that is its own `app` must not hold up the start
_OUTSIDE: Final = (
    "IdempotencyMiddleware has to be inside of UnitOfWorkMiddleware: add it before that one, because "
    "add_middleware() puts what is added last outside"
)
_TWICE: Final = (
    "two IdempotencyMiddlewares, one inside of the other, take the same key of a request: the inner one "
    "finds it in use by the very request that it serves. Leave one of them out; if you have added one only, "
    "the other comes with the app that is mounted, or is added by what makes the app"
)

Principal = Callable[[Scope], str]


class IdempotencyMiddleware:
    """Gives a request with an Idempotency-Key to the app once, and its answer to all that repeat it.

    To be added *before* `UnitOfWorkMiddleware`, so that it is inside of it: the key and the answer are
    committed with the work of the request, by one COMMIT. An answer that rolls back stores nothing, and the
    next request with the key is the first again. Requests that only read are passed on.

    `principal` tells whose key it is, from the scope: two clients that happen to choose the same key must
    never see each other's answers. None is one space of keys for all, where nobody is told from anybody.
    `required` are the routes that want a key, as they are declared: "POST /orders/", "* /orders/*".
    `ttl` is for how many seconds a key is remembered, at least 60; `wait` for how many seconds a repeat waits
    for the first request. Of the answer, `body_limit` bytes at most are stored, with all of its headers but
    Set-Cookie and those of a connection, or with those that `headers` names. The body of a request is read
    before the app runs, up to `request_limit` bytes. `sessions` is the kind that the endpoints ask for;
    "auto" takes "sync" for plain functions and "async" for all others.

    Raises ValueError for a bound that is none, and for a route that is not written as one. One that the app
    does not have stops its start, and so does a UnitOfWorkMiddleware that is inside of this one, or another
    IdempotencyMiddleware for the same header.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        principal: Principal | None,
        required: Collection[str] = (),
        ttl: float = 24 * 3600.0,
        wait: float = 10.0,
        body_limit: int = 256 * 1024,
        request_limit: int = 1024 * 1024,
        headers: Collection[str] | None = None,
        header: str = "Idempotency-Key",
        sessions: Sessions = "auto",
    ) -> None:
        if not 60 <= ttl <= _LONGEST_TTL:
            raise ValueError(f"ttl={ttl!r} is no number of seconds from 60 to {_LONGEST_TTL}")
        for name, bound in (("wait", wait), ("body_limit", body_limit), ("request_limit", request_limit)):
            if bound < 0:
                raise ValueError(f"{name}={bound!r} is below 0")
        if sessions not in ("auto", "async", "sync"):
            raise ValueError(f'sessions={sessions!r} is none of "auto", "async", "sync"')
        self.app = app
        self._principal = principal
        self._required = Required(required, app)
        self._ttl = ttl
        self._wait = wait
        self._body_limit = body_limit
        self._request_limit = request_limit
        self._kept = None if headers is None else {name.lower().encode("latin-1") for name in headers}
        self._header = header.lower().encode("latin-1")
        self._header_name = header
        self._sessions = sessions
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; what has no key costs a look at its headers."""
        if scope["type"] != "http":
            await self._pass_by(scope, receive, send)
            return
        if scope["method"] in _SAFE:
            await self.app(scope, receive, send)
            return
        values = [value for name, value in scope["headers"] if name == self._header]
        if values:
            answer = await self._answer(scope, receive, send, values)
        elif self._required and self._required.names(scope):
            answer = self._problem(scope, REQUIRED, f"Send {self._header_name} with this request.")
        else:
            await self.app(scope, receive, send)
            return
        if answer is not None:
            await answer(scope, receive, send)

    async def _pass_by(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                self._check_order()
                if self._required:
                    self._required.bind()
            except (RuntimeError, ValueError) as wrong:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(wrong)})
                return
        await self.app(scope, receive, send)

    def _check_order(self) -> None:
        inner: object = self.app
        for _ in range(_LAYERS):
            if isinstance(inner, UnitOfWorkMiddleware):
                raise RuntimeError(_OUTSIDE)
            if isinstance(inner, IdempotencyMiddleware) and inner._header == self._header:
                raise RuntimeError(_TWICE)
            inner = getattr(inner, "app", None)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, values: list[bytes]
    ) -> Response | None:
        """Answer a request with a key; None if that was done, or nobody is there any more."""
        place = _exchange()
        try:
            key = key_of(values)
        except ValueError as wrong:
            return self._problem(scope, INVALID, str(wrong))
        unit = place.current()
        endpoint = _looked_up(scope, unit)
        if unit.options.read_only:
            await self.app(scope, receive, send)
            return None
        if endpoint is None and hasattr(scope.get("app"), "routes"):
            # The router's own 404, 405 or redirect: it does nothing, and a redirected one brings its key.
            await self.app(scope, receive, _unless_written(unit, send))
            return None
        _check_alone(unit, key)
        latest = _latest(place, unit)
        try:
            body = await read(receive, self._request_limit)
        except Gone:
            return None
        except TooLarge:
            return self._problem(scope, TOO_LARGE, f"With a key it may have {self._request_limit} bytes.")
        owner = owner_of("" if self._principal is None else self._principal(scope))
        sync = is_sync(endpoint, scope) if self._sessions == "auto" else self._sessions == "sync"
        row = Row(unit, owner, key, request_of(scope), fingerprint(scope, body), is_sync=sync)
        until = min(asyncio.get_running_loop().time() + self._wait, latest)  # not of what the body takes
        return await self._answer_once(row, until, scope, Again(body, receive), send)

    async def _answer_once(
        self, row: Row, until: float, scope: Scope, receive: Receive, send: Send
    ) -> Response | None:
        """Do the request if it is the first; else the answer to it."""
        turn = await self._take_turn(row, until)
        if turn is None:
            row.unit.set_rollback_only()  # also where the route commits on 409
            return self._in_use(scope)
        try:
            found = await self._claimed(row, until)
            if found is None:
                await self._do(row, turn, scope, receive, send)
                return None
            return self._repeated(scope, found, row)
        finally:
            turn.end()

    async def _take_turn(self, row: Row, until: float) -> Turn | None:
        """The right to work on the key; None if it was not to be had."""
        unit, name = row.unit, (row.owner, row.key)
        unit.check_outer()
        if unit.holds_writer() and unit.database.adapter.one_writer:
            # Nobody else can have written the row, and whoever has the key may be waiting for this very unit.
            return Turn(None, name)
        return await self._turns.take(name, until, lock_file(unit.database))

    async def _claimed(self, row: Row, until: float) -> Stored | bool | None:
        """None if the request is the first; the answer to the first, or False if it is still under way."""
        unit = row.unit
        left = until - asyncio.get_running_loop().time()
        try:
            if await row.claim(ttl=self._ttl, wait=left):
                unit.asking = Lost(row.name)
                return None
        except Exception as error:
            if unit.condition(error) is not Condition.LOCK_TIMEOUT:
                raise
            unit.no_retry()  # it has waited for as long as it may
            unit.set_rollback_only()  # also where the route commits on 409
            return False
        unit.set_rollback_only()  # there is nothing in it: nothing of this request is done again
        return await row.find() or False

    async def _do(self, row: Row, turn: Turn, scope: Scope, receive: Receive, send: Send) -> None:
        recorder = Recorder(row, turn, send, self._keeps, self._body_limit)
        try:
            with SendingBytes(scope):
                await self.app(scope, receive, recorder.send)
        except Exception:
            if recorder.wrong is not None:
                raise recorder.wrong from None
            raise
        recorder.check_complete()

    def _repeated(self, scope: Scope, found: Stored | bool, row: Row) -> Response:
        """The answer to a request that is not the first with its key."""
        if not isinstance(found, Stored):
            return self._in_use(scope)
        if found.fingerprint != row.fingerprint:
            detail = "It was sent with another method, path, query, Content-Type or body. Use a new key."
            return self._problem(scope, REUSED, detail)
        logger.debug("%s: the answer to its idempotency key was given again", row.unit.name)
        answer = Response(found.body, found.status)
        answer.raw_headers = [*found.headers, REPLAYED]
        return answer

    def _keeps(self, name: bytes) -> bool:
        return name.lower() not in _NEVER_KEPT if self._kept is None else name.lower() in self._kept

    def _in_use(self, scope: Scope) -> Response:
        return self._problem(scope, IN_USE, "Try again, with the same key and the same request.")

    def _problem(self, scope: Scope, problem: Problem, detail: str) -> Response:
        return problem_response(problem, detail=detail, instance=scope["path"])


def _latest(place: Place, unit: UnitOfWork) -> float:
    """Until when a repeat may wait, in the time of the event loop: less than its deadline."""
    deadline = unit.options.deadline
    if deadline is None or not isinstance(place, OptionedExchange):
        return math.inf
    now = asyncio.get_running_loop().time()
    return now + _PART_OF_DEADLINE * (place.began() + deadline - now)


def _exchange() -> Exchange:
    try:
        place = current_place()
    except NoUnitOfWork:
        place = None
    if not isinstance(place, Exchange):
        raise RuntimeError(_OUTSIDE)
    return place


def _check_alone(unit: UnitOfWork, key: str) -> None:
    if isinstance(unit.asking, Lost) and unit.asking.row["key"] == key:
        raise RuntimeError(f"{unit.name}: {_TWICE}")


def _unless_written(unit: UnitOfWork, send: Send) -> Send:
    """A `send` that keeps nothing of a request which no route takes: a repeat would do it again."""

    async def send_unwritten(message: Message) -> None:
        begins = message["type"] == "http.response.start"
        asked = unit._work is not None  # pyright: ignore[reportPrivateUsage]  # its session may have been made
        if begins and (asked or unit.on_opened is not None) and unit.options.commits(message["status"]):
            raise RuntimeError(
                f"{unit.name}: no route of the app takes it, and yet it has a unit and is answered with "
                f"{message['status']}, so its idempotency key would not be kept. Add what changes paths, or "
                f"answers by itself, after IdempotencyMiddleware: outside of it"
            )
        await send(message)

    return send_unwritten


def _looked_up(scope: Scope, unit: UnitOfWork) -> object:
    """The endpoint of the request, with the options of its unit looked up: the routes are asked once."""
    endpoint = find_endpoint(scope)
    around = scope.get("endpoint")
    scope["endpoint"] = endpoint
    try:
        _ = unit.options
    finally:
        scope["endpoint"] = around
    return endpoint
