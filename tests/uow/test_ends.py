"""How a unit ends when something else happens at the same time (L8, L12, L16, L22)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.support.asgi import AsgiCall, run_asgi
from tests.support.backends import Backend, Mode, PostgresBackend, SqliteBackend
from tests.support.hold import PostgresHold, hold_commits
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.units import (
    Item,
    app_of,
    count,
    elsewhere,
    in_thread,
    insert,
    make_tables,
    names,
    request,
    run,
    within,
)
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session, errors


async def test_a_stream_that_asks_for_its_first_session_in_the_body_is_refused(
    sqlite: SqliteBackend, connect: Connect
) -> None:
    """L16: the answer has begun, so nothing could be promised any more."""
    database = connect(sqlite)

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await current_session().run_sync(count)

    async def handle(_: Request) -> Response:
        return StreamingResponse(body())

    recorder = await run_asgi(app_of(handle, database), "POST", "/work")

    assert isinstance(recorder.error, errors.UnitOfWorkClosed)
    assert (recorder.status, recorder.complete) == (200, False)


async def test_a_listener_that_fails_after_commit_changes_nothing(
    backend: Backend, mode: Mode, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """What was acknowledged is kept, and the answer says so."""

    def work(session: Session) -> None:
        insert("kept")(session)

        @event.listens_for(session, "after_commit")
        def fails(_: Session) -> None:
            raise LookupError("in after_commit")

    with caplog.at_level(logging.ERROR, "uow"):
        recorder = await request(database, mode, work)

    assert recorder.status == 201
    assert "a listener failed after COMMIT; the work is kept" in caplog.text
    assert names(backend) == ["kept"]
    assert (await request(database, mode, insert("next"))).status == 201


async def test_a_listener_that_fails_before_commit_rolls_back(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L4: an error that is neither the database's nor ours."""

    def work(session: Session) -> None:
        insert("never")(session)

        @event.listens_for(session, "before_commit")
        def fails(_: Session) -> None:
            raise LookupError("in before_commit")

    recorder = await request(database, mode, work)

    assert (recorder.status, recorder.json()["outcome"]) == (500, "rolled_back")
    assert names(backend) == []
    assert (await request(database, mode, insert("next"))).status == 201


