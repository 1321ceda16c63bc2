"""The server's end of a connection: what a client reads on it is true, and nobody may hold it for nothing."""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from uuid import uuid4

import structlog
from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.responses import Response
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.problems import BAD_REQUEST, HEADERS_TOO_LARGE, TOO_MANY_CONNECTIONS
from api.security import complete
from uow.problems import Problem, problem_response

log = structlog.stdlib.get_logger(__name__)

_DEFAULT = 32 * 1024


class Refused(Exception):
    """Raised into the parser, which stops at it."""


class StrictProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with bounds, and without answers of its own to what a handler may be at work on.

    Where the connection cannot be read on, no more is read. What was asked before is answered by whoever
    is at it, because it may be committed; the connection ends then. Only where nothing is under way the
    server answers itself, with a problem document.

    Two of uvicorn's settings mean something else here: `h11_max_incomplete_event_size` is the size of a
    request line with its headers, and `limit_concurrency` a number of connections. Its own reading of
    them is for another parser, and plain text once a head is complete.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._max_head = config.h11_max_incomplete_event_size or _DEFAULT
        self._max_connections, self.limit_concurrency = config.limit_concurrency, None
        # Where the parser is: nothing of a message is there, its head is incomplete, or complete.
        self._place: Literal["between", "head", "body"] = "between"
        self._head = 0  # what was read of the head, trailers included
        self._unread = 0  # what the parser has and keeps, at most
        self._deaf = False
        self._broken: RequestResponseCycle | None = None
        self._patience: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(  # type: ignore[override] # as uvicorn has it: a stream has this transport
        self, transport: asyncio.Transport
    ) -> None:
        """Without it, connections could use up the open files that the database needs, too."""
        super().connection_made(transport)
        if self._max_connections is not None and len(self.connections) > self._max_connections:
            self._refuse(TOO_MANY_CONNECTIONS)
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Without it, the timer would keep what is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Without it, uvicorn would write its 400 while a write is under way, and stop at an upgrade."""
        self._unset_keepalive_if_required()
        if self._deaf:
            return  # not paused: a client that goes would not be noticed
        self._unread += len(data)
        try:
            self._feed(data)
        except HttpParserError as error:
            if self._head > self._max_head:
                self._refuse(HEADERS_TOO_LARGE)
            else:
                self._refuse(BAD_REQUEST, f"This is no HTTP/1.1: {_reason(error)}.")
        else:
            if self._unread > self._max_head:
                self._refuse(HEADERS_TOO_LARGE)

    def on_response_complete(self) -> None:
        """Without it, uvicorn's own timer alone would run: a single byte ends that one."""
        super().on_response_complete()
        self._await_head()

    # The parser

    def _feed(self, data: bytes) -> None:
        """Pass offers to upgrade over, as RFC 9110 (section 7.8) allows.

        The parser takes them up: to it, the message ends with its head, and the body that was announced
        is the next request. So it gets the same head once more without the offer.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                (end,) = upgrade.args
                data = self._head_without_upgrade() + data[end:]
                self.parser = HttpRequestParser(self)
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        line = b"%s %s HTTP/%s" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        fields = (name + b": " + value for name, value in self.headers if name != b"upgrade")
        return b"\r\n".join([line, *fields, b"", b""])

    def on_message_begin(self) -> None:
        """Without it, a head would have what is left of the time of the one before."""
        self._place = "head"
        self._head = 0
        super().on_message_begin()
        self._await_head()

    def on_url(self, url: bytes) -> None:
        """Without it, a path could have any size."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Without it, headers could have any size, and trailers were headers (RFC 9110, section 6.5.1)."""
        self._count(len(name) + len(value) + 4)
        if self._place == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Without it, the app would be asked twice for what offers to upgrade."""
        self._unread = 0
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise Refused("CONNECT is for proxies")
            return
        super().on_headers_complete()
        self._place = "body"
        self._stop_waiting()

    def on_body(self, body: bytes) -> None:
        """Without it, a body would count as what the parser keeps."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Without it, the end of a head that comes once more would be that of the request before."""
        if self._place == "body":
            self._unread = 0
            self._place = "between"
            super().on_message_complete()

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > self._max_head:
            raise Refused

    # The app

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Without it, who waits for the rest of a broken body would wait for ever.

        uvicorn's own way to say that a client is gone also throws the answer away, which is true.
        """

        async def to_its_break(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            async def receive_or_end() -> ASGIReceiveEvent:
                message = await receive() if self._broken is not cycle else None
                if message is None or self._broken is cycle:
                    return {"type": "http.disconnect"}
                return message

            await app(scope, receive_or_end, send)

        super()._start_asgi_task(cycle, to_its_break)

    @property
    def _under_way(self) -> bool:
        """The last request has no complete answer yet; so those before it may have none either."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    # The end

    def _await_head(self) -> None:
        """Give the client `keep_alive_timeout` for a whole head, from now on.

        Nobody is hurried while a request is under way: what comes behind it may not have been read.
        """
        self._stop_waiting()
        if not self._under_way and not self.transport.is_closing():
            self._patience = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _refuse(self, problem: Problem, detail: str | None = None) -> None:
        """Read no more, and end the connection as soon as it has its answers."""
        self._deaf = True
        self._stop_waiting()
        request_id = uuid4().hex
        log.warning(
            "connection refused",
            status=problem.status,
            problem=problem.name,
            detail=detail,
            client=self.client[0] if self.client else None,
            request_id=request_id,
        )
        if self._under_way:
            self.cycle.keep_alive = False
            if self._place == "body":
                self._broken = self.cycle
                self.cycle.message_event.set()
            return
        if self._place != "body":  # or the request would have two answers
            self.transport.write(self._answer(problem, detail, request_id))
        self.transport.close()

    def _answer(self, problem: Problem, detail: str | None, request_id: str) -> bytes:
        headers = {"X-Request-ID": request_id, "Connection": "close"}
        response: Response = problem_response(problem, detail=detail, headers=headers, request_id=request_id)
        complete(response.headers)
        fields = (*self.server_state.default_headers, *response.raw_headers)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
        return STATUS_LINE[problem.status] + head + b"\r\n" + bytes(response.body)


def _reason(error: HttpParserError) -> str:
    """In words of the parser's, or of ours; what the reading of a path says would repeat the path."""
    if not isinstance(error, HttpParserCallbackError):
        return str(error)
    return str(error.__context__) if isinstance(error.__context__, Refused) else "the path cannot be read"
