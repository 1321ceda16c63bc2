"""`settle_timeout`: how long COMMIT or ROLLBACK may take before its connection is thrown away (L8, L12)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from tests.faults.app import insert
from tests.faults.inprocess import Service, service
from tests.support.asgi import AsgiCall, run_asgi
from tests.support.backends import Backend, Mode
from tests.support.hold import hold_commits
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.units import Item, app_of, elsewhere, endpoint, in_thread
from uow import UnitOfWork, current_sync_session, errors

pytestmark = pytest.mark.usefixtures("tables")
SOON = 0.3


@contextmanager
def given_up_soon(running: Service) -> Iterator[None]:
    """Only here: any other COMMIT may take as long as it does on a busy machine."""
    database = running.database
    usual, database.settle_timeout = database.settle_timeout, SOON
    yield
    database.settle_timeout = usual


async def test_a_commit_without_an_answer_is_unknown_and_its_connection_is_thrown_away(
    backend: Backend, mode: Mode
) -> None:
    """L8: 500 `commit-outcome-unknown`, never the 201, and the pool is healthy afterwards."""
    async with service(backend, pool_size=1, max_overflow=0) as running:
        await running.works(mode, "first")
        with hold_commits(backend, "items"), given_up_soon(running):
            recorder = await running.post(f"/{mode}/items/unknown").run()

        assert recorder.status == 500
        assert recorder.json()["type"] == "/problems/commit-outcome-unknown"
        assert recorder.json()["outcome"] == "unknown"
        assert len(recorder.starts) == 1
        assert running.told.outcomes[f"POST /{mode}/items/unknown"] == "unknown"
        backend.wait_until_at_rest()
        await running.works(mode, "second")
        assert {row[0] for row in backend.query("SELECT name FROM items")} >= {"first", "second"}


async def test_a_unit_in_the_code_raises_outcome_unknown(backend: Backend) -> None:
    units: list[UnitOfWork] = []
    async with service(backend) as running:

        async def job() -> None:
            async with running.database.new_unit(name="job") as unit:
                units.append(unit)
                await unit.session.run_sync(insert, "unknown")

        with hold_commits(backend, "items"), given_up_soon(running):
            with pytest.raises(errors.OutcomeUnknown, match=r"job: 0\.3 seconds went by while COMMIT"):
                await job()
            assert units[0].outcome == "unknown"
        backend.wait_until_at_rest()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A server process of PostgreSQL that answers nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.backends("pg18", "pgsystem")
async def test_a_rollback_without_an_answer_changes_no_answer(backend: Backend, mode: Mode) -> None:
    """L12: a 404 stays one; the connection is thrown away."""
    with ExitStack() as standing:

        def work(session: Session) -> None:
            insert(session, "never")
            pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
            standing.enter_context(stopped(pid))

        async with service(backend, pool_size=1, max_overflow=0) as running:
            app = app_of(endpoint(mode, work, 404), running.database)
            with given_up_soon(running):
                call = elsewhere(run_asgi(app, "POST", "/work"))
                await asyncio.wait({call}, timeout=LIMIT / 2)
                standing.close()
                recorder = await call

            assert recorder.status == 404
            assert recorder.body == b"null"
            assert running.told.outcomes == {"POST /work": "rolled_back"}
            await running.works(mode)
            assert backend.query("SELECT name FROM items") == [("works",)]
            backend.wait_until_at_rest()


def stay_inside(session: Session, inside: threading.Event, going_on: threading.Event) -> None:
    """Be in the middle of a flush until told otherwise."""

    @event.listens_for(session, "before_flush")
    def wait(*_: Any) -> None:
        inside.set()
        going_on.wait(LIMIT)

    session.add(Item(name="late"))
    with suppress(Exception):
        session.flush()


@pytest.mark.parametrize("status", [201, 404])
async def test_a_call_that_is_still_inside_the_session_is_waited_for_then_cut_off(
    backend: Backend, status: int
) -> None:
    """L18, L22: nothing of a 201 is kept, and a 404 stays one."""
    going_on = threading.Event()
    inside = threading.Event()

    tasks: list[asyncio.Task[None]] = []

    async def handle(_: Request) -> Response:
        session = current_sync_session()
        await in_thread(insert, session, "never")
        tasks.append(asyncio.ensure_future(in_thread(stay_inside, session, inside, going_on)))
        await wait_until_async(inside.is_set, "a thread is inside the session")
        return Response(status_code=status)

    async with service(backend) as running:
        with given_up_soon(running):
            recorder = await AsgiCall(app_of(handle, running.database), "POST", "/work").run()
        going_on.set()
        await asyncio.wait(tasks, timeout=LIMIT)

        if status == 201:
            assert recorder.status == 500
            assert recorder.json()["type"] == "/problems/concurrent-use"
        else:
            assert recorder.status == 404
        assert running.told.outcomes == {"POST /work": "rolled_back"}
        await running.works("sync")
        assert backend.query("SELECT name FROM items") == [("works",)]
        backend.wait_until_at_rest()
