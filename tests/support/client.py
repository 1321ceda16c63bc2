"""A client that can tell whether one byte of an answer has arrived."""

import http.client
import json
import select
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.support.wait import LIMIT


@dataclass(frozen=True)
class RawAnswer:
    """An answer as it came over the socket."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class RawClient:
    """One bare TCP connection to a server on this machine: sends bytes, and knows whether any has
    come back.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
        self._method = "GET"

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self._socket.sendall(data)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Send a request and wait for nothing; a mapping as the body goes as JSON."""
        self._method = method
        fields = {"Host": "127.0.0.1", "Connection": "close"}
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            fields["Content-Type"] = "application/json"
        if body:
            fields["Content-Length"] = str(len(body))
        fields.update(headers or {})
        head = [
            f"{method} {path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in fields.items()),
            "",
            "",
        ]
        self.send("\r\n".join(head).encode("latin-1") + body)
        return self

    def arrived(self, within: float = 0.0) -> bool:
        """A byte, or the end of the connection, is there or comes within so many seconds; nothing
        is consumed.
        """
        return bool(select.select([self._socket], [], [], within)[0])

    def peek(self) -> bytes:
        """What has arrived so far, left in place; b"" if nothing has, or at the end."""
        if not self.arrived():
            return b""
        try:
            return self._socket.recv(65536, socket.MSG_PEEK)
        except ConnectionError:
            return b""

    def read(self) -> bytes:
        """Wait for the next bytes; b"" at the end of the connection, however it ended."""
        try:
            return self._socket.recv(65536)
        except ConnectionError:
            return b""

    def read_until_closed(self) -> bytes:
        """All bytes up to the end of the connection; a connection that a killed server tore ends
        here as well.
        """
        return b"".join(iter(self.read, b""))

    def answer(self) -> RawAnswer | None:
        """The complete answer, or None if the connection ended before a status line; raises if it
        was cut in the body.
        """
        if not self.arrived(within=LIMIT):
            raise TimeoutError("no answer")
        if not self.peek():
            return None
        response = http.client.HTTPResponse(self._socket, method=self._method)
        try:
            response.begin()
            body = response.read()
        finally:
            response.close()
        return RawAnswer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, body
        )

    def close(self) -> None:
        """Leave in an orderly way."""
        self._socket.close()

    def reset(self) -> None:
        """Leave with a reset, as a client does whose machine or network has gone."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
