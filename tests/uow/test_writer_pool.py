"""The writer's queue on SQLite: first come, first served, for threads and tasks alike."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from tests.support.backends import Mode, SqliteBackend
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.units import count, elsewhere, in_thread, insert, make_tables, names, within
from uow import Database
from uow.engines.sqlite import SQLite
from uow.engines.writer_pool import Turn, WriterPool, writer_pool


def waiting(turn: Turn) -> int:
    return len(turn._waiting)


async def test_threads_and_tasks_get_the_turn_in_the_order_in_which_they_asked() -> None:
    turn = Turn()
    turn.take(LIMIT)
    order: list[int] = []

    async def task(number: int) -> None:
        await turn.take_async(LIMIT)
        order.append(number)
        turn.release()

    def thread(number: int) -> None:
        turn.take(LIMIT)
        order.append(number)
        turn.release()

    asking = []
    for number in range(12):
        one = task(number) if number % 2 else in_thread(thread, number)
        asking.append(asyncio.ensure_future(one))
        await wait_until_async(partial(stands, turn, number + 1), "it stands in the queue")
    turn.release()
    await asyncio.gather(*asking)

    assert order == list(range(12))


async def test_who_waits_too_long_gives_up_and_costs_nobody_a_turn() -> None:
    turn = Turn()
    turn.take(LIMIT)

    with pytest.raises(FutureTimeout):
        await in_thread(turn.take, 0.01)
    with pytest.raises(asyncio.TimeoutError):
        await turn.take_async(0.01)

    turn.release()
    await turn.take_async(LIMIT)
    assert waiting(turn) == 0


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    turn = Turn()
    turn.take(LIMIT)
    first = asyncio.ensure_future(turn.take_async(LIMIT))
    second = asyncio.ensure_future(turn.take_async(LIMIT))
    await wait_until_async(lambda: waiting(turn) == 2, "both wait")

    first.cancel()
    await asyncio.wait({first})
    turn.release()
    await second

    assert first.cancelled()


async def test_a_waiter_that_is_cancelled_when_its_turn_comes_hands_it_on() -> None:
    turn = Turn()
    turn.take(LIMIT)
    first = asyncio.ensure_future(turn.take_async(LIMIT))
    second = asyncio.ensure_future(turn.take_async(LIMIT))
    await wait_until_async(lambda: waiting(turn) == 2, "both wait")

    turn.release()  # hands over to the first, which has not run yet
    first.cancel()
    await second

    with pytest.raises(asyncio.CancelledError):
        await first


async def test_no_turn_is_lost_in_a_race_of_threads_tasks_and_cancellations() -> None:
    turn, random = Turn(), Random(7)
    alone = threading.Lock()
    done = 0

    def enter_and_leave() -> None:
        nonlocal done
        assert alone.acquire(blocking=False)
        done += 1
        alone.release()

    async def task() -> None:
        await turn.take_async(LIMIT)
        try:
            enter_and_leave()
            await asyncio.sleep(0)
        finally:
            turn.release()

    def thread() -> None:
        turn.take(LIMIT)
        try:
            enter_and_leave()
        finally:
            turn.release()

    with ThreadPoolExecutor(4) as pool:
        threads = [pool.submit(thread) for _ in range(300)]
        tasks = [asyncio.ensure_future(task()) for _ in range(1_000)]
        for each in random.sample(tasks, 300):
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)
            each.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT)
        for future in threads:
            await in_thread(future.result, LIMIT)

    assert done >= 1_000
    assert waiting(turn) == 0
    turn.take(0)  # it is free


async def test_a_busy_writer_is_sqlalchemys_timeout(
    sqlite: SqliteBackend, mode: Mode, connect: Connect
) -> None:
    """L26: nothing was begun, and the writer works again."""
    make_tables(sqlite)
    database = connect(sqlite, pool_timeout=0.05)
    held, asked = threading.Event(), threading.Event()

    def hold(session: Session) -> None:
        insert("holder")(session)
        held.set()
        assert asked.wait(LIMIT)

    holder = asyncio.ensure_future(within(database, "sync", hold))
    assert await in_thread(held.wait, LIMIT)
    with pytest.raises(PoolTimeout, match=r"the writer was busy for 0\.05 seconds"):
        await within(database, mode, insert("waiter"))
    asked.set()
    await holder

    await within(database, mode, insert("next"))
    assert names(sqlite) == ["holder", "next"]


async def test_async_and_sync_units_wait_in_one_queue(sqlite: SqliteBackend, connect: Connect) -> None:
    """Fair between `def` and `async def` endpoints: nobody overtakes."""
    make_tables(sqlite)
    database = connect(sqlite)
    turn = turn_of(database)
    asking = []

    async with database.new_unit() as unit:
        await unit.session.run_sync(count)
        for number in range(8):
            one = within(database, "async" if number % 2 else "sync", insert(str(number)))
            asking.append(elsewhere(one))
            await wait_until_async(partial(stands, turn, number + 1), "it stands in the queue")
    await asyncio.gather(*asking)

    assert names(sqlite) == [str(number) for number in range(8)]


def turn_of(database: Database) -> Turn:
    assert isinstance(database.adapter, SQLite)
    return database.adapter._turn


def stands(turn: Turn, number: int) -> bool:
    return waiting(turn) == number


def engine_of(sqlite: SqliteBackend, mode: Mode) -> tuple[Engine, WriterPool]:
    pool = writer_pool(Turn(), asynchronous=mode == "async")
    made: Engine | AsyncEngine
    if mode == "async":
        made = create_async_engine(sqlite.url(mode), poolclass=pool)
        engine = made.sync_engine
    else:
        engine = create_engine(sqlite.url(mode), poolclass=pool, connect_args={"check_same_thread": False})
    assert isinstance(engine.pool, WriterPool)
    return engine, engine.pool


def test_the_pool_has_one_connection_and_says_whether_it_is_in_use(sqlite: SqliteBackend) -> None:
    engine, pool = engine_of(sqlite, "sync")
    assert pool.status() == "WriterPool: the connection is free"

    with engine.connect() as first:
        driver = first.connection.driver_connection
        assert pool.status() == "WriterPool: the connection is in use"
    with engine.connect() as second:
        assert second.connection.driver_connection is driver

    engine.dispose()


def test_a_pool_that_is_disposed_of_while_its_connection_is_out_closes_it_when_it_comes_back(
    sqlite: SqliteBackend,
) -> None:
    engine, pool = engine_of(sqlite, "sync")
    connection = engine.connect()
    driver: Any = connection.connection.driver_connection

    engine.dispose()
    assert driver.execute("SELECT 1").fetchone() == (1,)
    connection.close()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        driver.execute("SELECT 1")
    assert engine.pool is not pool  # dispose() has made another
    with engine.connect() as fresh:
        assert fresh.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_a_connection_that_cannot_be_made_costs_nobody_the_turn(sqlite: SqliteBackend) -> None:
    engine, _ = engine_of(sqlite, "sync")

    @event.listens_for(engine, "do_connect", once=True)
    def refuse(*_: Any) -> None:
        raise sqlite3.OperationalError("not now")

    with pytest.raises(OperationalError, match="not now"):
        engine.connect()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


async def test_a_task_that_is_cancelled_in_the_queue_leaves_the_writer_to_the_others(
    sqlite: SqliteBackend, connect: Connect
) -> None:
    make_tables(sqlite)
    database = connect(sqlite)
    turn = turn_of(database)
    async with database.new_unit() as unit:
        await unit.session.run_sync(insert("first"))
        leaving = elsewhere(within(database, "async", insert("never")))
        staying = elsewhere(within(database, "async", insert("second")))
        await wait_until_async(lambda: waiting(turn) == 2, "both wait")
        leaving.cancel()
        await asyncio.wait({leaving})
    await staying

    assert leaving.cancelled()
    assert names(sqlite) == ["first", "second"]
