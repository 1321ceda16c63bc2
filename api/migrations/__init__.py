"""The schema's migrations, on every engine: `python -m api migrate`.

A migration is a file in `versions/`; `0001_inventory.py` shows its form. All that are missing run
in one transaction, so a start that fails half-way leaves the schema as it was. On SQLite foreign
keys stay on meanwhile: a migration that rebuilds a table (`op.batch_alter_table`) must first save
the rows that refer to it, because dropping the old table deletes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Column, Connection, MetaData, String, Table, func, inspect, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from uow import Database, errors

When = Literal["auto", "always", "never"]

# Any number that nothing else in the database uses for an advisory lock.
_LOCK_KEY = 7_265_110_433
# Where Alembic notes the revision. It is read here without Alembic, which logs two lines each time.
_VERSION = Table("alembic_version", MetaData(), Column("version_num", String(32)))
# A start does not wait longer for a database that it can also do without.
_SECONDS_TO_LOOK = 5
# What is no fault of the code: its traceback would only hide the reason.
FROM_OUTSIDE = (SQLAlchemyError, OSError, CommandError, errors.UnitOfWorkError)


class MigrationFailed(Exception):
    """The schema is as it was; the message is the database's.

    `of_schema`: the database can be reached, and its schema is none that this code knows.
    """

    def __init__(self, reason: str, *, of_schema: bool = False) -> None:
        super().__init__(reason)
        self.of_schema = of_schema


def migrate(url: str) -> str:
    """Bring the schema up to date and answer its revision; who comes second waits for the first."""
    with _failing_briefly(), Database(url) as database, database.new_unit() as unit:
        return _upgrade(unit.sync_session.connection())


async def migrate_with(database: Database) -> str:
    """The same on the engines of a running app, which alone know where an in-memory database is."""
    with _failing_briefly():
        async with database.new_unit() as unit:
            return await unit.session.run_sync(lambda session: _upgrade(session.connection()))


async def prepare(database: Database, when: When) -> str | None:
    """Migrate if a start is to do so, and answer what the schema lacks otherwise, if anything.

    "auto" migrates SQLite, and any other database that was never migrated: where others may use the
    schema meanwhile, changing it is a step of its own. Raises `MigrationFailed`.
    """
    if when == "always" or (when == "auto" and database.url.get_backend_name() == "sqlite"):
        await migrate_with(database)
        return None
    try:
        async with asyncio.timeout(_SECONDS_TO_LOOK), database.new_unit(read_only=True) as unit:
            revision = await unit.session.run_sync(lambda session: revision_of(session.connection()))
    except FROM_OUTSIDE as error:
        return f"The database cannot be reached: {reason_of(error)}"
    if revision is None and when == "auto":
        await migrate_with(database)
        return None
    return lack_of(revision)


def revision_of(connection: Connection) -> str | None:
    """The revision that the database has; None before the first migration."""
    if not inspect(connection).has_table(_VERSION.name):
        return None
    return connection.scalar(select(_VERSION.c.version_num))


@cache
def head() -> str:
    """The newest revision, which the code of the service needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def is_known(revision: str | None) -> bool:
    """Whether this code has the migration that a schema is at; not that of newer code."""
    known = {each.revision for each in ScriptDirectory.from_config(_config()).walk_revisions()}
    return revision is None or revision in known


def lack_of(revision: str | None) -> str | None:
    """What is wrong with a schema of this revision, in words; None if the code can work with it."""
    if revision == head():
        return None
    return (
        f"The schema is at revision {revision or 'none'}, the code needs {head()}: "
        "run `python -m api migrate`, or newer code."
    )


@contextmanager
def _failing_briefly() -> Iterator[None]:
    try:
        yield
    except FROM_OUTSIDE as error:
        raise MigrationFailed(reason_of(error), of_schema=isinstance(error, CommandError)) from None


def reason_of(error: BaseException) -> str:
    """What the driver says, without what SQLAlchemy adds for developers."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(said).split()) or type(said).__name__  # one line of it is enough for a message


def _upgrade(connection: Connection) -> str:
    """Run what is missing inside the transaction of the connection."""
    if connection.dialect.name == "postgresql":
        # SQLite needs no lock of ours: a unit that may write is alone from its BEGIN on.
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
