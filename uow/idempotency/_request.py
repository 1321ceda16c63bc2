"""What a request with a key is known by, and what is said of keys that are wrong.

The header is that of draft-ietf-httpapi-idempotency-key-header: a string of RFC 8941 in double quotes. Most
clients send it without quotes, so both are taken, and are the same key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final
from urllib.parse import quote

from starlette.types import Message, Receive, Scope

from ..problems import Problem

REQUIRED: Final = Problem("idempotency-key-required", "The request has to have an Idempotency-Key", 400)
INVALID: Final = Problem("idempotency-key-invalid", "The Idempotency-Key is none", 400)
REUSED: Final = Problem("idempotency-key-reused", "The Idempotency-Key is that of another request", 422)
IN_USE: Final = Problem("idempotency-key-in-use", "A request with this key is under way", 409, 1)
TOO_LARGE: Final = Problem("content-too-large", "The body is too large", 413)

_LONGEST: Final = 255
_BARE: Final = re.compile(rb"[\x21\x23-\x7e][\x21-\x7e]*")
_QUOTED: Final = re.compile(rb'"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED: Final = re.compile(rb"\\(.)")
_PLAIN: Final = re.compile(r"[\w/.~-]*", re.ASCII)
_PART_OF_IDENTITY: Final = (b"content-type", b"content-encoding")


def key_of(values: Sequence[bytes]) -> str:
    """The key that the header says; ValueError, with what is wrong, for none or for more than one."""
    if len(values) != 1:
        raise ValueError(f"It was sent {len(values)} times; one request has one key.")
    value = values[0].strip(b" \t")
    quoted = _QUOTED.fullmatch(value)
    key = _ESCAPED.sub(rb"\1", quoted[1]) if quoted else value
    if not (key and (quoted or _BARE.fullmatch(key))):
        raise ValueError("It is 1 to 255 visible ASCII characters, with double quotes around them or none.")
    if len(key) > _LONGEST:
        raise ValueError(f"It has {len(key)} characters, and {_LONGEST} is the most.")
    return key.decode("ascii")


def owner_of(principal: object) -> str:
    """The principal as it is stored: by a digest, if its name is long or is not plain text.

    Raises TypeError for one that is no text.
    """
    if not isinstance(principal, str):  # None, say: whoever is nobody would be nobody's twin
        raise TypeError(f"principal= has returned {principal!r}: it tells whose key it is as a str")
    plain = principal.isascii() and principal.isprintable() and len(principal) <= _LONGEST
    if plain and not principal.startswith("digest:"):
        return principal
    return f"digest:{blake2b(principal.encode('utf-8', 'surrogatepass'), digest_size=32).hexdigest()}"


def request_of(scope: Scope) -> str:
    """Method and path for people who look at the table: at most 512 plain characters."""
    path: str = scope["path"]
    if not _PLAIN.fullmatch(path):
        path = quote(path, safe="/:@!$&'()*+,;=-._~", errors="replace")
    return f"{scope['method']} {path}"[:512]


def fingerprint(scope: Scope, body: bytes) -> bytes:
    """The same for the same request, and for no other: its method, target, kind of content and content."""
    headers = scope["headers"]
    kinds = [value for wanted in _PART_OF_IDENTITY for name, value in headers if name == wanted]
    named = (scope["method"].encode(), scope["path"].encode("utf-8", "surrogatepass"), *kinds)
    query: bytes = scope.get("query_string", b"")
    parts = [b"%d:%b" % (len(part), part) for part in named]
    return blake2b(b"".join((*parts, b"%d?%b" % (len(query), query), body)), digest_size=32).digest()


class Gone(Exception):
    """The client has left before all of its request was there."""


class TooLarge(Exception):
    """The request's body is longer than is kept."""


async def read(receive: Receive, limit: int) -> bytes:
    """The request's body; raises `Gone`, and `TooLarge` past so many bytes.

    Its messages are not kept: those of a client that sends byte by byte are 200 times as large as its body.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Gone
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLarge
        if not message.get("more_body"):
            return bytes(body)


class Again:
    """A `receive` that begins with what was read already."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._first: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        first, self._first = self._first, None
        return await self._receive() if first is None else first
