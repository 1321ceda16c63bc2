"""The answer to a request with a key: kept in the row of the key before it goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

from starlette.types import Message, Scope, Send

from ._row import Headers, Row
from ._turns import Turn

# Ways of a server to send what does not pass by here, or comes after the body:
# https://asgi.readthedocs.io/en/latest/extensions.html
_NOT_TO_BE_STORED: Final = frozenset(
    {"http.response.pathsend", "http.response.zerocopysend", "http.response.trailers"}
)


class Recorder:
    """Holds an answer that commits until all of it is there, stores it, and lets it go.

    One that rolls the unit back passes through as it is: its row goes with the rollback.
    """

    def __init__(self, row: Row, turn: Turn, send: Send, keeps: Callable[[bytes], bool], limit: int) -> None:
        self.wrong: Exception | None = None
        """Why nothing could be stored; what arrives at the other end of the app may be something else."""
        self._row = row
        self._turn = turn
        self._send = send
        self._keeps = keeps
        self._limit = limit
        self._head: Message | None = None
        self._parts: list[bytes] = []
        self._length = 0
        self._said: int | None = None  # by its head
        self._passes = False  # the rest of an answer that is out, or that is not stored

    async def send(self, message: Message) -> None:
        """Take what the app sends."""
        kind = message["type"]
        if self.wrong is not None:
            return
        if self._passes or not kind.startswith("http.response."):
            await self._send(message)
        elif kind == "http.response.start":
            await self._take_head(message)
        elif kind == "http.response.body" and self._head is not None:
            await self._take_body(self._head, message)
        elif kind in ("http.response.early_hint", "http.response.push", "http.response.debug"):
            await self._send(message)
        else:
            self._refuse(f"it sends {kind}")

    def check_complete(self) -> None:
        """Raise unless the answer was whole: what is in its unit must not be kept without it."""
        if self.wrong is not None:
            raise self.wrong
        if self._head is not None and not self._passes:
            self._refuse("it ended before its body did")

    async def _take_head(self, head: Message) -> None:
        if self._head is not None:
            self._refuse("a second one was begun")
        self._head = head
        if not self._row.unit.options.commits(head["status"]):
            self._passes = True
            await self._settle(head)
            return
        self._said = length = _length(head)
        if head.get("trailers"):
            self._refuse("it has trailers")
        if length is not None and length > self._limit:
            self._refuse(f"its {length} bytes are more than the body_limit of {self._limit}")

    async def _take_body(self, head: Message, message: Message) -> None:
        part: bytes = message.get("body", b"")
        self._length += len(part)
        if self._length > self._limit:
            self._refuse(f"it is longer than the body_limit of {self._limit} bytes")
        self._parts.append(part)
        if not message.get("more_body"):
            await self._store(head, b"".join(self._parts))
        elif self._said is None:
            self._refuse("it streams: it does not say with a Content-Length how long it is")

    async def _store(self, head: Message, body: bytes) -> None:
        headers: Headers = [(name, value) for name, value in head.get("headers", ()) if self._keeps(name)]
        self._row.keep(head["status"], headers, body)
        self._passes = True
        await self._settle(head)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _settle(self, head: Message) -> None:
        """Send the start of the answer, before which the unit is settled."""
        try:
            await self._send(head)
        finally:
            self._turn.end()

    def _refuse(self, why: str) -> NoReturn:
        self.wrong = RuntimeError(
            f"{self._row.unit.name}: the answer to a request with an idempotency key is stored as a whole, "
            f"and {why}; nothing was kept. Answer in one piece, raise body_limit, or let the route stand "
            f"outside of IdempotencyMiddleware"
        )
        raise self.wrong


class SendingBytes:
    """A block in which the app is offered no way to answer but with bytes, so a file comes as what is in it.

    The scope stays the one of the server: what the router writes into it is read outside.
    """

    __slots__ = ("_offered", "_scope")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        offered: Any = scope.get("extensions")
        self._offered = None if not offered or _NOT_TO_BE_STORED.isdisjoint(offered) else offered

    def __enter__(self) -> None:
        if self._offered is not None:
            self._scope["extensions"] = {
                name: how for name, how in self._offered.items() if name not in _NOT_TO_BE_STORED
            }

    def __exit__(self, *_: object) -> None:
        if self._offered is not None:
            self._scope["extensions"] = self._offered


def _length(head: Message) -> int | None:
    """What the answer says of its length."""
    said: Any = next(
        (value for name, value in head.get("headers", ()) if name.lower() == b"content-length"), b""
    )
    return int(said) if said.isdigit() else None
