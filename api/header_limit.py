"""A bound for what comes before a body; uvicorn has one for h11 only, and this service uses httptools."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.problems import HEADERS_TOO_LARGE

_DEFAULT = 32 * 1024


class TooLarge(Exception):
    """Raised into the parser, which stops at it."""


class LimitedProtocol(HttpToolsProtocol):
    """Answers 431, and closes the connection, when a request line with its headers is too large.

    The limit is uvicorn's `h11_max_incomplete_event_size`. Two things are counted: what the parser has
    read of the head, which is exact, and what it keeps to itself because it is not complete: a header
    without an end, the extension of a chunk. An answer that is on its way to the client is cut off.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limit = config.h11_max_incomplete_event_size or _DEFAULT
        self._head = 0
        self._unread = 0

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > self._limit and not self.transport.is_closing():
            self.logger.warning("Too large HTTP headers received.")
            self._refuse()

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._head > self._limit:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > self._limit:
            raise TooLarge

    def _refuse(self) -> None:
        # Between the bytes of another answer it would be read as a part of that one.
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.write(_answer(self.server_state.default_headers))
        self.transport.close()


def _answer(headers: list[tuple[bytes, bytes]]) -> bytes:
    problem = HEADERS_TOO_LARGE
    body = json.dumps({"type": problem.type, "title": problem.title, "status": problem.status}).encode()
    lines = [
        b"HTTP/1.1 431 Request Header Fields Too Large",
        *(name + b": " + value for name, value in headers),
        b"content-type: application/problem+json",
        b"content-length: %d" % len(body),
        b"connection: close",
    ]
    return b"\r\n".join([*lines, b"", body])
