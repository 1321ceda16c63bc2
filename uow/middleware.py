"""The middleware: one unit per request, settled before the first byte of the answer leaves."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from ._context import Block, enter, leave
from ._exchange import Exchange, Settings
from ._options import UnitOptions, checked_statuses
from .database import Database

__all__ = ["UnitOfWorkMiddleware"]


class UnitOfWorkMiddleware:
    """Gives each HTTP request a unit of work, and settles it by the status of the answer.

    `app.add_middleware(UnitOfWorkMiddleware, database=database)` in Starlette and FastAPI, or wrapped
    around any ASGI app. A 2xx or 3xx answer, or one whose status `commit_on` names, is held back until
    COMMIT is acknowledged; any other answer, and any exception, rolls back. If the database refuses the
    commit the client gets one answer: that of the app's own handler for the exception, or a problem
    document. Requests with `read_only_methods` get a unit that the database holds to reading.

    Raises ValueError if `commit_on` names what is no 4xx or 5xx status.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        database: Database,
        commit_on: Collection[int] = (),
        read_only_methods: Collection[str] = ("GET", "HEAD", "OPTIONS"),
    ) -> None:
        self.app = app
        self.database = database
        writing = UnitOptions(commit_on=checked_statuses(commit_on))
        reading = UnitOptions(read_only=True, commit_on=writing.commit_on)
        methods = frozenset(method.upper() for method in read_only_methods)
        self._settings = Settings(database, writing, reading, methods)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection as the ASGI server hands it over."""
        if scope["type"] != "http":
            await self._pass_by(scope, receive, send)
            return
        exchange = Exchange(self._settings, scope, receive, send)
        receive = exchange.tell_receive if self.database.observed else receive
        token = enter(exchange)
        try:
            try:
                await self.app(
                    scope, exchange.tell_receive if self.database.observed else receive, exchange.send
                )
            except BaseException as error:
                await exchange.failed(error)
            if not exchange.over:
                await exchange.end()
        finally:
            leave(token)

    async def _pass_by(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is no HTTP request has no unit; a WebSocket can open its own with `new_unit()`."""
        token = enter(Block(self.database, None)) if scope["type"] == "websocket" else None
        try:
            await self.app(scope, receive, send)
        finally:
            if token is not None:
                leave(token)
