"""L22: a savepoint block keeps out all but the tasks that were started in it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anyio
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode
from tests.support.wait import wait_until_async
from tests.uow.retries import FAILS
from tests.uow.test_turns import Gate
from tests.uow.units import Item, add, insert, names, request, waiting
from uow import Database, UnitOfWork
from uow.errors import ConcurrentUse, SettleRefused, UnitOfWorkDoomed

pytestmark = pytest.mark.backends("sqlite", "pg18")


async def test_L22_a_savepoint_keeps_out_all_but_the_tasks_that_were_started_in_it(
    backend: Backend, database: Database
) -> None:
    async with database.new_unit() as unit:
        session = unit.session
        begun, outside = asyncio.Event(), asyncio.Event()

        async def undone() -> None:
            async with session.begin_nested() as savepoint:
                await asyncio.gather(add("inside-1"), add("inside-2"))
                begun.set()
                await outside.wait()
                await add("inside-3")
                await savepoint.rollback()
            await add("after")

        block = asyncio.create_task(undone(), name="the block")
        await begun.wait()
        other = asyncio.create_task(add("outside"))
        await waiting(unit, 1)
        with pytest.raises(ConcurrentUse, match="task 'the block' has a savepoint open"):
            session.add(Item(name="refused"))
        outside.set()
        await asyncio.gather(block, other)

    assert sorted(names(backend)) == ["after", "outside"]


async def test_L22_a_task_that_outlives_the_savepoint_it_was_started_in_goes_on(
    backend: Backend, database: Database
) -> None:
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        await add("later")

    async with database.new_unit() as unit:
        async with unit.session.begin_nested():
            async with unit.session.begin_nested():
                task = asyncio.create_task(later())
                await add("inner")
            await add("outer")
        async with unit.session.begin_nested():
            over.set()
            await waiting(unit, 1)
            await add("other")
        await task

    assert names(backend) == ["inner", "outer", "other", "later"]


async def test_L22_a_savepoint_may_be_ended_by_a_context_that_has_not_opened_it(
    backend: Backend, database: Database
) -> None:
    async with database.new_unit() as unit:
        savepoint = await asyncio.create_task(begin(unit.session))
        await savepoint.rollback()
        await add("kept")

    assert names(backend) == ["kept"]


async def begin(session: AsyncSession) -> Any:
    savepoint = await session.begin_nested()
    await add("undone")
    return savepoint


async def test_L22_a_unit_inside_a_savepoint_of_another_has_turns_of_its_own(
    backend: Backend, database: Database
) -> None:
    async with (
        database.new_unit(read_only=True) as outer,
        outer.session.begin_nested(),
        database.new_unit() as inner,
        inner.session.begin_nested(),
    ):
        assert await outer.session.scalar(text("SELECT count(*) FROM items")) == 0
        await asyncio.gather(add("one"), add("two"))

    assert sorted(names(backend)) == ["one", "two"]


async def test_L22_a_savepoint_of_the_connection_is_refused(database: Database) -> None:
    """It would not keep others out, and what they did would be undone with it."""
    async with database.new_unit() as unit:
        connection = await unit.session.connection()
        with pytest.raises(SettleRefused, match=r"connection\.begin_nested"):
            _ = await connection.begin_nested()


@pytest.mark.parametrize("waits", [True, False])
async def test_L22_a_savepoint_that_its_task_has_forgotten_keeps_nobody_waiting(
    backend: Backend, database: Database, waits: bool
) -> None:
    forgotten = asyncio.Event()

    async def forget(session: AsyncSession) -> None:
        savepoint = await session.begin_nested()
        await forgotten.wait()
        assert savepoint.is_active

    async def beside() -> None:
        async with database.new_unit() as unit:
            task: asyncio.Task[None] = asyncio.create_task(forget(unit.session), name="the forgetful")
            assert unit.session is not None
            work: Any = unit._work
            await wait_until_async(lambda: work.top is not None, "the savepoint")
            late = asyncio.create_task(add("late"))
            if waits:
                await waiting(unit, 1)
            forgotten.set()
            await task
            with pytest.raises(ConcurrentUse, match="task 'the forgetful' has a savepoint open"):
                await (late if waits else add("later"))
            if not waits:
                with pytest.raises(ConcurrentUse):
                    await late

    with pytest.raises(UnitOfWorkDoomed, match="a savepoint was still open"):
        await beside()
    assert names(backend) == []


async def test_L22_a_context_that_lives_on_does_not_keep_the_units_of_its_savepoints(
    database: Database,
) -> None:
    savepoints = []
    for number in range(3):
        async with database.new_unit() as unit:
            assert unit._work is None
            async with unit.session.begin_nested():
                work: Any = unit._work
                savepoints.append(work.top)
                await add(f"item-{number}")
    assert [(each.turns, each.opener, each.around) for each in savepoints] == [(None, None, None)] * 3


async def test_L22_a_flush_that_fails_in_a_savepoint_lets_those_in_who_wait_for_its_end(
    backend: Backend, database: Database
) -> None:
    """SQLAlchemy then ends the block by a plain close, without a release or rollback of its own."""
    backend.execute("INSERT INTO items (name) VALUES ('nut')")
    begun = asyncio.Event()

    async def fails(session: AsyncSession, unit: UnitOfWork) -> None:
        with suppress(IntegrityError):
            async with session.begin_nested():
                begun.set()
                await waiting(unit, 1)
                session.add(Item(name="nut"))
                await session.flush()

    async def waits() -> None:
        await begun.wait()
        await add("bolt")

    async with database.new_unit() as unit:
        await asyncio.gather(fails(unit.session, unit), waits())

    assert names(backend) == ["nut", "bolt"]


async def test_L9_a_block_whose_rollback_was_cancelled_is_not_committed(
    backend: Backend, database: Database
) -> None:
    """anyio cancels again and again, also the wait for the turn in which the block is rolled back."""

    async def in_a_block(unit: UnitOfWork) -> None:
        async with unit.session.begin_nested():
            await add("undone")
            gate = Gate(unit.session)
            siblings.append(asyncio.create_task(gate.pass_through()))
            gates.append(gate)
            await gate.inside.wait()
            scope.cancel()
            await asyncio.sleep(0)

    async def request() -> None:
        async with database.new_unit() as unit:
            with scope:
                await in_a_block(unit)
            gates[0].opened.set()
            await siblings[0]

    gates: list[Gate] = []
    siblings: list[asyncio.Task[None]] = []
    scope = anyio.CancelScope()
    with pytest.raises(UnitOfWorkDoomed, match="a savepoint was still open"):
        await request()

    assert names(backend) == []


async def test_L22_a_forgotten_savepoint_around_another_keeps_nobody_waiting_either(
    backend: Backend, database: Database
) -> None:
    """Its task ends while a savepoint inside of it is open; a child in it waits, and somebody outside."""
    inner_begun, forgotten, inner_over = asyncio.Event(), asyncio.Event(), asyncio.Event()
    children: list[asyncio.Task[None]] = []

    async def inner(session: AsyncSession) -> None:
        async with session.begin_nested():
            inner_begun.set()
            await inner_over.wait()

    async def outer(session: AsyncSession) -> None:
        savepoint = await session.begin_nested()
        children.append(asyncio.create_task(inner(session)))
        await inner_begun.wait()
        children.append(asyncio.create_task(add("child")))
        await forgotten.wait()
        assert savepoint.is_active

    async def beside() -> None:
        async with database.new_unit() as unit:
            task = asyncio.create_task(outer(unit.session), name="the forgetful")
            await inner_begun.wait()
            outside = asyncio.create_task(add("outside"))
            await waiting(unit, 2)
            forgotten.set()
            await task
            inner_over.set()
            await asyncio.gather(*children)
            with pytest.raises(ConcurrentUse, match="task 'the forgetful' has a savepoint open"):
                await outside

    with pytest.raises(UnitOfWorkDoomed, match="a savepoint was still open"):
        await beside()
    assert names(backend) == []


async def test_L22_savepoints_that_are_left_open_in_each_other_are_all_over_with_the_unit(
    backend: Backend, database: Database
) -> None:
    async def forget() -> None:
        async with database.new_unit() as unit:
            first = await unit.session.begin_nested()
            second = await unit.session.begin_nested()
            await add("undone")
            assert first.is_active
            assert second.is_active

    with pytest.raises(UnitOfWorkDoomed, match="a savepoint was still open"):
        await forget()
    assert names(backend) == []
    backend.wait_until_at_rest()


async def test_L12_a_cancelled_statement_that_cannot_be_interrupted_is_cancelled_all_the_same(
    backend: Backend, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no")

    async def slow() -> None:
        async with database.new_unit() as unit:
            await add("undone")
            monkeypatch.setattr(database.adapter, "interrupt", refuse)
            asyncio.get_running_loop().call_soon(asyncio.Task.cancel, task)
            await unit.session.execute(text("SELECT name FROM items"))

    task = asyncio.create_task(slow())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "could not be interrupted" in caplog.text
    assert names(backend) == []


@pytest.mark.backends("pg18")
async def test_L6_a_conflict_that_a_savepoint_undid_and_the_handler_raises_again_is_503(
    backend: Backend, mode: Mode, database: Database
) -> None:
    """It dooms nothing, and it is still what the request has failed of: its client may come again."""

    def work(session: Session) -> None:
        insert("before")(session)
        try:
            with session.begin_nested():
                session.execute(text(FAILS))
        except DBAPIError as error:
            insert("after")(session)  # the unit goes on, and so it is not the database that ends it
            raise error

    recorder = await request(database, mode, work)

    assert (recorder.status, recorder.headers["retry-after"]) == (503, "1")
    assert recorder.json()["type"] == "/problems/serialization-failure"
    assert recorder.json()["outcome"] == "rolled_back"
    assert (len(recorder.starts), names(backend)) == (1, [])
    backend.wait_until_at_rest()
