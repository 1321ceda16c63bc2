"""The middleware between a server and any ASGI app: one answer, held back until its unit is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tests.support.asgi import AsgiCall, Message, lifespan, run_asgi, watch
from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.units import app_of, count, endpoint, insert, make_tables, names, request, run, within
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session, current_unit, errors

pytestmark = pytest.mark.backends("sqlite", "pg18")

Send = Callable[[Message], Any]
START: Message = {"type": "http.response.start", "status": 201, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"ok"}


def start(status: int) -> Message:
    return {**START, "status": status}


def wrapped(app: Callable[..., Any], database: Database, **options: Any) -> UnitOfWorkMiddleware:
    return UnitOfWorkMiddleware(app, database=database, **options)


async def test_an_app_without_starlette_has_its_units(backend: Backend, database: Database) -> None:
    """L1, L2: plain ASGI; nothing but the messages is needed."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(insert(scope["path"]))
        await send(start(201 if scope["path"] == "/kept" else 404))
        await send(BODY)

    middleware = wrapped(app, database)

    assert (await run_asgi(middleware, "POST", "/kept")).status == 201
    assert (await run_asgi(middleware, "POST", "/undone")).status == 404
    assert names(backend) == ["/kept"]


async def test_the_lifespan_passes(sqlite: SqliteBackend, connect: Connect) -> None:
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        assert scope["type"] == "lifespan"
        for name in ("startup", "shutdown"):
            events.append((await receive())["type"])
            await send({"type": f"lifespan.{name}.complete"})

    async with lifespan(wrapped(app, connect(sqlite))):
        pass

    assert events == ["lifespan.startup", "lifespan.shutdown"]


@pytest.mark.parametrize(
    ("status", "kept"),
    [
        (200, True),
        (204, True),
        (303, True),
        (399, True),
        (400, False),
        (404, False),
        (500, False),
        (101, False),
    ],
)
async def test_the_status_decides(
    backend: Backend, mode: Mode, database: Database, status: int, kept: bool
) -> None:
    """L1, L2."""
    with watch([]) as timeline:
        app = app_of(endpoint(mode, insert("nut"), status), database)
        recorder = await run_asgi(app, "POST", "/work", timeline=timeline)

    assert recorder.status == status
    assert names(backend) == (["nut"] if kept else [])
    if kept:
        assert timeline.index("COMMIT") < timeline.index(f"start {status}")


async def test_an_app_that_never_answers_keeps_nothing(backend: Backend, database: Database) -> None:
    """The server answers for it; a callback does not run."""
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(insert("never"))
        current_unit().on_commit(lambda: called.append("never"))

    recorder = await run_asgi(wrapped(app, database), "POST", "/")

    assert recorder.messages == []
    assert names(backend) == []
    assert called == []
    backend.wait_until_at_rest()


async def test_an_app_that_stops_in_its_body_has_committed_before_it(
    backend: Backend, database: Database
) -> None:
    """L27: the start was sent, so the callbacks run, and nothing more is written."""
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(insert("kept"))
        current_unit().on_commit(lambda: called.append("callback"))
        await send(START)
        await send({**BODY, "more_body": True})
        if scope["path"] == "/raises":
            raise LookupError("in the body")

    for path in ("/raises", "/stops"):
        recorder = await run_asgi(wrapped(app, database), "POST", path)
        assert len(recorder.starts) == 1
        assert not recorder.complete
        assert isinstance(recorder.error, LookupError) is (path == "/raises")
        backend.execute("DELETE FROM items")

    assert called == ["callback", "callback"]


async def test_a_file_is_the_last_of_an_answer_too(sqlite: SqliteBackend, connect: Connect) -> None:
    """`http.response.pathsend` ends the unit's time, as the last body does."""
    make_tables(sqlite)
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(insert("nut"))
        current_unit().on_commit(lambda: seen.append("callback"))
        await send(START)
        await send({"type": "http.response.pathsend", "path": "/somewhere"})
        assert seen == ["callback"]
        with pytest.raises(errors.NoUnitOfWork):
            current_unit()

    recorder = await run_asgi(wrapped(app, connect(sqlite)), "POST", "/")

    assert recorder.error is None


async def test_what_comes_between_start_and_body_passes(sqlite: SqliteBackend, connect: Connect) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.debug", "info": {}})
        await send(BODY)

    recorder = await run_asgi(wrapped(app, connect(sqlite)), "POST", "/")

    assert [message["type"] for message in recorder.messages] == [
        "http.response.start", "http.response.debug", "http.response.body"
    ]  # fmt: skip


def violating(session: Session) -> None:
    """COMMIT will refuse it, on every engine."""
    insert("never")(session)
    run("INSERT INTO notes (later) VALUES (99)")(session)


