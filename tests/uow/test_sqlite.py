"""SQLite: one writer that begins IMMEDIATE, readers that cannot write, snapshots and savepoints."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tests.support.backends import Mode, SqliteBackend
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.units import Item, count, elsewhere, insert, make_tables, names, request, run, within
from uow import Database, errors
from uow.engines.sqlite import _Connection


@pytest.fixture
def database(sqlite: SqliteBackend, connect: Connect) -> Database:
    make_tables(sqlite)
    return connect(sqlite)


def pragmas(session: Session) -> dict[str, Any]:
    asked = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "temp_store")
    return {name: session.execute(text(f"PRAGMA {name}")).scalar_one() for name in asked}


async def test_each_connection_is_set_up_for_durability_and_rules(database: Database, mode: Mode) -> None:
    """`synchronous` 2 is FULL: what was acknowledged survives a power failure."""
    durable = {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000, "temp_store": 2
    }  # fmt: skip

    assert await within(database, mode, pragmas) == durable
    assert await within(database, mode, pragmas, read_only=True) == durable


async def test_the_wait_for_other_processes_is_bounded_by_pool_timeout(
    sqlite: SqliteBackend, mode: Mode, connect: Connect
) -> None:
    for options, expected in (
        ({"pool_timeout": 2}, 2_000),
        ({"pool_timeout": 2, "connect_args": {"timeout": 3}}, 3_000),
    ):
        database = connect(sqlite, **options)
        assert (await within(database, mode, pragmas))["busy_timeout"] == expected


async def test_a_writer_takes_the_lock_before_it_reads(
    sqlite: SqliteBackend, database: Database, mode: Mode
) -> None:
    """BEGIN IMMEDIATE: whoever reads to write later is alone."""

    def read(session: Session) -> bool:
        count(session)
        return sqlite.write_lock_free()

    assert await within(database, mode, read) is False
    assert await within(database, mode, read, read_only=True) is True
    sqlite.wait_until_at_rest()


async def test_a_reader_cannot_write_whatever_is_sent(
    sqlite: SqliteBackend, database: Database, mode: Mode
) -> None:
    """L25: by raw SQL, by the ORM, and by an `add()` that nobody flushed."""

    def forgotten(session: Session) -> None:
        session.add(Item(name="forgotten"))

    for work in (insert("raw"), forgotten, run("CREATE TABLE t (a)"), run("DROP TABLE items")):
        with pytest.raises(errors.ReadOnlyUnitOfWork, match=r"@unit_options\(read_only=False\)"):
            await within(database, mode, work, read_only=True)

    assert names(sqlite) == []
    assert await within(database, mode, count, read_only=True) == 0


async def test_a_snapshot_sees_one_moment_and_holds_nothing_afterwards(
    sqlite: SqliteBackend, database: Database, mode: Mode
) -> None:
    def twice(session: Session) -> tuple[int, int]:
        before = count(session)
        sqlite.execute("INSERT INTO items (name) VALUES ('meanwhile')")
        return before, count(session)

    assert await within(database, mode, twice, read_only=True, snapshot=True) == (0, 0)
    sqlite.wait_until_at_rest()
    assert await within(database, mode, count, read_only=True) == 1


@pytest.mark.parametrize("snapshot", [False, True])
async def test_a_savepoint_and_a_stream_work_in_a_read_only_unit(
    sqlite: SqliteBackend, database: Database, mode: Mode, snapshot: bool
) -> None:
    sqlite.execute("INSERT INTO items (name) VALUES ('nut'); INSERT INTO items (name) VALUES ('bolt')")

    def work(session: Session) -> list[str]:
        count(session)
        with session.begin_nested():
            count(session)
        rows = session.execute(text("SELECT name FROM items ORDER BY id").execution_options(yield_per=1))
        return [name for (name,) in rows]

    assert await within(database, mode, work, read_only=True, snapshot=snapshot) == ["nut", "bolt"]
    sqlite.wait_until_at_rest()
    assert (await request(database, mode, insert("next"))).status == 201


async def test_a_begin_that_is_refused_is_sqlalchemys_error_and_dooms_the_unit(
    sqlite: SqliteBackend, mode: Mode, connect: Connect
) -> None:
    """The statement is sent past SQLAlchemy; what it raises looks like any other database error."""
    make_tables(sqlite)
    database = connect(sqlite, pool_timeout=0)

    def swallow(session: Session) -> None:
        with pytest.raises(OperationalError, match=r"database is locked\n\[SQL: BEGIN IMMEDIATE\]"):
            insert("never")(session)

    await within(database, mode, count)
    with closing(sqlite.connect()) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.UnitOfWorkDoomed):
            await within(database, mode, swallow)

    await within(database, mode, insert("next"))
    assert names(sqlite) == ["next"]


async def test_a_begin_that_is_cancelled_throws_its_connection_away(
    sqlite: SqliteBackend, database: Database
) -> None:
    """Its lock may come later, in the driver's thread: a pooled connection would keep it for ever."""
    driver: list[Any] = []

    def remember(session: Session) -> None:
        driver.append(session.connection().connection.driver_connection)

    await within(database, "async", remember)
    with closing(sqlite.connect()) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = elsewhere(within(database, "async", insert("never")))
        await wait_until_async(lambda: driver[0]._tx.empty() and not waiting.done(), "BEGIN is on its way")
        for _ in range(50):
            await asyncio.sleep(0)
        waiting.cancel()
        for _ in range(50):
            await asyncio.sleep(0)
        other.execute("ROLLBACK")
        await asyncio.wait({waiting}, timeout=LIMIT)

    assert waiting.cancelled()
    await within(database, "async", remember)
    assert driver[0] is not driver[1]
    assert names(sqlite) == []
    sqlite.wait_until_at_rest()


