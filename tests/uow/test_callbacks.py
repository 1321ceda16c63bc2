"""What runs after COMMIT, and what a unit takes no more when it is settled (L10, L18)."""

from __future__ import annotations

import asyncio
import logging

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.support.asgi import AsgiCall, run_asgi
from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.conftest import Connect
from tests.uow.units import (
    app_of,
    endpoint,
    insert,
    names,
    request,
    within,
)
from uow import (
    Database,
    current_unit,
    errors,
    on_commit,
)

pytestmark = pytest.mark.backends("sqlite", "pg18")


async def test_callbacks_run_in_order_once_and_after_the_answer(
    backend: Backend, mode: Mode, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Coroutine functions are awaited; what one raises is logged and stops nobody."""
    calls: list[str] = []
    timeline: list[str] = calls

    async def awaited() -> None:
        calls.append("awaited")

    def fails() -> None:
        calls.append("fails")
        raise LookupError("in a callback")

    def work(session: Session) -> None:
        insert("nut")(session)
        on_commit(lambda: calls.append("first"))
        on_commit(fails)
        on_commit(awaited)
        on_commit(lambda: calls.append(str(names(backend))))

    with caplog.at_level(logging.ERROR, "uow"):
        recorder = await run_asgi(app_of(endpoint(mode, work), database), "POST", "/work", timeline=timeline)

    assert recorder.status == 201
    assert timeline == ["start 201", "body last", "first", "fails", "awaited", "['nut']"]
    assert "POST /work: the on_commit callback" in caplog.text
    assert "in a callback" in caplog.text


def test_a_plain_block_runs_callbacks_too_but_cannot_await_one(
    sqlite: SqliteBackend, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    async def never() -> None:
        calls.append("never")

    with Database(sqlite.database_url) as database, database.new_unit() as unit:
        unit.sync_session.execute(text("CREATE TABLE t (a)"))
        unit.on_commit(lambda: calls.append("first"))
        unit.on_commit(never)
        unit.on_commit(lambda: calls.append("last"))

    assert calls == ["first", "last"]
    assert "write `async with new_unit()`" in caplog.text


async def test_a_settled_unit_takes_no_more_callbacks_and_no_wishes(
    sqlite: SqliteBackend, connect: Connect
) -> None:
    """L18."""
    async with connect(sqlite).new_unit() as unit:
        pass

    for ask in (lambda: unit.on_commit(print), unit.set_rollback_only, lambda: unit.session):
        with pytest.raises(errors.UnitOfWorkClosed, match=r"new_unit\(\): "):
            ask()
    await unit.settle(commit=True)
    unit.settle_sync(commit=False)
    assert unit.outcome == "committed"


async def test_a_dry_run_answers_as_it_would_and_keeps_nothing(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """L10, in a request and in a block, with work and without."""
    called: list[str] = []

    def work(session: Session) -> str:
        insert("never")(session)
        current_unit().set_rollback_only()
        on_commit(lambda: called.append("never"))
        return "as if"

    recorder = await request(database, mode, work)
    assert await within(database, mode, work) == "as if"
    async with database.new_unit() as unit:
        unit.set_rollback_only()

    assert (recorder.status, recorder.json()) == (201, "as if")
    assert unit.outcome == "rolled_back"
    assert names(backend) == []
    assert called == []


async def test_a_callback_that_is_cancelled_costs_none_of_those_behind_it(
    backend: Backend, database: Database
) -> None:
    """L12: the work is kept, what waited for it runs, and then the request is cancelled."""
    called: list[str] = []
    waiting = asyncio.Event()

    async def waits() -> None:
        waiting.set()
        await asyncio.Event().wait()

    def work(session: Session) -> None:
        insert("kept")(session)
        on_commit(waits)
        on_commit(lambda: called.append("behind"))

    call = AsgiCall(app_of(endpoint("async", work), database), "POST", "/work")
    task = asyncio.ensure_future(call.run())
    await waiting.wait()
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert (call.recorder.status, called, names(backend)) == (201, ["behind"], ["kept"])
