"""The engines of a database: which drivers, made when, and given back how."""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, QueuePool, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from tests.support.backends import Backend, Mode, PostgresBackend, SqliteBackend
from tests.support.processes import free_port
from tests.support.wait import LIMIT, wait_until_async
from tests.uow.conftest import Connect
from tests.uow.units import (
    IN_MEMORY,
    Told,
    count,
    elsewhere,
    in_thread,
    insert,
    make_tables,
    names,
    run,
    within,
)
from uow import Database
from uow._options import UnitOptions


def driver_of(url: str, mode: Mode, *, read_only: bool = False) -> str:
    engine = Database(url).engine(UnitOptions(read_only=read_only), asynchronous=mode == "async")
    return str(engine.url.drivername)


@pytest.mark.parametrize(
    ("url", "asynchronous", "synchronous"),
    [
        ("sqlite:///x.db", "sqlite+aiosqlite", "sqlite+pysqlite"),
        ("sqlite+aiosqlite:///x.db", "sqlite+aiosqlite", "sqlite+pysqlite"),
        ("sqlite+pysqlite:///x.db", "sqlite+aiosqlite", "sqlite+pysqlite"),
        ("postgresql://u@h/d", "postgresql+asyncpg", "postgresql+psycopg"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg", "postgresql+psycopg"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg", "postgresql+psycopg"),
    ],
)
def test_plain_urls_and_urls_with_drivers_choose_the_documented_drivers(
    url: str, asynchronous: str, synchronous: str
) -> None:
    for read_only in (False, True):
        assert driver_of(url, "async", read_only=read_only) == asynchronous
        assert driver_of(url, "sync", read_only=read_only) == synchronous


def test_a_dialect_without_an_adapter_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no adapter for 'mysql' databases, only for: sqlite, postgresql"):
        Database("mysql://u@h/d")


