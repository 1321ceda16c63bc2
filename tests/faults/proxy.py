"""A network that fails on demand between a driver and PostgreSQL.

It reads just enough of the frontend/backend protocol (version 3, without TLS; see
https://www.postgresql.org/docs/current/protocol-message-formats.html) to know a COMMIT when it passes, sent
as a simple query or as Parse, Bind and Execute, and the answer to it.
"""

from __future__ import annotations

import asyncio
import re
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from sqlalchemy import make_url

At = Literal["before_commit", "commit_sent", "commit_done"]
"""Where a fault comes to a connection: before a COMMIT is forwarded, when it was and its answer has not come
back, or when the answer is here and was not forwarded.
"""
What = Literal["cut", "stall"]

_NO_TLS = {80877103, 80877104}  # SSLRequest and GSSENCRequest, which are answered with one byte
_IS_COMMIT = re.compile(
    rb"(?:.*;)?\s*(COMMIT|END)\b", re.IGNORECASE | re.DOTALL
).match  # others may go before
_COMMITTED = (b"COMMIT", b"ROLLBACK")
_LENGTH = struct.Struct("!I")


@dataclass(frozen=True)
class Fault:
    """What is to happen, where (None is at once), and whether to every connection from then on."""

    what: What
    at: At | None
    everywhere: bool
    once: bool = False


