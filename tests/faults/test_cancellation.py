"""A request that is cancelled, by anyone: before COMMIT it is rolled back, during COMMIT it is committed."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing

import pytest
from starlette.requests import Request
from starlette.responses import Response

from tests.faults.app import insert
from tests.faults.inprocess import WAYS, Scoped, let_others_run, service, start
from tests.support.asgi import AsgiCall
from tests.support.backends import Backend, Mode, PostgresBackend, SqliteBackend
from tests.support.hold import hold_commits
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.units import app_of
from uow import current_session, current_sync_session, on_commit

pytestmark = pytest.mark.usefixtures("tables")


@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_during_commit_it_is_committed(backend: Backend, mode: Mode, way: str) -> None:
    """L13."""
    async with service(backend) as running:
        with hold_commits(backend, "items") as hold:
            task, call, cancel = start(running, way, mode, "kept")
            await hold.wait_until_waiting_async()
            cancel()
            await let_others_run()

            assert hold.waiting() == 1
            assert not task.done()
            assert call.recorder.messages == []
            hold.release()
            await asyncio.wait({task}, timeout=LIMIT)

        assert task.cancelled() is (way == "task.cancel")
        assert backend.query("SELECT name FROM items") == [("kept",)]
        assert list(running.told.outcomes.values()) == ["committed"]
        await running.works(mode)
        backend.wait_until_at_rest()


async def test_cancelled_again_and_again_during_commit_it_is_committed_all_the_same(
    backend: Backend, mode: Mode
) -> None:
    """L13, by both kinds of cancellation at once."""
    async with service(backend) as running:
        scoped = Scoped(running.app)
        with hold_commits(backend, "items") as hold:
            task = asyncio.ensure_future(running.post(f"/{mode}/items/kept", app=scoped).run())
            await hold.wait_until_waiting_async()
            scoped.scope.cancel()
            for _ in range(5):
                task.cancel()
                await let_others_run()
            hold.release()
            await asyncio.wait({task}, timeout=LIMIT)

        assert task.cancelled()
        assert backend.query("SELECT name FROM items") == [("kept",)]


async def test_what_waits_for_the_commit_runs_although_the_request_was_cancelled(
    backend: Backend, mode: Mode
) -> None:
    """A callback runs once the unit is committed, also when nobody is there to be answered."""
    called: list[str] = []

    async def handle_async(_: Request) -> Response:
        await current_session().run_sync(insert, "kept")
        on_commit(lambda: called.append("callback"))
        return Response(status_code=201)

    def handle_sync(_: Request) -> Response:
        insert(current_sync_session(), "kept")
        on_commit(lambda: called.append("callback"))
        return Response(status_code=201)

    async with service(backend) as running:
        app = app_of(handle_async if mode == "async" else handle_sync, running.database)
        with hold_commits(backend, "items") as hold:
            task = asyncio.ensure_future(AsgiCall(app, "POST", "/work").run())
            await hold.wait_until_waiting_async()
            task.cancel()
            await let_others_run()
            assert called == []
            hold.release()
            await asyncio.wait({task}, timeout=LIMIT)

    assert called == ["callback"]


@pytest.mark.parametrize("way", ["task.cancel", "anyio scope"])
async def test_cancelled_before_commit_it_is_rolled_back(backend: Backend, way: str) -> None:
    """L12: while the handler waits for something else."""
    async with service(backend) as running:
        scoped = Scoped(running.app)
        task = asyncio.ensure_future(running.post("/async/stand/never", app=scoped).run())
        await wait_until_async(lambda: bool(running.standing), "the handler has written")
        if way == "task.cancel":
            task.cancel()
        else:
            scoped.scope.cancel()
        await asyncio.wait({task}, timeout=LIMIT)

        assert task.done()
        assert task.cancelled() or task.result().messages == []
        assert list(running.told.outcomes.values()) == ["rolled_back"]
        await running.works("async")
        assert backend.query("SELECT name FROM items") == [("works",)]
        backend.wait_until_at_rest()


async def test_a_def_endpoint_that_is_cancelled_before_commit_is_rolled_back(backend: Backend) -> None:
    """L12: its thread cannot be stopped, but what it did is not kept."""
    written, going_on = threading.Event(), threading.Event()

    def handle(_: Request) -> Response:
        insert(current_sync_session(), "never")
        written.set()
        assert going_on.wait(LIMIT)
        return Response(status_code=201)

    async with service(backend) as running:
        task = asyncio.ensure_future(AsgiCall(app_of(handle, running.database), "POST", "/work").run())
        await wait_until_async(written.is_set, "the thread has written")
        task.cancel()
        await let_others_run()
        going_on.set()
        await asyncio.wait({task}, timeout=LIMIT)

        assert task.cancelled()
        assert running.told.outcomes == {"POST /work": "rolled_back"}
        await running.works("sync")
        assert backend.query("SELECT name FROM items") == [("works",)]


@pytest.mark.backends("pg18", "pgsystem")
async def test_cancelled_while_a_statement_runs_it_is_rolled_back(backend: Backend) -> None:
    """L12: the statement waits for a lock."""
    assert isinstance(backend, PostgresBackend)
    async with service(backend) as running:
        with backend.server.connect(backend.dbname) as other, other.transaction():
            other.execute("UPDATE counters SET n = 5")
            task = asyncio.ensure_future(running.post("/async/increment").run())
            waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = ?"
            await wait_until_async(
                lambda: bool(backend.query(waits, (backend.dbname,))), "it waits for the lock"
            )
            task.cancel()
            await asyncio.wait({task}, timeout=LIMIT)

        assert task.cancelled()
        assert backend.query("SELECT n FROM counters") == [(5,)]
        await running.works("async")
        backend.wait_until_at_rest()


@pytest.mark.backends("sqlite")
async def test_cancelled_while_begin_waits_for_another_process_it_leaves_no_lock_behind(
    backend: SqliteBackend,
) -> None:
    """L12: the statement runs on in the driver's thread, so its connection is thrown away."""
    async with service(backend) as running:
        await running.works("async", "first")
        with closing(backend.connect()) as other:
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.ensure_future(running.post("/async/items/never").run())
            await asyncio.sleep(0.2)  # BEGIN is on its way; nothing tells of a busy wait inside SQLite
            task.cancel()
            await let_others_run()
            other.execute("ROLLBACK")
            await asyncio.wait({task}, timeout=LIMIT)

        assert task.cancelled()
        await running.works("async", "second")
        assert backend.query("SELECT name FROM items ORDER BY id") == [("first",), ("second",)]
        backend.wait_until_at_rest()


async def test_the_transaction_of_a_stream_is_settled_before_its_first_byte(
    backend: Backend, mode: Mode
) -> None:
    """L16: the row is there when the start arrives, and the stream goes on without a unit."""
    async with service(backend) as running:
        with hold_commits(backend, "items") as hold:
            call = running.post(f"/{mode}/stream/kept")
            task = asyncio.ensure_future(call.run())
            await hold.wait_until_waiting_async()
            await let_others_run()
            assert call.recorder.messages == []
            hold.release()
            recorder = await task

    assert (recorder.status, recorder.body) == (201, b"ab")
    assert backend.query("SELECT name FROM items") == [("kept",)]