@pytest.mark.parametrize(("url", "extra"), [("sqlite://", "sqlite"), ("postgresql://h/d", "postgresql")])
def test_a_missing_driver_is_named_with_what_installs_it(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_drivers(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("aiosqlite", "psycopg"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    database = Database(url)
    monkeypatch.setattr(builtins, "__import__", without_drivers)

    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'uow\[{extra}\]'"):
        database.engine(UnitOptions(), asynchronous=extra == "sqlite")
    database.dispose_sync()


async def test_nothing_is_connected_before_the_first_sql(mode: Mode, tmp_path: Path) -> None:
    """L20: not by making it, not by a unit, not by its session."""
    path = tmp_path / "later.db"
    database = Database(f"sqlite:///{path}")
    unreachable = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")

    await within(unreachable, mode, lambda session: None)
    await within(database, mode, lambda session: session.expire_all())
    assert not path.exists()
    await within(database, mode, run("CREATE TABLE t (a)"))
    assert path.exists()

    await database.dispose()
    await unreachable.dispose()


async def test_each_engine_is_made_once_whoever_asks_first(sqlite: SqliteBackend) -> None:
    database = Database(sqlite.database_url)
    together = threading.Barrier(8)

    def ask(_: int) -> Any:
        together.wait(LIMIT)
        return database.engine(UnitOptions(), asynchronous=False)

    with ThreadPoolExecutor(8) as pool:
        engines = set(pool.map(ask, range(8)))

    assert len(engines) == 1
    assert engines != {database.engine(UnitOptions(read_only=True), asynchronous=False)}
    snapshot = UnitOptions(read_only=True, snapshot=True)
    assert database.engine(snapshot, asynchronous=True) is database.engine(snapshot, asynchronous=True)


def exists(path: str) -> bool:
    return os.path.exists(path)


async def test_a_database_in_memory_is_a_private_file_until_it_is_disposed_of(
    mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    """One shared connection would mix the units of all requests; the log says where it is."""
    for url in IN_MEMORY:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "uow"):
            async with Database(url) as database:
                await within(database, mode, run("CREATE TABLE items (name TEXT)"))
                await within(database, mode, insert("nut"))
                assert await within(database, "async", count) == 1
                assert await within(database, "sync", count, read_only=True) == 1
                (message,) = caplog.messages
                file = message.split("private temporary file ")[1].split(",")[0]
                assert exists(file)
        assert "removed at dispose()" in message
        assert not exists(os.path.dirname(file))


async def test_two_databases_in_memory_know_nothing_of_each_other(connect: Connect) -> None:
    first, second = connect("sqlite://"), connect("sqlite://")
    await within(first, "async", run("CREATE TABLE items (name TEXT)"))

    with pytest.raises(OperationalError, match="no such table"):
        await within(second, "async", count)


async def test_ping_returns_or_raises(backend: Backend, mode: Mode, connect: Connect) -> None:
    told = Told()
    database = connect(backend, observer=told)
    nobody = connect(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")

    if mode == "async":
        await database.ping()
        with pytest.raises((OperationalError, OSError)):
            await nobody.ping()
    else:
        await in_thread(database.ping_sync)
        with pytest.raises(OperationalError):
            await in_thread(nobody.ping_sync)

    assert told.outcomes == [("ping()" if mode == "async" else "ping_sync()", "committed")]


async def test_dispose_closes_everything_and_the_next_unit_connects_anew(
    backend: Backend, mode: Mode, database: Database
) -> None:
    async def use() -> None:
        await within(database, mode, count)
        await within(database, mode, count, read_only=True)
        await within(database, mode, count, read_only=True, snapshot=True)

    await use()
    if mode == "async":
        await database.dispose()
    else:
        await in_thread(database.dispose_sync)

    if isinstance(backend, PostgresBackend):
        await wait_until_async(lambda: backend.connections() == 0, "all connections are closed")
    await use()
    await within(database, mode, insert("nut"))
    assert names(backend) == ["nut"]


async def test_dispose_waits_for_the_units_that_are_open(backend: Backend, database: Database) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def job() -> None:
        async with database.new_unit() as unit:
            await unit.session.run_sync(insert("nut"))
            inside.set()
            await go_on.wait()

    working = elsewhere(job())
    await asyncio.wait_for(inside.wait(), LIMIT)
    disposing = elsewhere(database.dispose())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not disposing.done()
    go_on.set()
    await asyncio.wait_for(disposing, LIMIT)

    assert working.done()
    await working
    assert names(backend) == ["nut"]


async def test_dispose_does_not_wait_for_ever(sqlite: SqliteBackend, connect: Connect) -> None:
    make_tables(sqlite)
    database = connect(sqlite, settle_timeout=0.05)
    async with database.new_unit() as unit:
        await unit.session.run_sync(insert("nut"))
        await asyncio.wait_for(elsewhere(database.dispose()), LIMIT)
        database.settle_timeout = LIMIT  # its own COMMIT may take longer on a busy machine

    assert names(sqlite) == ["nut"]


async def test_dispose_sync_forgets_the_async_engines_too(sqlite: SqliteBackend) -> None:
    make_tables(sqlite)
    database = Database(sqlite.database_url, poolclass=NullPool)
    before = database.engine(UnitOptions(), asynchronous=True)

    with database:
        await within(database, "async", count)

    assert database.engine(UnitOptions(), asynchronous=True) is not before


@pytest.mark.backends("pg18")
async def test_engines_of_ones_own_are_used_and_never_disposed_of(backend: Backend, mode: Mode) -> None:
    make_tables(backend)
    told = Told()
    writer = create_async_engine(backend.url("async"))
    sync_writer, sync_reader = create_engine(backend.url("sync")), create_engine(backend.url("sync"))
    database = Database.from_engines(
        writer=writer, sync_writer=sync_writer, sync_reader=sync_reader, observer=told, settle_timeout=5
    )

    await within(database, mode, insert("nut"), isolation="repeatable read")
    assert await within(database, mode, count, read_only=True, snapshot=True) == 1
    assert await within(database, mode, savepoint_and_count, read_only=True) == 1
    await database.dispose()
    database.dispose_sync()

    assert database.settle_timeout == 5
    assert [outcome for _, outcome in told.outcomes] == ["committed"] * 3
    assert isinstance(writer.pool, QueuePool)
    assert isinstance(sync_reader.pool, QueuePool)
    assert (writer.pool.checkedin() > 0) is (mode == "async")
    assert (sync_reader.pool.checkedin() > 0) is (mode == "sync")
    await writer.dispose()
    sync_writer.dispose()
    sync_reader.dispose()


def savepoint_and_count(session: Session) -> int:
    with session.begin_nested():
        return count(session)


async def test_engines_of_ones_own_that_are_missing_are_named(sqlite: SqliteBackend) -> None:
    with pytest.raises(ValueError, match="needs at least one engine"):
        Database.from_engines()
    engine = create_engine(sqlite.url("sync"))
    database = Database.from_engines(sync_writer=engine)
    with pytest.raises(ValueError, match="an async reader is not among them"):
        await within(database, "async", count, read_only=True)
    assert database.url == engine.url
    engine.dispose()


@pytest.mark.backends("pg18")
@pytest.mark.parametrize("where", ["url", "connect_args"])
async def test_what_the_user_asks_of_the_connection_is_kept(
    backend: Backend, mode: Mode, connect: Connect, where: str
) -> None:
    """`sslmode`, `application_name` and libpq's `options`, in a plain URL or in `connect_args`."""
    url = f"{backend.database_url}?sslmode=disable&connect_timeout=20&application_name=inventory"
    options: dict[str, Any] = {}
    if where == "connect_args" and mode == "async":
        options = {"connect_args": {"server_settings": {"work_mem": "5MB"}}}
    elif where == "connect_args":
        options = {"connect_args": {"options": "-c work_mem=5MB"}}
    elif mode == "sync":
        url += "&options=-c%20work_mem%3D5MB"
    database = connect(url, **options)

    for read_only in (False, True):
        assert await within(database, mode, show("application_name"), read_only=read_only) == "inventory"
        assert await within(database, mode, show("transaction_read_only"), read_only=read_only) == (
            "on" if read_only else "off"
        )
        if where == "connect_args" or mode == "sync":
            assert await within(database, mode, show("work_mem"), read_only=read_only) == "5MB"


def show(setting: str) -> Any:
    return lambda session: session.execute(text(f"SHOW {setting}")).scalar_one()


@pytest.mark.backends("pg18")
async def test_a_word_of_libpq_that_asyncpg_does_not_know_is_named(
    backend: Backend, connect: Connect
) -> None:
    url = f"{backend.database_url}?sslmode=disable&sslrootcert=/etc/ca.pem&options=-c%20work_mem%3D5MB"
    database = connect(url)

    with pytest.raises(ValueError, match=r"no options, sslrootcert in a URL; write postgresql\+psycopg://"):
        await within(database, "async", count)
    assert await within(database, "sync", show("work_mem")) == "5MB"


def test_it_shows_no_password() -> None:
    database = Database("postgresql://user:secret@host/name?password=secret&sslpassword=secret")

    assert repr(database) == "<Database postgresql://user:***@host/name>"
