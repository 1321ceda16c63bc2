"""Units that were given up, held open in odd places, or made from engines that the user brought."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

import anyio
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tests.support.asgi import run_asgi
from tests.support.backends import Backend, Mode, SqliteBackend
from tests.support.wait import LIMIT
from tests.uow.conftest import Connect
from tests.uow.units import app_of, elsewhere, endpoint, insert, make_tables, names, request
from uow import Database, UnitOfWorkMiddleware, current_session, current_sync_session, errors, unit_options
from uow.engines.writer_pool import Turn


async def test_L18_a_connection_that_comes_after_its_unit_was_given_up_goes_back(
    backend: Backend, connect: Connect
) -> None:
    """A task of the handler's waits for the pool longer than the request waits for the task."""
    make_tables(backend)
    database = connect(backend, pool_size=1, max_overflow=0, settle_timeout=0.2)
    late: list[asyncio.Task[Any]] = []

    async def handle(_: Request) -> Response:
        session = current_session()
        late.append(asyncio.ensure_future(session.execute(text("INSERT INTO items (name) VALUES ('late')"))))
        await asyncio.sleep(0)
        return Response(status_code=201)

    async with database.new_unit() as holding:
        await holding.session.execute(text("INSERT INTO items (name) VALUES ('held')"))
        recorder = await elsewhere(run_asgi(app_of(handle, database), "POST", "/work"))
        assert recorder.status == 500
        assert recorder.json()["type"] == "/problems/concurrent-use"
        database.settle_timeout = LIMIT  # a COMMIT may take longer on a busy machine

    with pytest.raises(errors.UnitOfWorkClosed):
        await late[0]
    assert (await request(database, "async", insert("next"))).status == 201
    assert names(backend) == ["held", "next"]
    backend.wait_until_at_rest()


@pytest.mark.backends("pg18", "pgsystem")
@pytest.mark.parametrize("statement", ["SET TRANSACTION READ WRITE", "COMMIT"])
async def test_L25_a_snapshot_cannot_be_unlocked(
    backend: Backend, mode: Mode, database: Database, statement: str
) -> None:
    def work(session: Session) -> None:
        session.execute(text(statement))
        insert("never")(session)

    def unlocking(session: Session) -> None:
        with pytest.raises((errors.UnitOfWorkError, SQLAlchemyError)):
            work(session)

    handle = unit_options(snapshot=True)(endpoint(mode, unlocking))
    recorder = await run_asgi(app_of(handle, database), "GET", "/work")

    assert recorder.status == 500
    assert names(backend) == []
    backend.wait_until_at_rest()


@pytest.mark.backends("sqlite", "pg18")
async def test_a_reader_that_is_the_users_writer_keeps_what_it_acknowledges(backend: Backend) -> None:
    """from_engines() without a reader: nothing refuses the write of a GET, so it must not be lost."""
    make_tables(backend)
    engine = create_async_engine(backend.url("async"))
    if backend.dialect == "sqlite":
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    connected: list[object] = []
    event.listen(engine.sync_engine, "connect", lambda *_: connected.append(1))
    database = Database.from_engines(writer=engine)

    for name in ("first", "second"):
        assert (await request(database, "async", insert(name), method="GET")).status == 201

    assert names(backend) == ["first", "second"]
    assert len(connected) == 1
    await engine.dispose()