class PostgresProxy:
    """Listens on a loopback port and passes everything on to a server, until it is told not to.

    It runs on an event loop of its own in a thread, so that it also serves drivers that block theirs.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.commits = 0
        """How many COMMITs have come from clients, forwarded or not."""
        self.hit = 0
        """How many connections a fault has come to."""
        self.held = 0
        """How many messages stand at a stall."""
        self.fault: Fault | None = None
        self.is_down: What | None = None
        """What happens to every connection, also to new ones."""
        self._server_port = server_port
        self._links: set[_Link] = set()
        self._listening: Future[asyncio.AbstractEventLoop] = Future()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._over.set)
        self._thread.join()

    def url_of(self, url: str) -> str:
        """The same database through this proxy."""
        return make_url(url).set(host="127.0.0.1", port=self.port).render_as_string(hide_password=False)

    def leads_to(self, server_port: int) -> None:
        """From now on new connections go to another server."""
        self._server_port = server_port

    def cut(self, at: At | None = None, *, everywhere: bool = False, once: bool = False) -> None:
        """Close connections towards both sides: all of them at once, or each that comes to `at`.

        With `once` only the first that comes there is cut. With `everywhere` one that comes there takes all
        others with it, and new ones are refused: the server is gone. It is back after `heal()`.
        """
        self._do(lambda: self._set(Fault("cut", at, everywhere, once)))

    def stall(self, at: At | None = None, *, everywhere: bool = False) -> None:
        """Forward nothing any more in either direction, and keep the connections; otherwise as `cut`.

        Without `at` this is for all connections and for new ones.
        """
        self._do(lambda: self._set(Fault("stall", at, everywhere or at is None)))

    def heal(self) -> None:
        """Pass everything on, also what was held back meanwhile."""
        self._do(self._heal)

    # -- the rest runs on the loop of the proxy

    def _do(self, work: Callable[[], None]) -> None:
        done: Future[None] = Future()

        def run() -> None:
            work()
            done.set_result(None)

        self._listening.result().call_soon_threadsafe(run)
        done.result()

    def _set(self, fault: Fault) -> None:
        self.fault = fault
        if fault.at is None:
            self._strike(fault, [*self._links])

    def _heal(self) -> None:
        self.fault = self.is_down = None
        for link in self._links:
            link.flows.set()

    def due(self, at: At) -> Fault | None:
        """The fault that a connection has come to, which is then for it."""
        fault = self.fault
        if fault is None or fault.at != at:
            return None
        if fault.once:
            self.fault = None
        return fault

    def strike(self, fault: Fault, link: _Link) -> None:
        """The fault has come to this connection."""
        self._strike(fault, [*self._links] if fault.everywhere else [link])

    def _strike(self, fault: Fault, links: list[_Link]) -> None:
        self.hit += len(links)
        if fault.everywhere:
            self.is_down = fault.what
        for link in links:
            if fault.what == "cut":
                link.close()
            else:
                link.flows.clear()

    async def _serve(self) -> None:
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._listening.set_result(asyncio.get_running_loop())
        async with listener:
            await self._over.wait()
            self.is_down = "cut"
            listener.close()
            # All that runs here serves a connection, also one that has come just now and is no link yet.
            while serving := asyncio.all_tasks() - {asyncio.current_task()}:
                for link in [*self._links]:
                    link.close()
                await asyncio.wait(serving)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Side(reader, writer)
        try:
            server = Side(*await asyncio.open_connection("127.0.0.1", self._server_port))
        except OSError:
            client.close()
            return
        link = _Link(self, client, server)
        if self.is_down == "stall":
            link.flows.clear()
        elif self.is_down == "cut":
            link.close()
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


@dataclass(frozen=True)
class Side:
    """A connection to the client or to the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def message(self) -> tuple[bytes, bytes]:
        """The next message: its kind, and all of its bytes."""
        head = await self.reader.readexactly(5)
        return head[:1], head + await self.reader.readexactly(_LENGTH.unpack(head[1:])[0] - 4)

    async def first(self) -> tuple[int, bytes]:
        """A message of a start, which has a number for its kind."""
        head = await self.reader.readexactly(8)
        return _LENGTH.unpack(head[4:])[0], head + await self.reader.readexactly(
            _LENGTH.unpack(head[:4])[0] - 8
        )

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        """What was sent before still arrives, so a server goes on with a COMMIT that it was sent."""
        self.writer.close()


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: PostgresProxy, client: Side, server: Side) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self._proxy = proxy
        self._client = client
        self._server = server
        self._closed = False
        self._committing = False
        self._watcher = _Statements()

    def close(self) -> None:
        self._closed = True
        self._client.close()
        self._server.close()
        self.flows.set()  # whoever stands at a stall finds out

    async def run(self) -> None:
        ways = [asyncio.create_task(way) for way in (self._upwards(), self._downwards())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.close()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(self, side: Side, data: bytes) -> None:
        """Pass it on as soon as it may be."""
        await self._stand()
        if not self._closed:
            await side.send(data)

    async def _stand(self) -> None:
        if not self.flows.is_set():
            self._proxy.held += 1
            try:
                await self.flows.wait()
            finally:
                self._proxy.held -= 1

    async def _upwards(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._start()
            while not self._closed:
                kind, data = await self._client.message()
                await (self._commit(data) if self._watcher.commits(kind, data) else self._up(data))

    async def _up(self, data: bytes) -> None:
        await self._forward(self._server, data)

    async def _start(self) -> None:
        kind, data = await self._client.first()
        while kind in _NO_TLS:
            await self._forward(self._client, b"N")
            kind, data = await self._client.first()
        await self._up(data)

    async def _commit(self, data: bytes) -> None:
        await self._stand()
        self._proxy.commits += 1
        self._committing = True
        if fault := self._proxy.due("before_commit"):
            self._proxy.strike(fault, self)
        if self._closed:
            return
        if fault := self._proxy.due("commit_sent"):
            self.flows.clear()  # an answer must not slip through meanwhile
            await self._server.send(data)
            self._proxy.strike(fault, self)
        else:
            await self._up(data)

    async def _downwards(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not self._closed:
                kind, data = await self._server.message()
                # CommandComplete, or ErrorResponse where the COMMIT was refused.
                if self._committing and (kind == b"E" or (kind == b"C" and data[5:].startswith(_COMMITTED))):
                    self._committing = False
                    if fault := self._proxy.due("commit_done"):
                        self._proxy.strike(fault, self)
                await self._forward(self._client, data)


class _Statements:
    """Which messages of a client execute a COMMIT."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, bool] = {}
        self._portals: dict[bytes, bool] = {}

    def commits(self, kind: bytes, data: bytes) -> bool:
        if kind == b"Q":
            return _IS_COMMIT(data, 5) is not None
        first, _, rest = data[5:].partition(b"\0")
        if kind == b"P":
            self._prepared[first] = _IS_COMMIT(rest) is not None
        elif kind == b"B":
            self._portals[first] = self._prepared.get(rest.partition(b"\0")[0], False)
        return kind == b"E" and self._portals.get(first, False)
