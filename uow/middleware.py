"""The middleware: one unit per request, settled before the first byte of the answer leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._context import Block, enter, leave, unit_around
from ._deadlines import Timing, are_used
from ._exchange import Exchange, OptionedExchange, Settings
from ._options import UnitOptions, checked_seconds, checked_statuses
from ._rules import Rules
from .database import Database
from .wiring import log_findings

__all__ = ["UnitOfWorkMiddleware"]


class Replaying(Protocol):
    """Runs requests again: `uow.retry.Retry` is one."""

    def app(self, app: ASGIApp) -> ASGIApp:
        """What stands in for the app."""
        ...

    def exchange(self, middleware: ASGIApp) -> Exchange:
        """What stands in for the exchange of a request."""
        ...


class UnitOfWorkMiddleware:
    """Gives each HTTP request a unit of work, and settles it by the status of the answer.

    `app.add_middleware(UnitOfWorkMiddleware, database=database)` in Starlette and FastAPI, or wrapped
    around any ASGI app. A 2xx or 3xx answer, or one whose status `commit_on` names, is held back until
    COMMIT is acknowledged; any other answer, and any exception, rolls back. If the database refuses the
    commit the client gets one answer: that of the app's own handler for the exception, or a problem
    document. Requests with `read_only_methods` get a unit that the database holds to reading; if their
    answer streams, it may go on reading until its last byte, for at most `stream_timeout` seconds.

    `deadline` is how many seconds a request may take from when it comes until its answer begins.
    With `retry`, a `uow.retry.Retry`, a request is run again whose unit is known to be aborted.

    `rules` are options for the units of chosen routes, over those of `unit_options`: each is a mapping with
    `match`, the route as it is declared ("POST /orders/"; "*" for any method; a path that ends in "*" for
    all that begin so), and keywords of `unit_options`. All that match count, in their order.

    Raises ValueError if `commit_on` names what is no 4xx or 5xx status, and for a wrong rule. A rule that
    matches no route stops the start of the app; where no start is announced, the first unit raises it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        database: Database,
        commit_on: Collection[int] = (),
        read_only_methods: Collection[str] = ("GET", "HEAD", "OPTIONS"),
        stream_timeout: float | None = 300.0,
        retry: Replaying | None = None,
        deadline: float | None = None,
        rules: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        has_deadlines = deadline is not None or are_used() or any("deadline" in rule for rule in rules)
        inner = app if retry is None else retry.app(app)
        self.app = Timing(inner) if has_deadlines else inner
        self.database = database
        writing = UnitOptions(
            commit_on=checked_statuses(commit_on),
            retry=retry is not None,
            deadline=checked_seconds("deadline", deadline),
        )
        streams_for = checked_seconds("stream_timeout", stream_timeout)
        reading = replace(writing, read_only=True, stream_timeout=streams_for)
        methods = frozenset(method.upper() for method in read_only_methods)
        self._rules = Rules(rules, app) if rules else None
        self._settings = Settings(database, writing, reading, methods, self._check_wiring, self._rules)
        ours = OptionedExchange if rules or has_deadlines else Exchange
        self._exchange: Callable[[], Exchange] = ours if retry is None else partial(retry.exchange, self)
        self._checked_wiring = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection as the ASGI server hands it over."""
        if scope["type"] != "http":
            await self._pass_by(scope, receive, send)
            return
        exchange = self._exchange().begin(self._settings, scope, receive, send)
        exchange.token = enter(exchange)
        try:
            try:
                await self.app(scope, exchange.receive, exchange.send)
            except BaseException as error:
                await exchange.failed(error)
            if not exchange.over:
                await exchange.end()
        finally:
            leave(exchange.token)
            if exchange.unit is not None:
                exchange.let_go()

    async def _pass_by(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is no HTTP request has no unit; a WebSocket can open its own with `new_unit()`."""
        if scope["type"] != "websocket":
            if (wrong := self._wrong_rule()) is None:
                self._check_wiring(scope)
                await self.app(scope, receive, send)
            else:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(wrong)})
            return

        async def send_settled(message: Message) -> None:
            unit = unit_around()
            if unit is not None and message["type"] == "websocket.send":
                unit.check_may_tell()
            await send(message)

        token = enter(Block(self.database, None))
        try:
            await self.app(scope, receive, send_settled)
        finally:
            leave(token)

    def _wrong_rule(self) -> ValueError | None:
        """What keeps the app from starting: a rule that matches no route."""
        try:
            if self._rules is not None:
                self._rules.bind()
        except ValueError as wrong:
            return wrong
        return None

    def _check_wiring(self, scope: Scope) -> None:
        """Log what is wrong with the wiring: at the start, or with the first unit where there is none."""
        if not self._checked_wiring:
            self._checked_wiring = True
            log_findings(scope.get("app"), self)