@pytest.mark.backends("sqlite", "pg18")
@pytest.mark.parametrize("reader", ["none", "of the other kind", "the writer itself"])
async def test_L1_a_get_that_may_write_is_committed_before_its_answer_begins(
    backend: Backend, mode: Mode, reader: str
) -> None:
    """A reader of one kind does not make the other kind's requests read-only."""
    make_tables(backend)
    async_engine = create_async_engine(backend.url("async"))
    sync_engine = create_engine(backend.url("sync"))
    ours: dict[str, Any] = {"writer": async_engine}
    others: dict[str, Any] = {"sync_reader": sync_engine}
    if mode == "sync":
        ours, others = {"sync_writer": sync_engine}, {"reader": async_engine}
    if reader == "of the other kind":
        ours |= others
    elif reader == "the writer itself":
        ours |= {name.replace("writer", "reader"): engine for name, engine in ours.items()}
    database = Database.from_engines(**ours)
    at_start: list[list[str]] = []

    async def look(message: Any) -> None:
        if message["type"] == "http.response.start":
            at_start.append(names(backend))

    async def looking(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_after_a_look(message: Message) -> None:
            await look(message)
            await send(message)

        await app_of(endpoint(mode, insert("kept")), database)(scope, receive, send_after_a_look)

    assert (await run_asgi(looking, "GET", "/work")).status == 201
    assert at_start == [["kept"]]
    sync_engine.dispose()
    await async_engine.dispose()


@pytest.mark.backends("sqlite", "pg18")
async def test_L12_who_gives_up_on_a_thread_may_answer_for_it(backend: Backend, database: Database) -> None:
    """A time-out around a `def` endpoint: its own answer goes out, and nothing was kept."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with anyio.CancelScope() as given_up:
            await anyio.to_thread.run_sync(lambda: insert("lost")(current_sync_session()))
            given_up.cancel()
            await Response(status_code=201)(scope, receive, send)
        if given_up.cancelled_caught:
            await Response(status_code=504)(scope, receive, send)

    recorder = await run_asgi(UnitOfWorkMiddleware(app, database=database), "POST", "/work")

    assert (recorder.status, recorder.complete, names(backend)) == (504, True, [])


async def test_a_block_that_a_generator_ends_in_another_context_runs_its_callbacks(
    backend: Backend, database: Database
) -> None:
    called: list[str] = []

    async def generator() -> AsyncIterator[None]:
        async with database.new_unit() as unit:
            await unit.session.run_sync(insert("kept"))
            unit.on_commit(lambda: called.append("committed"))
            yield

    held = generator()
    for _ in range(2):
        step = asyncio.get_running_loop().create_task(anext(held, None), context=copy_context())
        await step

    assert names(backend) == ["kept"]
    assert called == ["committed"]


def test_a_turn_that_comes_back_while_a_ticket_is_made_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A garbage collection may give a leaked connection back at any allocation."""
    turn = Turn()
    turn.take(1)

    class GivenBackMeanwhile(Future[None]):
        def __init__(self) -> None:
            super().__init__()
            turn.release()

    monkeypatch.setattr("uow.engines.writer_pool.Future", GivenBackMeanwhile)
    turn.take(1)
    turn.release()
    monkeypatch.undo()
    turn.take(0)


def test_a_stock_sqlite_engine_may_read_before_it_writes(sqlite: SqliteBackend) -> None:
    """It begins nothing before the first write, and that is no sign of a lost transaction."""
    make_tables(sqlite)
    engine = create_engine(sqlite.url("sync"))
    database = Database.from_engines(sync_writer=engine)

    with database.new_unit() as unit:
        unit.sync_session.execute(text("SELECT 1"))
        insert("kept")(unit.sync_session)

    assert names(sqlite) == ["kept"]
    engine.dispose()


@pytest.mark.backends("sqlite", "pg18")
async def test_L11_a_statement_after_a_rollback_on_the_raw_driver_is_no_success(
    backend: Backend, database: Database
) -> None:
    """It runs in the driver's autocommit: what came before it is gone, and it stays."""

    def work(session: Session) -> None:
        insert("gone")(session)
        driver: Any = session.connection().connection.driver_connection
        await_only(driver.execute("ROLLBACK"))
        insert("stays")(session)

    recorder = await request(database, "async", work)

    assert recorder.status == 500
    assert recorder.json()["type"] == "/problems/commit-outcome-unknown"
    assert names(backend) == ["stays"]
    backend.wait_until_at_rest()
