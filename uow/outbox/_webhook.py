"""The destinations that come with the library: HTTP webhooks, and standard output."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TextIO
from urllib.parse import urlsplit

from anyio import to_thread

from ._message import CloudEvent, GiveUp, TryLater

_PREFIX = "whsec_"
_MORE_ANSWER_THAN_THIS = 64 * 1024  # bytes: it is not read to its end, and costs the connection
_SECONDS_TO_READ = 1.0  # for the rest of an answer, likewise
_BUSY = (429, 503)
_GONE = 410

Mode = Literal["structured", "binary"]


class Refused(Exception):
    """The receiver has answered, and has not taken the event."""


def secret_of(text: str) -> bytes:
    """The key of a secret as Standard Webhooks write it: `whsec_`, and 24 to 64 bytes in Base64.

    Raises ValueError, with a message without it, if it is none.
    """
    try:
        key = base64.b64decode(text.strip().removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.strip().startswith(_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(f"a secret is {_PREFIX} and 24 to 64 bytes in Base64")
    return key


def signatures(keys: Sequence[bytes], *, id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each key, the newest first, so that keys can change.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    signed = f"{id}.{timestamp}.".encode() + body
    made = (base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)
    return " ".join(f"v1,{each}" for each in made)


class Webhook:
    """An address that gets each event as a POST, and has taken it when it answers with 2xx.

    `mode` is that of the HTTP binding of CloudEvents: "structured", the whole event as one JSON document, or
    "binary", the data as the body and the attributes as headers. With `secrets` each is signed as Standard
    Webhooks are: the body, its time and its id; in binary mode the other attributes are not. While a secret
    changes there are two, the newest first. `headers` are sent as well. Redirects are not followed, and
    proxies of the environment not used: nothing is sent to any other address than `url`.

    Needs httpx. Raises ValueError for a URL that is not http or https and for a secret that is none.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        secrets: Sequence[str] = (),
        mode: Mode = "structured",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not _is_address(url):
            raise ValueError("url is no address of http:// or https://")
        if mode not in ("structured", "binary"):
            raise ValueError(f'mode={mode!r} is neither "structured" nor "binary"')
        self.name = name
        self._url = url
        self._keys = [secret_of(each) for each in secrets]
        self._structured = mode == "structured"
        self._headers = dict(headers or {})
        self._client: Any = None

    async def send(self, event: CloudEvent) -> None:
        """POST it; raises Refused for another answer than 2xx, TryLater for one that says when.

        GiveUp for 410: as of Standard Webhooks ("Delivery success and failure") the receiver wants no more.
        """
        import httpx  # noqa: PLC0415 - as in _client()

        client = self._client = self._client or _client()
        body = (event.structured() if self._structured else event.data).encode()
        async with client.stream(
            "POST", self._url, content=body, headers=self._headers_of(event, body)
        ) as answer:
            status, wish = answer.status_code, seconds_of(answer.headers.get("retry-after"))
            with suppress(httpx.HTTPError, TimeoutError):  # the status has said it all
                async with asyncio.timeout(_SECONDS_TO_READ):
                    await _read(answer)
        if 200 <= status < 300:
            return
        if status in _BUSY and wish is not None:
            raise TryLater(f"answered with {status}, and to come back in {wish:g} s", wish)
        if status == _GONE:
            raise GiveUp(f"answered with {status}: the receiver wants no more")
        raise Refused(f"answered with {status}")

    async def aclose(self) -> None:
        """Close its connections; a later `send` opens others."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    def _headers_of(self, event: CloudEvent, body: bytes) -> dict[str, str]:
        form = {"content-type": "application/cloudevents+json"} if self._structured else event.headers()
        timestamp = int(time.time())
        signed = {"webhook-id": event.id, "webhook-timestamp": str(timestamp)}
        if self._keys:
            signed["webhook-signature"] = signatures(self._keys, id=event.id, timestamp=timestamp, body=body)
        return {"user-agent": "uow-outbox", **self._headers, **form, **signed}


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its port is none, or its brackets
        return False


def _client() -> Any:
    import httpx  # noqa: PLC0415 - an extra: who has no webhooks need not have it

    # The relay bounds how many there are and how long each may take; in a queue here they would fail unsent.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=5.0)
    return httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=None, limits=limits)


async def _read(answer: Any) -> None:
    """Read a short answer, so that its connection can be used again."""
    size = 0
    async for part in answer.aiter_raw():
        size += len(part)
        if size > _MORE_ANSWER_THAN_THIS:
            return


def seconds_of(retry_after: str | None) -> float | None:
    """What Retry-After says, in seconds from now (RFC 9110, section 10.2.3); None if it says nothing."""
    if retry_after is None:
        return None
    if retry_after.strip().isascii() and retry_after.strip().isdigit():
        return float(retry_after)
    try:
        when = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):  # the second for a number without end
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return max((when - datetime.now(UTC)).total_seconds(), 0.0)


class Stdout:
    """Standard output, or another text stream: each event is a line of JSON."""

    def __init__(self, name: str = "stdout", *, stream: TextIO | None = None) -> None:
        self.name = name
        self._stream = stream

    async def send(self, event: CloudEvent) -> None:
        """Write the line; who reads may keep everybody waiting, but not the event loop."""
        await to_thread.run_sync(self._write, f"{event.structured()}\n")

    def _write(self, line: str) -> None:
        stream = self._stream or sys.stdout
        stream.write(line)
        stream.flush()
