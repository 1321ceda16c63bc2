"""Calls an ASGI app as a server would, and takes the time of it."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from starlette.types import ASGIApp, Message, Scope

CONCURRENCY = 16
CHUNK_SECONDS = 0.04

Requests = Iterator[tuple[str, str, str]]
"""Endless: the method, the path and the query string of the next request."""


@dataclass
class Variant:
    """One way to serve a case, and the processor time of its chunks, in microseconds a request."""

    name: str
    app: ASGIApp
    requests: Requests
    chunk: int = CONCURRENCY
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


async def call(app: ASGIApp, method: str, path: str, query: str) -> bytes:
    """The body of one answer; RuntimeError unless it is a complete 2xx."""
    status = 0
    body = b""
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:  # a client that stays until it has its answer
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, body
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            body += message["body"]

    await app(_scope(method, path, query), receive, send)
    if not 200 <= status < 300:
        raise RuntimeError(f"{method} {path} was answered with {status}: {body!r}")
    return body


def _scope(method: str, path: str, query: str) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": method,
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1:8000"), (b"accept", b"*/*"), (b"user-agent", b"benchmark")],
        "state": {},
    }


async def run_chunk(variant: Variant, size: int) -> tuple[float, float]:
    """Processor seconds and wall seconds of `size` requests."""
    left = count(size, -1)

    async def client() -> None:
        while next(left) > 0:
            await call(variant.app, *next(variant.requests))

    gc.collect()  # each chunk pays for its own garbage only
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    return time.process_time() - cpu, time.perf_counter() - wall


async def measure(variants: list[Variant], seconds: float, tell: Callable[[str], None]) -> None:
    """Let the variants take turns for so many seconds, after each is warm; the order goes round."""
    for variant in variants:
        await run_chunk(variant, 200)
        _, wall = await run_chunk(variant, 100)
        variant.chunk = max(2 * CONCURRENCY, int(100 * CHUNK_SECONDS / wall))
    gc.freeze()
    ends = time.monotonic() + seconds
    for turn in count():
        first = turn % len(variants)
        for variant in variants[first:] + variants[:first]:
            cpu, wall = await run_chunk(variant, variant.chunk)
            variant.cpu.append(cpu / variant.chunk * 1e6)
            variant.wall.append(wall / variant.chunk * 1e6)
        if turn >= 4 and time.monotonic() > ends:
            break
    gc.unfreeze()
    tell(f"{len(variants[0].cpu)} rounds of {len(variants)} chunks")