async def test_an_error_that_a_listener_swallows_before_commit_dooms_the_unit(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L9: SQLite would commit the rest; inside of a savepoint it is contained."""
    backend.execute("INSERT INTO items (name) VALUES ('taken')")

    def work(session: Session, *, contained: bool) -> None:
        insert("one" if contained else "never")(session)

        @event.listens_for(session, "before_commit")
        def swallows(session: Session) -> None:
            if not session.in_nested_transaction():
                with suppress(IntegrityError), session.begin_nested() if contained else nullcontext():
                    insert("taken")(session)

    recorder = await request(database, mode, partial(work, contained=False))
    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/unit-doomed")
    assert recorder.json()["outcome"] == "rolled_back"
    assert names(backend) == ["taken"]

    assert (await request(database, mode, partial(work, contained=True))).status == 201
    assert names(backend) == ["taken", "one"]


def swallows_at_the_end(session: Session, *, contained: bool = False) -> None:
    """Work, and a listener that comes after those of the unit, to whose COMMIT nobody objects any more."""

    def swallows(connection: Connection) -> None:
        with suppress(IntegrityError), connection.begin_nested() if contained else nullcontext():
            connection.execute(text("INSERT INTO items (name) VALUES ('taken')"))

    insert("one")(session)
    event.listen(session.connection().engine, "commit", swallows, once=True)


async def test_an_error_that_is_swallowed_after_the_last_look_at_the_unit_keeps_commit_from_being_sent(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L9: SQLite would commit the rest, and psycopg does not tell that COMMIT was answered with ROLLBACK."""
    backend.execute("INSERT INTO items (name) VALUES ('taken')")
    recorder = await request(database, mode, swallows_at_the_end)
    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/unit-doomed")
    assert (recorder.json()["outcome"], names(backend)) == ("rolled_back", ["taken"])
    assert (await request(database, mode, insert("next"))).status == 201
    backend.wait_until_at_rest()


@pytest.mark.modes("sync")  # that of a connection is refused in an async unit
async def test_one_that_is_contained_in_a_savepoint_there_does_not(
    backend: Backend, mode: Mode, database: Database
) -> None:
    backend.execute("INSERT INTO items (name) VALUES ('taken')")
    assert (await request(database, mode, partial(swallows_at_the_end, contained=True))).status == 201
    assert names(backend) == ["taken", "one"]


@pytest.mark.backends("pg18", "pgsystem")
async def test_a_connection_lost_during_commit_is_unknown(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L8: neither a success nor a failure can be told; the next unit gets another connection."""
    with hold_commits(backend, "items") as hold:
        assert isinstance(hold, PostgresHold)
        answer = elsewhere(request(database, mode, insert("unknown")))
        await hold.wait_until_waiting_async()
        assert await in_thread(hold.terminate_waiting) == 1
        recorder = await answer

    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/commit-outcome-unknown")
    assert recorder.json()["outcome"] == "unknown"
    assert (await request(database, mode, insert("next"))).status == 201
    backend.wait_until_at_rest()


async def test_a_request_that_is_cancelled_after_its_refusal_is_cancelled(
    backend: Backend, database: Database
) -> None:
    """L12: nobody is there to read the answer that would have come instead."""
    refused = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current_session().run_sync(run("INSERT INTO notes (later) VALUES (99)"))
        try:
            await send({"type": "http.response.start", "status": 201, "headers": []})
        finally:
            refused.set()
            await asyncio.Event().wait()

    call = AsgiCall(UnitOfWorkMiddleware(app, database=database), "POST", "/")
    task = elsewhere(call.run())
    await asyncio.wait_for(refused.wait(), LIMIT)
    task.cancel()
    await asyncio.wait({task}, timeout=LIMIT)

    assert task.cancelled()
    assert call.recorder.messages == []
    backend.wait_until_at_rest()


async def test_a_plain_block_waits_for_a_thread_that_is_inside_and_then_cuts_it_off(
    backend: Backend, connect: Connect
) -> None:
    """L22: nothing is kept, whatever the thread was about to write."""
    make_tables(backend)
    database = connect(backend, settle_timeout=0.2)
    inside, going_on = threading.Event(), threading.Event()

    def linger(session: Session) -> None:
        @event.listens_for(session, "before_flush")
        def wait(*_: Any) -> None:
            inside.set()
            going_on.wait(LIMIT)

        session.add(Item(name="late"))
        session.flush()

    def block() -> threading.Thread:
        with database.new_unit(name="job") as unit:
            insert("never")(unit.sync_session)
            thread = threading.Thread(target=swallowed, args=(linger, unit.sync_session))
            thread.start()
            assert inside.wait(LIMIT)
        return thread

    with pytest.raises(errors.ConcurrentUse, match=r"job: not settled within 0\.2 seconds"):
        await in_thread(block)
    going_on.set()
    backend.wait_until_at_rest()

    assert names(backend) == []
    database.settle_timeout = LIMIT  # a COMMIT may take longer on a busy machine
    await within(database, "sync", insert("next"))


def swallowed(call: Callable[[Session], None], session: Session) -> None:
    try:
        call(session)
    except Exception as error:
        logging.getLogger(__name__).info("%s", error)


async def test_a_task_that_is_inside_is_waited_for(backend: Backend, database: Database) -> None:
    """L22: a statement that somebody else still runs ends before COMMIT, and its work is part of it."""
    inside = threading.Event()

    def slow(session: Session) -> None:
        inside.set()
        insert("slow")(session)

    async with database.new_unit() as unit:
        await unit.session.run_sync(insert("first"))
        task = asyncio.ensure_future(unit.session.run_sync(slow))
        await asyncio.sleep(0)
        assert inside.is_set()
    await task

    assert names(backend) == ["first", "slow"]


async def test_a_commit_that_was_not_sent_in_time_is_never_sent(backend: Backend, connect: Connect) -> None:
    """L13: the answer said that nothing was kept, so the thread that comes late must not commit."""
    make_tables(backend)
    database = connect(backend, settle_timeout=0.2)
    going_on, late = threading.Event(), threading.Event()

    def handle(_: Request) -> Response:
        session = current_sync_session()
        insert("never")(session)

        @event.listens_for(session, "before_commit")
        def wait(*_: Any) -> None:
            going_on.wait(LIMIT)
            late.set()

        return Response(status_code=201)

    recorder = await run_asgi(app_of(handle, database), "POST", "/work")
    going_on.set()
    assert await in_thread(late.wait, LIMIT)
    backend.wait_until_at_rest()

    assert (recorder.status, recorder.json()["outcome"]) == (500, "rolled_back")
    assert names(backend) == []
    database.settle_timeout = LIMIT  # a COMMIT may take longer on a busy machine
    await within(database, "sync", insert("next"))


@pytest.mark.backends("pg18")
async def test_an_app_that_fails_while_its_commit_is_on_its_way_waits_for_it(
    backend: Backend, database: Database
) -> None:
    """L13: the failure must not contradict what is kept."""
    sent: list[asyncio.Task[None]] = []
    failing = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await current_session().run_sync(insert("kept"))
        sent.append(asyncio.create_task(send({"type": "http.response.start", "status": 201, "headers": []})))
        await failing.wait()
        raise LookupError("of the app's own")

    with hold_commits(backend, "items") as hold:
        answer = elsewhere(run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/"))
        await hold.wait_until_waiting_async()
        failing.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not answer.done()
        hold.release()
        recorder = await answer
        await asyncio.wait(sent, timeout=LIMIT)

    assert [message["status"] for message in recorder.starts] in ([], [201])
    assert names(backend) == ["kept"]
    assert isinstance(recorder.error, LookupError)


async def test_a_client_that_leaves_is_no_matter_where_nobody_watches(
    backend: Backend, database: Database
) -> None:
    """L14: without an observer."""

    async def handle(_: Request) -> Response:
        await current_session().run_sync(insert("kept"))
        return Response(status_code=201)

    recorder = await run_asgi(app_of(handle, database), "POST", "/work", fail_send_at=0, spec_version="2.4")

    assert recorder.messages == []
    assert names(backend) == ["kept"]


@pytest.mark.backends("pg18", "pgsystem")
async def test_a_task_that_stays_inside_is_cut_off(backend: Backend, connect: Connect) -> None:
    """L22: its statement waits for a lock that nobody gives; the unit does not wait for ever."""
    assert isinstance(backend, PostgresBackend)
    make_tables(backend)
    backend.execute("INSERT INTO items (name) VALUES ('nut')")
    database = connect(backend, settle_timeout=0.2)
    tasks: list[asyncio.Task[None]] = []

    async def handle(_: Request) -> Response:
        session = current_session()
        await session.run_sync(insert("never"))
        tasks.append(asyncio.create_task(session.run_sync(run("UPDATE items SET stock = 1 WHERE id = 1"))))
        await asyncio.sleep(0)
        return Response(status_code=201)

    with backend.server.connect(backend.dbname) as other, other.transaction():
        other.execute("UPDATE items SET stock = 2")
        recorder = await run_asgi(app_of(handle, database), "POST", "/work")
        await asyncio.wait(tasks, timeout=LIMIT)

    assert (recorder.status, recorder.json()["type"]) == (500, "/problems/concurrent-use")
    assert tasks[0].exception() is not None
    assert backend.query("SELECT name, stock FROM items") == [("nut", 2)]
    backend.wait_until_at_rest()


async def test_a_handler_that_throws_its_connection_away_keeps_nothing(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L11: what was done on it is lost, so no 2xx may be answered."""

    def work(session: Session) -> None:
        insert("never")(session)
        session.connection().invalidate()

    recorder = await request(database, mode, work)

    assert (recorder.status, recorder.json()["outcome"]) == (500, "rolled_back")
    assert (await request(database, mode, insert("next"))).status == 201
    assert names(backend) == ["next"]
