"""What an observer is told: statements, how units end, and clients that leave (L14)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from itertools import count as count_up
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from tests.support.asgi import AsgiCall, run_asgi
from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.units import Told, app_of, count, endpoint, insert, make_tables, names, request, within
from uow import UnitOfWork, current_session, current_unit, on_commit
from uow.observe import Settlement

pytestmark = pytest.mark.backends("sqlite", "pg18")

who: ContextVar[str] = ContextVar("who", default="nobody")


async def test_it_is_told_of_each_statement_and_once_of_the_end(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    told = Told()
    database = connect(backend, observer=told)

    def both(session: Session) -> None:
        insert("nut")(session)
        count(session)

    await request(database, mode, both)
    await request(database, mode, both)
    await within(database, mode, count, read_only=True, name="reading")

    assert told.outcomes == [
        ("POST /work", "committed"), ("POST /work", "rolled_back"), ("reading", "committed")
    ]  # fmt: skip
    posted = [seconds for name, seconds in told.statements if name == "POST /work"]
    assert len(posted) >= 4  # two that wrote, one that read, and COMMIT
    assert all(seconds >= 0 for seconds in posted)
    assert [name for name, _ in told.statements].count("reading") >= 1


async def test_it_is_told_once_how_long_a_unit_waited_for_its_connection(
    backend: Backend, connect: Connect, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tables(backend)
    told = Told()
    database = connect(backend, observer=told)
    clock = count_up()
    monkeypatch.setattr("uow._watch.perf_counter", lambda: float(next(clock)))

    def both(session: Session) -> None:
        insert("nut")(session)
        count(session)

    async with database.new_unit(name="idle"):
        pass
    await within(database, mode, both, name="first")
    await within(database, mode, count, read_only=True, name="second")

    assert told.waits == [("first", 1.0), ("second", 1.0)]


def refused(session: Session) -> None:
    insert("nut")(session)
    insert("nut")(session)


def dry_run(session: Session) -> None:
    insert("nut")(session)
    current_unit().set_rollback_only()


def swallowed(session: Session) -> None:
    with suppress(IntegrityError):
        refused(session)


def crashes(session: Session) -> None:
    insert("nut")(session)
    raise LookupError("of the app")


@pytest.mark.parametrize(
    ("work", "status", "reason"),
    [
        pytest.param(insert("nut"), 201, None, id="kept"),
        pytest.param(insert("nut"), 409, "answer", id="the answer says it"),
        pytest.param(crashes, 201, "LookupError", id="the app fails"),
        pytest.param(refused, 201, "unique-violation", id="the database refuses"),
        pytest.param(swallowed, 201, "unique-violation", id="and the handler hides it"),
        pytest.param(dry_run, 201, "rollback-only", id="a dry run"),
    ],
)
async def test_it_is_told_why_a_unit_was_not_kept(
    backend: Backend, mode: Mode, connect: Connect, work: Callable[[Session], None], status: int, reason: str
) -> None:
    make_tables(backend)
    told = Told()
    with suppress(LookupError):
        await request(connect(backend, observer=told), mode, work, status=status)

    (end,) = told.ends
    assert (end.outcome, end.reason) == ("rolled_back" if reason else "committed", reason)
    assert told.opened_names == ["POST /work"]


async def test_a_request_that_was_cancelled_says_so(backend: Backend, connect: Connect) -> None:
    make_tables(backend)
    told = Told()
    waits = asyncio.Event()

    async def never(_: Request) -> Response:
        await current_session().run_sync(insert("nut"))
        waits.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(run_asgi(app_of(never, connect(backend, observer=told)), "POST", "/work"))
    await waits.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

    assert [end.reason for end in told.ends] == ["cancelled"]


async def test_it_is_told_how_long_which_part_of_a_unit_took(
    backend: Backend, mode: Mode, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tables(backend)
    told = Told()
    clock = count_up()
    monkeypatch.setattr("uow._telling.perf_counter", lambda: float(next(clock)))
    database = connect(backend, observer=told)

    async with database.new_unit(name="without a session"):
        pass
    await within(database, mode, insert("nut"), name="with one")

    without, one = told.ends
    assert (without.lasted, without.waited, without.settled_for) == (0.0, 0.0, 0.0)
    assert (one.lasted, one.settled_for, one.attempt) == (2.0, 1.0, 1)
    assert one.waited == told.waits[0][1]


class InContext(Told):
    def __init__(self) -> None:
        super().__init__()
        self.callers: set[str] = set()

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        self.callers.add(who.get())

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        assert unit.is_request
        assert unit.outcome == "committed"
        self.callers.add(who.get())


async def test_it_is_called_in_the_context_of_the_request(
    backend: Backend, mode: Mode, connect: Connect
) -> None:
    make_tables(backend)
    observer = InContext()
    app = app_of(endpoint(mode, insert("nut")), connect(backend, observer=observer))

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        who.set("the client")
        await app(scope, receive, send)

    assert (await run_asgi(outer, "POST", "/work")).status == 201
    assert observer.callers == {"the client"}


class Broken(Told):
    def connected(self, unit: UnitOfWork, waited: float) -> None:
        raise LookupError("in connected")

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        raise LookupError("in statement")

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        raise LookupError("in settled")

    def client_gone(self, unit: UnitOfWork) -> None:
        raise LookupError("in client_gone")


async def test_an_observer_that_fails_is_logged_and_changes_nothing(
    backend: Backend, mode: Mode, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    make_tables(backend)
    app = app_of(endpoint(mode, insert("nut")), connect(backend, observer=Broken()))

    with caplog.at_level(logging.ERROR, "uow"):
        recorder = await run_asgi(app, "POST", "/work", fail_send_at=1, spec_version="2.4")

    assert recorder.status == 201
    assert names(backend) == ["nut"]
    assert {"in connected", "in statement", "in settled", "in client_gone"} <= {
        str(record.exc_info[1]) for record in caplog.records if record.exc_info
    }


@pytest.mark.parametrize("fail_at", [0, 1], ids=["at the start", "at the body"])
async def test_a_client_that_is_gone_when_the_answer_comes_is_counted(
    backend: Backend, mode: Mode, connect: Connect, fail_at: int
) -> None:
    """L14: settled by its status; the callback runs all the same."""
    make_tables(backend)
    told = Told()
    called: list[str] = []

    def work(session: Session) -> None:
        insert("nut")(session)
        on_commit(lambda: called.append("callback"))

    app = app_of(endpoint(mode, work), connect(backend, observer=told))

    recorder = await run_asgi(app, "POST", "/work", fail_send_at=fail_at, spec_version="2.4")

    assert len(recorder.messages) == fail_at
    assert told.gone == ["POST /work"]
    assert told.outcomes == [("POST /work", "committed")]
    assert names(backend) == ["nut"]
    assert called == ["callback"]


@pytest.mark.parametrize(("status", "kept"), [(201, ["nut"]), (404, [])])
async def test_a_client_whose_leaving_the_handler_has_noticed_is_counted(
    backend: Backend, connect: Connect, status: int, kept: list[str]
) -> None:
    """L14."""
    make_tables(backend)
    told = Told()

    async def handle(request: Request) -> Response:
        await current_session().run_sync(insert("nut"))
        await request.body()
        call.disconnect()
        while not await request.is_disconnected():  # noqa: ASYNC110 - Starlette has no event for it
            await asyncio.sleep(0)
        return Response(status_code=status)

    call = AsgiCall(app_of(handle, connect(backend, observer=told)), "POST", "/work", body=b"x")
    await call.run()

    assert told.gone == ["POST /work"]
    assert names(backend) == kept


async def test_a_client_that_leaves_after_its_answer_is_not_counted(
    sqlite: SqliteBackend, connect: Connect
) -> None:
    """A server says "disconnect" to whoever asks after the last byte."""
    make_tables(sqlite)
    told = Told()
    app = app_of(endpoint("async", insert("nut")), connect(sqlite, observer=told))

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    call = AsgiCall(outer, "POST", "/work")
    await call.run()
    call.disconnect()

    assert told.gone == []


async def test_nothing_is_told_of_a_request_without_a_unit(sqlite: SqliteBackend, connect: Connect) -> None:
    """L20: no session, no statement, nothing to settle; its client may leave."""
    told = Told()

    async def handle(request: Request) -> Response:
        await request.body()
        call.disconnect()
        assert await request.is_disconnected()
        return Response(status_code=204)

    call = AsgiCall(app_of(handle, connect(sqlite, observer=told)), "POST", "/work")
    recorder = await call.run()

    assert recorder.status == 204
    assert (told.statements, told.outcomes, told.gone) == ([], [], [])
    assert not sqlite.path.exists()