async def test_a_refused_commit_is_one_answer_and_no_background_task_runs(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L5: the app's own answer never leaves, whatever the app still sends."""
    ran: list[str] = []

    async def handle(_: Request) -> Response:
        await current_session().run_sync(violating)
        return StreamingResponse(iter([b"a", b"b"]), 201, background=BackgroundTask(ran.append, "never"))

    def handle_sync(_: Request) -> Response:
        violating(current_sync_session())
        return JSONResponse("never", 201, background=BackgroundTask(ran.append, "never"))

    recorder = await run_asgi(app_of(handle if mode == "async" else handle_sync, database), "POST", "/work")

    assert recorder.error is None
    assert [message["type"] for message in recorder.messages] == ["http.response.start", "http.response.body"]
    assert (recorder.status, recorder.json()["type"]) == (409, "/problems/foreign-key-violation")
    assert ran == []
    assert names(backend) == []
    assert (await request(database, mode, insert("next"))).status == 201


@pytest.mark.parametrize("swallows", ["the message", "the exception"])
async def test_an_app_that_goes_on_after_a_refusal_is_not_heard(
    backend: Backend, database: Database, swallows: str
) -> None:
    """One answer: what it sends is dropped, and what it raises says nothing new."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(violating)
        try:
            await send(START)
        except Exception:
            await send(start(200))
            await send(BODY)
            if swallows == "the message":
                raise LookupError("something else") from None

    recorder = await run_asgi(wrapped(app, database), "POST", "/")

    assert recorder.error is None
    assert len(recorder.starts) == 1
    assert recorder.json()["type"] == "/problems/foreign-key-violation"


async def test_a_second_start_of_an_answer_has_no_say(backend: Backend, database: Database) -> None:
    """One answer: the first start settled the unit; what contradicts it does not reach the client."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(insert("kept"))
        await send(START)
        await send(start(500))
        await send(BODY)

    recorder = await run_asgi(wrapped(app, database), "POST", "/")

    assert [message.get("status") for message in recorder.starts] == [201]
    assert recorder.body == b""  # whose body it is, nobody can tell
    assert names(backend) == ["kept"]


async def test_a_timeout_inside_that_gives_up_on_a_commit_does_not_contradict_it(
    backend: Backend, database: Database
) -> None:
    """L13: the client never reads a failure of what was kept."""
    committing = asyncio.Event()

    async def inner(scope: Any, receive: Any, send: Send) -> None:
        await current_session().run_sync(insert("kept"))
        committing.set()
        await send(START)
        await send(BODY)

    async def giving_up(scope: Any, receive: Any, send: Send) -> None:
        task = asyncio.ensure_future(inner(scope, receive, send))
        await committing.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await send(start(504))
        await send({**BODY, "body": b"too late"})

    recorder = await run_asgi(wrapped(giving_up, database), "POST", "/")

    if names(backend):
        assert [message["status"] for message in recorder.starts] in ([], [201])
    else:
        assert [message["status"] for message in recorder.starts] == [504]
    backend.wait_until_at_rest()


async def test_a_client_that_is_gone_when_its_refusal_comes_changes_nothing(
    backend: Backend, database: Database
) -> None:
    call = AsgiCall(
        app_of(endpoint("async", violating), database), "POST", "/work", fail_send_at=0, spec_version="2.4"
    )

    recorder = await call.run()

    assert recorder.messages == []
    assert names(backend) == []
    backend.wait_until_at_rest()


async def test_a_misuse_is_answered_with_what_to_write_instead(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L11."""
    recorder = await request(database, mode, lambda session: session.commit())

    assert recorder.status == 500
    assert recorder.json()["type"] == "/problems/settle-refused"
    assert "flush() to get an id" in recorder.json()["detail"]
    assert names(backend) == []


async def test_a_misuse_without_a_unit_is_answered_too(sqlite: SqliteBackend, connect: Connect) -> None:
    """L21: where the request never asked for its unit; what became of its work is known to others."""

    def handle(_: Request) -> Response:
        raise errors.WouldDeadlock("made up")

    recorder = await run_asgi(app_of(handle, connect(sqlite)), "POST", "/work")

    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/would-deadlock")
    assert "outcome" not in recorder.json()


async def test_a_handler_that_rolls_back_may_answer_with_an_error_only(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L11: `rollback()` ends the unit."""

    def work(session: Session) -> None:
        insert("never")(session)
        session.rollback()

    def go_on(session: Session) -> None:
        work(session)
        count(session)

    assert (await request(database, mode, work, status=409)).status == 409
    refused = await request(database, mode, work)
    closed = await request(database, mode, go_on)

    assert (refused.status, refused.json()["type"]) == (500, "/problems/unit-doomed")
    assert (closed.status, closed.json()["type"]) == (500, "/problems/unit-closed")
    assert names(backend) == []


async def test_concurrent_requests_each_have_their_own_unit(
    backend: Backend, mode: Mode, database: Database
) -> None:
    def work_of(name: str) -> Any:
        return app_of(endpoint(mode, insert(name), 201 if name < "n5" else 404), database)

    apps = [work_of(f"n{number}") for number in range(10)]
    recorders = await asyncio.gather(*(run_asgi(app, "POST", "/work") for app in apps))

    assert [recorder.status for recorder in recorders] == [201] * 5 + [404] * 5
    assert sorted(names(backend)) == [f"n{number}" for number in range(5)]
    backend.wait_until_at_rest()


async def test_more_readers_at_once_than_the_pool_keeps_leave_nothing_behind(
    backend: Backend, mode: Mode, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections beyond `pool_size` are closed properly when they come back."""
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=5)
    app = app_of(endpoint(mode, count, 200), database)

    recorders = await asyncio.gather(*(run_asgi(app, "GET", "/work") for _ in range(6)))

    assert [recorder.status for recorder in recorders] == [200] * 6
    assert caplog.records == []
    await within(database, mode, count, read_only=True)
    backend.wait_until_at_rest()


async def test_a_request_without_a_unit_is_handed_through(sqlite: SqliteBackend, connect: Connect) -> None:
    """L20: any status, any exception, and the database is never touched."""
    database = connect(sqlite)

    def fails(_: Request) -> Response:
        raise LookupError("of the app's own")

    plain = await run_asgi(app_of(lambda _: PlainTextResponse("hello"), database), "GET", "/work")
    failed = await run_asgi(app_of(fails, database), "GET", "/work")
    missing = await run_asgi(app_of(fails, database), "GET", "/nowhere")

    assert (plain.status, plain.body) == (200, b"hello")
    assert (failed.status, type(failed.error)) == (500, LookupError)
    assert missing.status == 404
    assert not sqlite.path.exists()