async def test_the_pool_of_the_readers_takes_the_users_options_and_the_writer_stays_one(
    sqlite: SqliteBackend, mode: Mode, connect: Connect
) -> None:
    make_tables(sqlite)
    database = connect(sqlite, pool_size=2, max_overflow=0, pool_use_lifo=True, pool_timeout=5)

    await within(database, mode, insert("nut"))
    assert await within(database, mode, count, read_only=True) == 1


async def test_an_error_that_cost_the_transaction_dooms_although_a_savepoint_was_there(
    sqlite: SqliteBackend, database: Database, mode: Mode
) -> None:
    """L9: an error in a savepoint dooms nothing, unless it cost the transaction."""
    sqlite.execute("INSERT INTO items (name) VALUES ('nut')")

    def work(session: Session) -> None:
        insert("before")(session)
        with pytest.raises(OperationalError, match="no such savepoint"), session.begin_nested():
            session.execute(text("INSERT OR ROLLBACK INTO items (name) VALUES ('nut')"))

    recorder = await request(database, mode, work)

    assert recorder.status == 500
    assert recorder.json()["type"] == "/problems/unit-doomed"
    assert names(sqlite) == ["nut"]
    await within(database, mode, insert("next"))
    sqlite.wait_until_at_rest()


async def test_nobody_unlocks_a_reader(sqlite: SqliteBackend, database: Database, mode: Mode) -> None:
    """L25: its connection serves other units as well."""

    def unlock(session: Session) -> None:
        with suppress(errors.ReadOnlyUnitOfWork):
            session.execute(text("PRAGMA query_only = OFF"))
        insert("never")(session)

    for _ in range(2):
        with pytest.raises((errors.ReadOnlyUnitOfWork, errors.UnitOfWorkDoomed)):
            await within(database, mode, unlock, read_only=True)

    assert names(sqlite) == []


def test_the_test_sees_what_it_says_it_sees(sqlite: SqliteBackend) -> None:
    """Without the recipe the same file takes a second writer's read-modify-write silently."""
    sqlite.execute("CREATE TABLE t (n)")
    with closing(sqlite.connect()) as plain:
        plain.execute("BEGIN")
        plain.execute("SELECT * FROM t").fetchall()
        assert sqlite.write_lock_free()
        plain.execute("ROLLBACK")
    with closing(sqlite3.connect(sqlite.path)) as other:
        assert other.execute("PRAGMA query_only").fetchone() == (0,)


def test_a_connection_may_be_closed_twice(tmp_path: Path) -> None:
    """SQLAlchemy does so when a cancellation comes while it closes one."""
    connection = sqlite3.connect(tmp_path / "x.db", factory=_Connection)
    connection.close()
    connection.close()
