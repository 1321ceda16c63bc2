"""`rolled_back()` around engines that the user has made, which uow knows nothing of."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from tests.support.backends import Backend, Mode, SqliteBackend
from tests.uow.testing.apps import app_with
from tests.uow.testing.clients import asgi_client
from tests.uow.units import count, insert, make_tables, names, run, within
from uow import Database
from uow.testing import CannotRollBack, rolled_back


class OwnEngines:
    """Engines that a user made, with a listener of their own."""

    def __init__(self, backend: Backend, mode: Mode, **reader: Any) -> None:
        make = create_async_engine if mode == "async" else create_engine
        self.writer: Any = make(backend.url(mode))
        sync_engine = getattr(self.writer, "sync_engine", self.writer)
        self.reader: Any = self.writer.execution_options(**reader) if reader else None
        self.seen: list[str] = []
        event.listen(sync_engine, "before_cursor_execute", lambda *them: self.seen.append(them[2]))

    def database(self, mode: Mode) -> Database:
        if mode == "async":
            return Database.from_engines(writer=self.writer, reader=self.reader)
        return Database.from_engines(sync_writer=self.writer, sync_reader=self.reader)

    async def dispose(self) -> None:
        disposed = self.writer.dispose()
        if disposed is not None:
            await disposed


async def test_engines_of_the_users_own(backend: Backend, mode: Mode) -> None:
    """Stock ones, on which a missing reader is the writer, and pysqlite begins by itself."""
    make_tables(backend)
    own = OwnEngines(backend, mode)
    database = own.database(mode)
    async with rolled_back(database) as probe, asgi_client(app_with(database, mode)) as client:
        assert (await client.post("/nut")).status_code == 200
        with pytest.raises(LookupError):
            await client.post("/broken")
        assert (await client.get("/bolt")).status_code == 200
        assert (await client.get("/names")).json() == ["bolt", "nut"]
        assert (await client.post("/nut")).status_code == 409
        probe.assert_rolled_back(2)
        assert names(backend) == []
    assert names(backend) == []
    assert any("INSERT" in statement for statement in own.seen)
    await within(database, mode, insert("after"))
    assert names(backend) == ["after"]
    await own.dispose()


@pytest.mark.backends("pg18", "pgsystem")
async def test_a_reader_of_the_users_own_in_autocommit(backend: Backend, mode: Mode) -> None:
    """Nothing refuses its writes; each is kept by itself, also before one that fails."""
    make_tables(backend)
    own = OwnEngines(backend, mode, isolation_level="AUTOCOMMIT")
    database = own.database(mode)

    def two(session: Session) -> None:
        insert("nut")(session)
        insert("bolt")(session)
        insert("nut")(session)

    async with rolled_back(database):
        with pytest.raises(Exception, match="items_name_key"):
            await within(database, mode, two, read_only=True)
        assert await within(database, mode, count) == 2
    assert names(backend) == []
    await own.dispose()


async def test_a_database_in_memory_of_the_users_own(mode: Mode) -> None:
    """Its one connection is the database: it must survive the test."""
    options: dict[str, Any] = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    if mode == "async":
        engine: Any = create_async_engine("sqlite+aiosqlite://", **options)
        database = Database.from_engines(writer=engine)
    else:
        engine = create_engine("sqlite://", **options)
        database = Database.from_engines(sync_writer=engine)
    await within(database, mode, run("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT)"))
    for _ in range(2):
        async with rolled_back(database):
            await within(database, mode, insert("mine"))
            assert await within(database, mode, count) == 1
    assert await within(database, mode, count) == 0
    disposed = engine.dispose()
    if disposed is not None:
        await disposed


def test_a_driver_that_is_not_known_is_refused(sqlite: SqliteBackend) -> None:
    engine = create_engine(sqlite.url("sync"))
    engine.dialect.driver = "pysqlcipher"
    block = rolled_back(Database.from_engines(sync_writer=engine))
    with block, pytest.raises(CannotRollBack, match="pysqlcipher"):
        engine.connect()
    engine.dispose()


async def test_a_reader_alone(backend: Backend, mode: Mode) -> None:
    make_tables(backend)
    own = OwnEngines(backend, mode)
    database = Database.from_engines(**{"reader" if mode == "async" else "sync_reader": own.writer})
    async with rolled_back(database):
        assert await within(database, mode, count, read_only=True) == 0
        with pytest.raises(ValueError, match="writer is not among them"):
            await within(database, mode, count)
    await own.dispose()


@pytest.mark.backends("pg18")
@pytest.mark.modes("async")
async def test_a_transaction_that_ended_unseen_is_missed_by_the_next_statement(
    backend: Backend, mode: Mode
) -> None:
    make_tables(backend)
    own = OwnEngines(backend, mode, isolation_level="AUTOCOMMIT")
    database = own.database(mode)

    async def commit_unseen() -> None:
        async with database.new_unit(read_only=True) as unit:
            raw: Any = (await (await unit.session.connection()).get_raw_connection()).driver_connection
            await raw.execute("COMMIT")
            await unit.session.execute(text("SELECT 1"))

    async with rolled_back(database):
        with pytest.raises(DBAPIError):
            await commit_unseen()
        with pytest.raises(CannotRollBack, match="has ended"):
            await within(database, mode, count)
    await own.dispose()


async def test_a_reference_to_what_is_no_key_is_not_looked_at(sqlite: SqliteBackend, mode: Mode) -> None:
    """SQLite refuses to check anything then, and each write of such a row as well."""
    make_tables(sqlite)
    sqlite.execute("CREATE TABLE odd (a INTEGER REFERENCES items(stock))")
    database = Database(sqlite.database_url)
    async with rolled_back(database):
        await within(database, mode, insert("nut"))
        assert await within(database, mode, count) == 1
    await database.dispose()
