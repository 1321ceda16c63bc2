"""What keeps an event from its receiver is a failed attempt that says what it was, and the relay goes on."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import Backend
from tests.uow.conftest import Connect
from tests.uow.outboxes import Received, make_outbox_table, outbox_of, relay_of, tell_all, until, words
from tests.uow.test_outbox_webhooks import answer, receiving
from uow.outbox import Webhook

pytestmark = [pytest.mark.anyio, pytest.mark.backends("sqlite")]


async def gets_on(backend: Backend, connect: Connect, url: str) -> str:
    """What is written down of an attempt to send an event there; another destination gets its own."""
    make_outbox_table(backend)
    database, there = connect(backend), Received("there")
    outbox = outbox_of(database, Webhook("shop", url), there)
    await tell_all(database, ("a", 1))
    async with relay_of(outbox, max_attempts=2):
        await until(lambda: words(backend, "state = 'dead'") == ["a"], "two attempts to have failed")
        await tell_all(database, ("b", 2))
        await until(lambda: there.words == ["a", "b"], "the other one to be told")
    ((attempts, error),) = backend.query(
        "SELECT attempts, error FROM outbox_events WHERE subject = 'things/1'"
    )
    assert attempts == 2
    return str(error)


async def test_a_name_that_nobody_knows(
    backend: Backend, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(host: str | bytes | None, *_: object, **__: object) -> list[Any]:
        assert host in ("shop.invalid", b"shop.invalid"), "RFC 6761, section 6.4"
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await gets_on(backend, connect, "http://shop.invalid/events")
    assert error == f"ConnectError: [Errno {socket.EAI_NONAME}] Name or service not known"


async def test_a_name_that_is_none(backend: Backend, connect: Connect) -> None:
    assert "Codepoint" in await gets_on(backend, connect, "http://xn--zzzzzz-a/")


async def test_a_redirect(backend: Backend, connect: Connect) -> None:
    async with receiving() as elsewhere:
        moved = answer(308, f"Location: {elsewhere.url}")
        async with receiving(moved, moved) as receiver:
            assert await gets_on(backend, connect, receiver.url) == "Refused: answered with 308"
        assert elsewhere.requests == []


async def test_a_receiver_that_is_gone_is_asked_once(
    backend: Backend, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    make_outbox_table(backend)
    database = connect(backend)
    async with receiving(answer(410)) as receiver:
        outbox = outbox_of(database, Webhook("shop", receiver.url))
        await tell_all(database, ("a", 1), ("b", 1))
        async with relay_of(outbox):
            await until(lambda: words(backend) == ["a"], "the next one to be sent")
        sent = [json.loads(body)["data"]["word"] for _, _, body in receiver.requests]
    assert sent == ["a", "b"]
    assert backend.query("SELECT state, attempts FROM outbox_events") == [("dead", 1)]
    assert "is dead, attempt 1: GiveUp: answered with 410: the receiver wants no more" in caplog.text


async def test_an_answer_that_is_no_http(backend: Backend, connect: Connect) -> None:
    async with saying(b"SSH-2.0-x\r\n\r\n") as address:
        error = await gets_on(backend, connect, f"http://{address}/")
    assert error.startswith("RemoteProtocolError: illegal")


async def test_a_link_that_is_cut(backend: Backend, connect: Connect) -> None:
    """httpx says nothing of it, and its cause does."""

    async with saying(b"") as address:
        error = await gets_on(backend, connect, f"http://{address}/")
    assert error.endswith("Connection reset by peer")
    assert error.startswith(("ReadError: ", "WriteError: "))


async def test_a_server_without_tls(backend: Backend, connect: Connect) -> None:
    async with saying(b"HTTP/1.1 400 What?\r\n\r\n") as address:
        error = await gets_on(backend, connect, f"https://{address}/")
    assert error.startswith("ConnectError: [SSL: ")


async def test_a_certificate_that_nobody_has_signed(
    backend: Backend, connect: Connect, tmp_path: Path
) -> None:
    await asyncio.to_thread(make_certificate, tmp_path)
    async with with_tls(tmp_path) as (port, requests):
        error = await gets_on(backend, connect, f"https://127.0.0.1:{port}/")
    assert "ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self" in error
    assert requests == [], "nothing is told to who may be anybody"


@asynccontextmanager
async def saying(text: bytes) -> AsyncIterator[str]:
    """The address of a server that says this to everybody who says anything, and cuts the link."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if text:
            writer.write(text)
            await writer.drain()
            await reader.read()  # until the other side has had enough of it
        else:
            link: socket.socket = writer.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def make_certificate(folder: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", "k", "-out", "c"], check=True, capture_output=True, cwd=folder
    )


@asynccontextmanager
async def with_tls(folder: Path) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server with a certificate of its own making, and what it was told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "c", folder / "k")
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], requests
