"""L22: calls of one session take turns; who cannot wait is refused; a savepoint keeps others out."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import anyio.to_thread
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.util import await_only

from tests.support.backends import Backend
from tests.uow.units import Item, add, names, waiting
from uow import Database, current_session
from uow._turns import Turns
from uow.errors import ConcurrentUse, UnitOfWorkClosed

pytestmark = pytest.mark.backends("sqlite", "pg18")


class Gate:
    """Holds a statement of a session inside of it, until it is opened."""

    def __init__(self, session: AsyncSession) -> None:
        self.inside = asyncio.Event()
        self.opened = asyncio.Event()
        self._session = session

    async def pass_through(self) -> None:
        def work(session: Any) -> None:
            def wait(*_: object) -> None:
                self.inside.set()
                await_only(self.opened.wait())

            event.listen(session, "before_flush", wait, once=True)
            session.add(Item(name="gate"))
            session.flush()

        await self._session.run_sync(work)


async def test_L22_calls_come_in_one_at_a_time_in_the_order_of_asking(
    backend: Backend, database: Database
) -> None:
    async with database.new_unit() as unit:
        gate = Gate(unit.session)
        first = asyncio.create_task(gate.pass_through())
        await gate.inside.wait()
        others = [asyncio.create_task(add(f"item-{number}")) for number in range(20)]
        await waiting(unit, 20)
        gate.opened.set()
        await asyncio.gather(first, *others)

    assert names(backend) == ["gate", *(f"item-{number}" for number in range(20))]


@pytest.mark.parametrize("call", ["add", "add_all", "expunge", "expunge_all", "expire", "expire_all"])
async def test_L22_a_call_that_cannot_wait_is_refused_and_both_tasks_are_named(
    database: Database, call: str
) -> None:
    item = Item(name="nut")
    async with database.new_unit() as unit:
        unit.session.add(item)
        await unit.session.flush()
        gate = Gate(unit.session)
        first = asyncio.create_task(gate.pass_through(), name="the first")
        await gate.inside.wait()

        async def at_once() -> None:
            arguments = {"add_all": [[item]], "expire_all": [], "expunge_all": []}.get(call, [item])
            getattr(current_session(), call)(*arguments)

        with pytest.raises(ConcurrentUse, match=r"task 'the second' .* task 'the first' is inside"):
            await asyncio.create_task(at_once(), name="the second")
        gate.opened.set()
        await first


async def test_L22_a_cancelled_waiter_leaves_the_queue(backend: Backend, database: Database) -> None:
    async with database.new_unit() as unit:
        gate = Gate(unit.session)
        first = asyncio.create_task(gate.pass_through())
        await gate.inside.wait()
        second, third = asyncio.create_task(add("second")), asyncio.create_task(add("third"))
        await waiting(unit, 2)
        second.cancel()
        gate.opened.set()
        await asyncio.gather(first, third)
        assert second.cancelled()

    assert names(backend) == ["gate", "third"]


async def test_L22_a_waiter_that_is_cancelled_when_its_turn_has_come_passes_it_on(
    backend: Backend, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.new_unit() as unit:
        gate = Gate(unit.session)
        first = asyncio.create_task(gate.pass_through())
        await gate.inside.wait()
        second, third = asyncio.create_task(add("second")), asyncio.create_task(add("third"))
        await waiting(unit, 2)
        hand_over = Turns._hand_over

        def and_cancel(turns: Turns) -> None:
            hand_over(turns)
            second.cancel()

        monkeypatch.setattr(Turns, "_hand_over", and_cancel)
        gate.opened.set()
        await asyncio.gather(first, third)
        assert second.cancelled()

    assert names(backend) == ["gate", "third"]


async def test_L18_who_waits_when_the_unit_is_settled_is_refused(
    backend: Backend, database: Database
) -> None:
    async with database.new_unit() as unit:
        gate = Gate(unit.session)
        first = asyncio.create_task(gate.pass_through())
        await gate.inside.wait()
        second, third = asyncio.create_task(add("second")), asyncio.create_task(add("third"))
        await waiting(unit, 2)
        third.cancel()
        settling = asyncio.create_task(unit.settle(commit=True))
        with pytest.raises(UnitOfWorkClosed):
            await second
        gate.opened.set()
        await asyncio.gather(first, settling)

    assert names(backend) == ["gate"]


async def test_L22_a_connection_of_the_session_takes_turns_too(backend: Backend, database: Database) -> None:
    async def on_connection(name: str) -> None:
        connection = await current_session().connection()
        await connection.execute(text("INSERT INTO items (name) VALUES (:name)"), {"name": name})
        await connection.exec_driver_sql(f"INSERT INTO items (name) VALUES ('{name}-driver')")

    async with database.new_unit():
        await asyncio.gather(*(on_connection(f"item-{number}") for number in range(5)), add("other"))

    assert len(names(backend)) == 11


@pytest.mark.parametrize("read_only", [True, False])
async def test_L22_two_streams_take_turns(backend: Backend, database: Database, read_only: bool) -> None:
    backend.execute("INSERT INTO items (name) VALUES ('a'), ('b'), ('c')")

    async def stream() -> list[str]:
        result = await current_session().stream(text("SELECT name FROM items ORDER BY id"))
        return [row.name async for row in result]

    async def fetch() -> Any:
        result = await current_session().stream_scalars(text("SELECT name FROM items ORDER BY id"))
        return [await result.first(), *(await asyncio.gather(stream(), stream()))]

    async with database.new_unit(read_only=read_only):
        assert await fetch() == ["a", ["a", "b", "c"], ["a", "b", "c"]]


async def test_L22_a_second_thread_is_refused_while_the_first_is_inside(database: Database) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def first(session: Any) -> None:
        def wait(*_: object) -> None:
            inside.set()
            go_on.wait(30)

        event.listen(session, "before_flush", wait, once=True)
        session.add(Item(name="first"))
        session.flush()

    def both() -> None:
        with database.new_unit() as unit:
            session = unit.sync_session
            thread = threading.Thread(target=first, args=(session,), name="the first")
            thread.start()
            assert inside.wait(30)
            try:
                with pytest.raises(ConcurrentUse, match=r"thread .* while thread 'the first' is inside"):
                    session.execute(text("SELECT 1"))
            finally:
                go_on.set()
                thread.join()
            assert session.execute(text("SELECT count(*) FROM items")).scalar_one() == 1

    await anyio.to_thread.run_sync(both)


async def test_L18_a_result_of_a_sync_session_ends_with_its_unit(
    backend: Backend, database: Database
) -> None:
    backend.execute("INSERT INTO items (name) VALUES ('a'), ('b'), ('c')")

    def fetch() -> None:
        with database.new_unit(read_only=True) as unit:
            result = unit.sync_session.execute(text("SELECT name FROM items ORDER BY id"))
            rows = iter(result)
            assert next(rows).name == "a"
            assert result.fetchone() == ("b",)
        with pytest.raises(UnitOfWorkClosed):
            next(rows)
        with pytest.raises(UnitOfWorkClosed):
            result.fetchone()

    await anyio.to_thread.run_sync(fetch)


async def test_L22_an_async_session_in_a_thread_is_refused_like_any_other(database: Database) -> None:
    async with database.new_unit() as unit:
        gate = Gate(unit.session)
        first = asyncio.create_task(gate.pass_through(), name="the first")
        await gate.inside.wait()
        with pytest.raises(ConcurrentUse, match=r"thread .* task 'the first' is inside"):
            await anyio.to_thread.run_sync(unit.session.add, Item(name="from a thread"))
        gate.opened.set()
        await first


async def test_L22_what_is_changed_while_another_task_writes_it_is_not_forgotten(
    backend: Backend, database: Database
) -> None:
    """SQLAlchemy would take the change for written: a lost update with a 201."""
    flushing = asyncio.Event()

    async def writes(session: AsyncSession, item: Item) -> None:
        item.stock = 1
        flushing.set()
        await session.flush()

    async def changes(item: Item) -> None:
        await flushing.wait()
        item.name = "changed"

    async def both() -> None:
        async with database.new_unit() as unit:
            item = Item(name="nut")
            unit.session.add(item)
            await unit.session.flush()
            await asyncio.gather(writes(unit.session, item), changes(item))

    with pytest.raises(ConcurrentUse, match="a Item was changed by one task while a flush"):
        await both()

    assert names(backend) == []


async def test_L22_hooks_and_defaults_may_change_what_is_being_flushed(
    backend: Backend, database: Database
) -> None:
    def rename(mapper: object, connection: object, item: Item) -> None:
        item.name = f"{item.name} hook"

    event.listen(Item, "before_insert", rename)
    event.listen(Item, "before_update", rename)
    try:
        async with database.new_unit() as unit:
            items = [Item(name=str(number)) for number in range(3)]
            unit.session.add_all(items)
            await unit.session.flush()
            for item in items:
                item.stock += 1
    finally:
        event.remove(Item, "before_insert", rename)
        event.remove(Item, "before_update", rename)

    assert names(backend) == [f"{number} hook hook" for number in range(3)]


async def test_L18_a_result_of_the_connection_ends_with_the_unit_too(
    backend: Backend, database: Database
) -> None:
    backend.execute("INSERT INTO items (name) VALUES ('a'), ('b'), ('c')")
    async with database.new_unit() as unit:
        connection = await unit.session.connection()
        buffered = await connection.execute(text("SELECT name FROM items"))
        stream = await connection.stream(text("SELECT name FROM items"))
        assert await stream.fetchone() is not None
    with pytest.raises(UnitOfWorkClosed):
        buffered.fetchone()
    with pytest.raises(UnitOfWorkClosed):
        await stream.fetchone()


async def test_L15_a_call_that_has_just_got_its_turn_is_waited_for(
    backend: Backend, database: Database
) -> None:
    """It has the turn and does not run yet: whoever settles must neither wait in its queue nor go first."""
    async with database.new_unit() as unit:
        gate = Gate(unit.session)
        first = asyncio.create_task(gate.pass_through())
        await gate.inside.wait()
        second = asyncio.create_task(add("second"))
        await waiting(unit, 1)
        work: Any = unit._work
        granted = work._queue[0].future
        settled: list[asyncio.Task[None]] = []
        granted.add_done_callback(lambda _: settled.append(asyncio.create_task(unit.settle(commit=True))))
        gate.opened.set()
        with suppress(UnitOfWorkClosed):
            await second
        await first
        await asyncio.gather(*settled)

    assert unit.outcome == "committed"
    backend.wait_until_at_rest()


async def test_L22_a_thread_may_use_an_async_session_when_nobody_is_inside(
    backend: Backend, database: Database
) -> None:
    async with database.new_unit() as unit:
        await anyio.to_thread.run_sync(unit.session.add, Item(name="nut"))
    assert names(backend) == ["nut"]


async def test_L18_whoever_was_cancelled_in_the_queue_needs_no_refusal(database: Database) -> None:
    async with database.new_unit() as unit:
        gate = Gate(unit.session)
        first = asyncio.create_task(gate.pass_through())
        await gate.inside.wait()
        second = asyncio.create_task(add("second"))
        await waiting(unit, 1)
        work: Any = unit._work
        second.cancel()
        assert work.stop_entering() is not None
        gate.opened.set()
        await first
    assert second.cancelled()


async def test_L18_a_connection_that_outlives_its_unit_is_closed(database: Database) -> None:
    async with database.new_unit() as unit:
        connection = await unit.session.connection()
        await connection.execute(text("SELECT 1"))
    with pytest.raises(ResourceClosedError):
        await connection.execute(text("SELECT 1"))
