"""Webhooks: what is sent, who has signed it, and what an answer means."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.uow.test_outbox_events import one
from uow.outbox import GiveUp, Refused, Stdout, TryLater, Webhook, _webhook, secret_of
from uow.outbox._webhook import seconds_of, signatures

pytestmark = pytest.mark.anyio

OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 64).decode()


@dataclass
class Receiver:
    """A server that answers each request with the next of these, and then with 204."""

    answers: list[bytes] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *lines = head.decode("latin-1").rstrip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append((line, headers, body))
                writer.write(self.answers.pop(0) if self.answers else b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"


@asynccontextmanager
async def receiving(*answers: bytes) -> AsyncIterator[Receiver]:
    receiver = Receiver([*answers])
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def open_webhook(url: str, **options: Any) -> AsyncIterator[Webhook]:
    webhook = Webhook("shop", url, **options)
    try:
        yield webhook
    finally:
        await webhook.aclose()


def test_a_signature_is_that_of_the_published_example() -> None:
    """What the receivers' libraries are tested with; its key is shorter than what is asked for today."""
    made = signatures(
        [base64.b64decode("plJ3nmyCDGBKInavdOK15jsl")],
        id="msg_loFOjxBNrRLzqYUf",
        timestamp=1731705121,
        body=b'{"event_type":"ping","data":{"success":true}}',
    )
    assert made == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="


