"""ASGI calls in this process, with every message and every database event on one timeline.

timeline = Timeline()
with watch(timeline):
    recorder = await run_asgi(app, "POST", "/items/", json={"name": "nut"}, timeline=timeline)
assert timeline == ["BEGIN", "COMMIT", "start 201", "body last"]
"""

import asyncio
import contextlib
import json as json_module
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.wait import LIMIT

Message = MutableMapping[str, Any]
ASGIApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[Message]],
        Callable[[Message], Awaitable[None]],
    ],
    Awaitable[None],
]
Timeline = list[str]
"""What happened, in order: "BEGIN", "COMMIT", "ROLLBACK", "start 201", "body", "body last" and what
a test adds.
"""


@dataclass
class Recorder:
    """What one call of an app sent, and how it ended."""

    timeline: Timeline = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    scope: MutableMapping[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    """What the app raised, after or instead of an answer. A cancellation is not kept here: it goes
    through.
    """

    @property
    def starts(self) -> list[Message]:
        """Every `http.response.start`: a client must never see two."""
        return [message for message in self.messages if message["type"] == "http.response.start"]

    @property
    def status(self) -> int | None:
        """The status of the answer, or None if there was no answer."""
        return int(self.starts[0]["status"]) if self.starts else None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer, names in lower case."""
        pairs = self.starts[0].get("headers", ()) if self.starts else ()
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}

    @property
    def body(self) -> bytes:
        """All body chunks together."""
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def complete(self) -> bool:
        """The last body message has gone out."""
        return any(m["type"] == "http.response.body" and not m.get("more_body", False) for m in self.messages)

    def json(self) -> Any:
        """The body, parsed."""
        return json_module.loads(self.body)


class AsgiCall:
    """One HTTP request to an app in this process, under the control of the test.

    `run()` calls the app and returns the recorder; it may run as a task while the test calls
    `disconnect()`, or waits for `started`. `body` may be chunks. `fail_send_at=n` lets the n-th
    message (from 0) and all later ones raise OSError, as a server does whose client has gone
    (`spec_version="2.4"`); they are not recorded. `scope` overrides keys of the scope.
    """

    def __init__(
        self,
        app: ASGIApp,
        method: str,
        path: str,
        *,
        body: bytes | Sequence[bytes] = b"",
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        state: MutableMapping[str, Any] | None = None,
        timeline: Timeline | None = None,
        fail_send_at: int | None = None,
        spec_version: str = "2.3",
        scope: Mapping[str, Any] | None = None,
    ) -> None:
        fields = {
            "host": "testserver",
            **{name.lower(): value for name, value in (headers or {}).items()},
        }
        if json is not None:
            body = json_module.dumps(json).encode()
            fields.setdefault("content-type", "application/json")
        self._app = app
        self._chunks = [body] if isinstance(body, bytes) else list(body)
        self._fail_send_at = fail_send_at
        self._sent = 0
        self._disconnected = asyncio.Event()
        self.started = asyncio.Event()
        """Set when `http.response.start` has gone out."""
        self.scope = {
            **_scope(method, path, fields, spec_version),
            "state": {} if state is None else state,
        }
        self.scope.update(scope or {})
        self.recorder = Recorder(timeline=[] if timeline is None else timeline, scope=self.scope)

    async def run(self) -> Recorder:
        """Call the app to its end, at most for the limit of all waits."""
        limit = asyncio.timeout(LIMIT)
        try:
            async with limit:
                await self._app(self.scope, self._receive, self._send)
        except Exception as error:
            if limit.expired():
                raise
            self.recorder.error = error
        return self.recorder

    def disconnect(self) -> None:
        """The client leaves: `receive` says so from now on."""
        self._disconnected.set()

    async def _receive(self) -> Message:
        if self._chunks:
            chunk = self._chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks)}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        number, self._sent = self._sent, self._sent + 1
        if self._fail_send_at is not None and number >= self._fail_send_at:
            raise OSError("the client has gone")
        self.recorder.messages.append(message)
        self.recorder.timeline.append(_told(message))
        if message["type"] == "http.response.start":
            self.started.set()


async def run_asgi(app: ASGIApp, method: str, path: str, **options: Any) -> Recorder:
    """Make one request (the options of `AsgiCall`) and return what was recorded."""
    return await AsgiCall(app, method, path, **options).run()


def _scope(method: str, path: str, headers: Mapping[str, str], spec_version: str) -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
    }


def _told(message: Message) -> str:
    if message["type"] == "http.response.start":
        return f"start {message['status']}"
    if message["type"] == "http.response.body":
        return "body" if message.get("more_body", False) else "body last"
    return str(message["type"])


@contextlib.asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """Run the app's lifespan around a block, as a server does; yields the state that requests get
    (`state=`).
    """
    state: dict[str, Any] = {}
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
    task = asyncio.ensure_future(app(scope, inbox.get, outbox.put))

    async def phase(name: str) -> None:
        await inbox.put({"type": f"lifespan.{name}"})
        answer = asyncio.ensure_future(outbox.get())
        await asyncio.wait({answer, task}, timeout=LIMIT, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            await task
            raise RuntimeError(f"the app ended its lifespan at {name} without an answer")
        message = answer.result()
        if message["type"] != f"lifespan.{name}.complete":
            raise RuntimeError(f"{message['type']}: {message.get('message', '')}")

    try:
        await phase("startup")
        yield state
        await phase("shutdown")
        await task
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.contextmanager
def watch(timeline: Timeline, *engines: Engine | AsyncEngine) -> Iterator[Timeline]:
    """Write BEGIN, COMMIT and ROLLBACK of these engines (of every engine, if none is given) to the
    timeline.

    "BEGIN" and "ROLLBACK" stand where SQLAlchemy starts them, "COMMIT" where the driver has come
    back from it: what follows it in the timeline happened after the acknowledgement. A refused one
    is "COMMIT failed". In autocommit the same words appear although nothing is sent. The reset that
    a pool does on return does not appear.
    """
    targets: list[Any] = [e.sync_engine if isinstance(e, AsyncEngine) else e for e in engines] or [Engine]
    dialects: list[Dialect] = []

    def begin(_connection: Connection) -> None:
        timeline.append("BEGIN")

    def rollback(_connection: Connection) -> None:
        timeline.append("ROLLBACK")

    def commit(connection: Connection) -> None:
        # No event tells of the acknowledgement, so the one call that waits for it is wrapped, once
        # for each dialect.
        if connection.dialect not in dialects:
            dialects.append(connection.dialect)
            _report_commit(connection.dialect, timeline)

    listeners = {"begin": begin, "rollback": rollback, "commit": commit}
    for target in targets:
        for name, listener in listeners.items():
            event.listen(target, name, listener)
    try:
        yield timeline
    finally:
        for target in targets:
            for name, listener in listeners.items():
                event.remove(target, name, listener)
        for dialect in dialects:
            del vars(dialect)["do_commit"]


def _report_commit(dialect: Dialect, timeline: Timeline) -> None:
    # The annotation names one of the two kinds of connection that SQLAlchemy calls it with.
    do_commit: Callable[[Any], None] = dialect.do_commit

    def reported(connection: Any) -> None:
        try:
            do_commit(connection)
        except BaseException:
            timeline.append("COMMIT failed")
            raise
        timeline.append("COMMIT")

    vars(dialect)["do_commit"] = reported
