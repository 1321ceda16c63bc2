"""The app under test, as a server process makes it from its environment: TESTS_PLAIN_URL, TESTS_POOL_SIZE
and TESTS_POOL_TIMEOUT for each pool, and TESTS_APPS, the names of the `stacks` to make.

Every case is there twice, below `/async` and below `/sync`. The first stack stands at the root, any other
one below its own name.
"""

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import anyio
from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.lifecycle.model import TellingObserver, count, counts, releases, request_name, told
from tests.lifecycle.stacks import make
from tests.support.gate import install_commit_gate
from uow import Database


def create_app() -> ASGIApp:
    """The stacks, with their pools watched from the first connection on."""
    install_commit_gate()
    for name, by in (("connect", 1), ("checkout", 1), ("checkin", -1)):
        event.listen(Pool, name, _counter(name, by))
    event.listen(Engine, "begin", _counter("begin", 1))
    database = Database(
        os.environ["TESTS_PLAIN_URL"],
        pool_size=int(os.environ["TESTS_POOL_SIZE"]),
        max_overflow=0,
        pool_timeout=float(os.environ["TESTS_POOL_TIMEOUT"]),
        observer=TellingObserver(),
    )
    return _Outermost({name: make(name, database) for name in os.environ["TESTS_APPS"].split(",")})


def _counter(name: str, by: int) -> Any:
    def listener(*_: Any) -> None:
        count(name)
        if name in ("checkout", "checkin"):
            count("checked_out", by)

    return listener


class _Outermost:
    """Around everything: knows which requests are not yet through, background tasks included, and
    tells the tests. It cancels a request if a test says so.
    """

    def __init__(self, stacks: dict[str, ASGIApp]) -> None:
        self._stacks = stacks
        self._first = next(iter(stacks.values()))
        self._cancels: dict[str, dict[str, Callable[[], object]]] = {}
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._first(scope, receive, send)
            return
        query = dict(parse_qsl(scope["query_string"].decode()))
        name = query.get("name", "")
        if scope["path"] == "/seen":
            seen = {**counts, "in_flight": self._in_flight, "told": told(name)}
            await Response(json.dumps(seen))(scope, receive, send)
        elif scope["path"] == "/release":
            releases.pop(name)()
            await Response(status_code=204)(scope, receive, send)
        elif scope["path"] == "/cancel":
            self._cancels[name][query["way"]]()
            await Response(status_code=204)(scope, receive, send)
        else:
            await self._count(name, scope, receive, send)

    async def _count(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        token = request_name.set(name)
        self._in_flight += 1
        try:
            with anyio.CancelScope() as within:
                task = asyncio.current_task()
                assert task is not None
                self._cancels[name] = {"task": task.cancel, "scope": within.cancel}
                await self._serve(scope, receive, send)
        finally:
            self._cancels.pop(name, None)  # requests without a name share one place
            self._in_flight -= 1
            request_name.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, first, rest = scope["path"].split("/", 2)
        if first in self._stacks:
            path = f"/{rest}"
            await self._stacks[first]({**scope, "path": path, "raw_path": path.encode()}, receive, send)
        else:
            await self._first(scope, receive, send)