def verified(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """What a receiver does: one of the signatures is that of its key."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mine = base64.b64encode(hmac.new(secret_of(secret), signed, hashlib.sha256).digest()).decode()
    return f"v1,{mine}" in headers["webhook-signature"].split(" ")


async def test_a_structured_event_is_a_signed_post() -> None:
    async with receiving() as receiver, open_webhook(receiver.url, secrets=[NEW, OLD]) as webhook:
        await webhook.send(one())
        ((line, headers, body),) = receiver.requests
    assert line == "POST /events HTTP/1.1"
    assert headers["content-type"] == "application/cloudevents+json"
    assert json.loads(body) == json.loads(one().structured())
    assert headers["webhook-id"] == one().id
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert verified(NEW, headers, body)
    assert verified(OLD, headers, body)
    assert not verified("whsec_" + base64.b64encode(b"x" * 24).decode(), headers, body)
    assert not verified(NEW, headers, body + b" ")


async def test_a_binary_event_has_its_attributes_in_headers() -> None:
    options: dict[str, Any] = {"mode": "binary", "headers": {"X-Shop": "1"}}
    async with receiving() as receiver, open_webhook(receiver.url, **options) as webhook:
        await webhook.send(one())
        ((_, headers, body),) = receiver.requests
    assert body == one().data.encode()
    assert {name: headers[name] for name in one().headers()} == one().headers()
    assert headers["x-shop"] == "1"
    assert "webhook-signature" not in headers


async def test_a_connection_is_used_again_unless_the_answer_is_long() -> None:
    long = answer(200, body=b"x" * 200_000)
    async with receiving(answer(200, body=b"x"), answer(201), long) as receiver:
        async with open_webhook(receiver.url) as webhook:
            for _ in range(3):
                await webhook.send(one())
            assert receiver.connections == 1
            await webhook.send(one())
        assert receiver.connections == 2
        async with open_webhook(receiver.url) as webhook:
            await webhook.aclose()


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 409, 429, 500, 503])
async def test_only_2xx_is_taken(status: int) -> None:
    elsewhere = "Location: http://127.0.0.1:1/elsewhere"
    async with receiving(answer(status, elsewhere)) as receiver, open_webhook(receiver.url) as webhook:
        with pytest.raises(Refused, match=f"answered with {status}"):
            await webhook.send(one())
        assert len(receiver.requests) == 1, "redirects are not followed"


async def test_who_is_gone_is_not_asked_for_this_event_again() -> None:
    async with receiving(answer(410, "Retry-After: 17")) as receiver, open_webhook(receiver.url) as webhook:
        with pytest.raises(GiveUp, match="answered with 410: the receiver wants no more"):
            await webhook.send(one())
        await webhook.send(one())  # that is the relay's to decide


async def test_who_is_busy_says_when_to_come_back() -> None:
    for status in (429, 503):
        async with (
            receiving(answer(status, "Retry-After: 17")) as receiver,
            open_webhook(receiver.url) as webhook,
        ):
            with pytest.raises(TryLater, match="come back in 17 s") as later:
                await webhook.send(one())
            assert later.value.seconds == 17.0


@pytest.mark.parametrize("body", [b"Content-Length: 9\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n"])
@pytest.mark.parametrize("open_end", [True, False])
async def test_the_status_counts_whatever_becomes_of_the_rest_of_the_answer(
    body: bytes, open_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_webhook, "_SECONDS_TO_READ", 0.05)
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write((b"HTTP/1.1 200 X\r\n" if asked == 1 else b"HTTP/1.1 500 X\r\n") + body)
        if open_end:
            await reader.read()  # until the other side has had enough
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_webhook(f"http://127.0.0.1:{port}/") as webhook:
            await webhook.send(one())
            with pytest.raises(Refused, match="500"):
                await webhook.send(one())
    assert asked == 2


async def test_more_than_a_hundred_are_on_their_way_at_a_time() -> None:
    arrived, everybody = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 120:
            everybody.set()
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(one().structured().encode()))
        await everybody.wait()
        writer.write(answer(204, "Connection: close"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, backlog=120) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_webhook(f"http://127.0.0.1:{port}/") as webhook, asyncio.timeout(30):
            await asyncio.gather(*(webhook.send(one()) for _ in range(120)))
    assert arrived == 120


async def test_nobody_there_is_an_error() -> None:
    async with receiving() as receiver:
        url = receiver.url
    async with open_webhook(url) as webhook:
        with pytest.raises(Exception, match="connection attempts failed"):
            await webhook.send(one())


async def test_the_environment_has_no_say_in_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with receiving() as receiver, open_webhook(receiver.url) as webhook:
        await webhook.send(one())
        assert len(receiver.requests) == 1


def in_an_hour() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        (lambda: "0", 0, 0),
        (lambda: " 120 ", 120, 120),
        (in_an_hour, 3500, 3600),
        (lambda: "Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
        (lambda: "Thu, 01 Jan 1970 00:00:00", 0, 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(said: Callable[[], str], least: float, most: float) -> None:
    seconds = seconds_of(said())
    assert seconds is not None
    assert least <= seconds <= most


@pytest.mark.parametrize(
    "said", [None, "", "soon", "-1", "1.5", "\u0661", f"Mon, 01 Jan {9**20} 00:00:00 GMT"]
)
def test_what_says_nothing_is_nothing(said: str | None) -> None:
    assert seconds_of(said) is None


@pytest.mark.parametrize("wrong", ["", "whsec_", OLD.removeprefix("whsec_"), "whsec_!!!!", "whsec_" + "QUJD"])
def test_a_secret_is_what_standard_webhooks_say(wrong: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes") as error:
        Webhook("shop", "https://shop.example.com", secrets=[wrong])
    assert not wrong or wrong == "whsec_" or wrong not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop",
        "ftp://shop",
        "https://",
        "file:///etc/passwd",
        "http://shop:0/",
        "http://shop:99999/",
        "http://[::1/",
    ],
)
def test_an_address_is_http(url: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        Webhook("shop", url)


def test_a_mode_is_one_of_two() -> None:
    other: Any = "other"
    with pytest.raises(ValueError, match="mode='other'"):
        Webhook("shop", "https://shop", mode=other)


async def test_standard_output_is_a_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    await Stdout("lines", stream=stream).send(one())
    await Stdout().send(one())
    assert stream.getvalue() == capsys.readouterr().out == one().structured() + "\n"
