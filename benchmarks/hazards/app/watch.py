"""Sees what an app does from outside its frameworks and middlewares, and tells the runner.

`GET /__seen?name=...` answers with what is known of the requests of that name, `POST /__release?name=...`
lets a handler go on that stands at its gate. Nothing of it touches a request on its way.
"""

import asyncio
import gc
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.gate import install_commit_gate

pool_events: Counter[str] = Counter()
told: defaultdict[str, list[str]] = defaultdict(list)
answers: Counter[str] = Counter()
_out: set[ConnectionPoolEntry] = set()
_releases: dict[str, Callable[[], object]] = {}

WAITING = "waiting"


def tell(name: str, what: str) -> None:
    """Note something about a request, for the runner to read."""
    told[name].append(what)


async def stand_at_gate(name: str) -> None:
    """Wait for the runner; the event loop goes on."""
    released = asyncio.Event()
    _releases[name] = released.set
    tell(name, WAITING)
    await released.wait()


def stand_at_gate_in_thread(name: str) -> None:
    """Wait for the runner; this thread stands still."""
    released = threading.Event()
    _releases[name] = released.set
    tell(name, WAITING)
    released.wait(60)


def _connected(*_: Any) -> None:
    pool_events["connect"] += 1


def _handed_out(_connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
    # Comes once more if somebody finds the connection dead at this moment, and the pool replaces it.
    if record not in _out:
        _out.add(record)
        pool_events["checkout"] += 1


def _given_back(_connection: Any, record: ConnectionPoolEntry) -> None:
    _out.discard(record)
    pool_events["checkin"] += 1


class Watch:
    """Around the whole app. `X-Timeout: 0.5` puts a time-out around it, as a gateway in the process would."""

    def __init__(self, app: ASGIApp) -> None:
        install_commit_gate()
        event.listen(Pool, "connect", _connected)
        event.listen(Pool, "checkout", _handed_out)
        event.listen(Pool, "checkin", _given_back)
        self._app = app
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = parse_qs(scope["query_string"].decode()).get("name", [""])[0]
        if scope["path"].startswith("/__"):
            body = self._control(scope["path"], name)
            await Response(json.dumps(body))(scope, receive, send)
        else:
            await self._serve(name, scope, receive, send)

    def _control(self, path: str, name: str) -> dict[str, Any]:
        """What the runner asks for."""
        match path:
            case "/__seen":
                watched = {"in_flight": self._in_flight, "told": told[name], "answers": answers[name]}
                return {**pool_events, **watched}
            case "/__release":
                _releases.pop(name)()
            case "/__collect":
                gc.collect()
            case "/__reset":
                told.clear()
                answers.clear()
        return {}

    async def _serve(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        started = ended = False

        async def counting(message: Message) -> None:
            nonlocal started, ended
            starting = message["type"] == "http.response.start"
            answers[name] += starting or ended  # what follows the end belongs to another answer
            started = started or starting
            ended = not starting and not message.get("more_body", False)
            await send(message)

        limit = dict(scope["headers"]).get(b"x-timeout")
        self._in_flight += 1
        try:
            async with asyncio.timeout(float(limit) if limit else None):
                await self._app(scope, receive, counting)
        except TimeoutError:
            if limit is None:
                raise
            if not started:
                await Response("timed out", 504)(scope, receive, counting)
        except BaseException as error:
            tell(name, f"raised {type(error).__name__}")
            raise
        finally:
            self._in_flight -= 1
