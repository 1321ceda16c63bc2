"""SQLite: one writer that begins IMMEDIATE and whose queue is fair, readers that cannot write.

Without BEGIN IMMEDIATE two units that read and then write lose updates silently (the driver begins no
transaction before the first write), or fail at once with BUSY_SNAPSHOT, which no time-out helps. See
https://www.sqlite.org/lang_transaction.html and https://www.sqlite.org/wal.html.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import unquote, urlsplit
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import asbool, await_only

from ..errors import ReadOnlyUnitOfWork
from ..problems import Condition
from .base import SECONDS_TO_BEGIN, Adapter, TransactionState, driver_of
from .threads import ThreadsPool
from .writer_pool import DEFAULT_TIMEOUT, Turn, writer_pool

logger = logging.getLogger("uow")

_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",  # NORMAL may lose acknowledged commits when the power fails
    "foreign_keys=ON",
    "journal_size_limit=67108864",
    "cache_size=-16384",
    "temp_store=MEMORY",
)

_CONDITIONS = {
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: Condition.UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: Condition.UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_ROWID: Condition.UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Condition.FOREIGN_KEY,
    sqlite3.SQLITE_CONSTRAINT_CHECK: Condition.CHECK,
    sqlite3.SQLITE_CONSTRAINT_NOTNULL: Condition.BAD_DATA,
}
_PRIMARY_CONDITIONS = {
    sqlite3.SQLITE_BUSY: Condition.SERIALIZATION,
    sqlite3.SQLITE_LOCKED: Condition.SERIALIZATION,
    sqlite3.SQLITE_READONLY: Condition.READ_ONLY,
    sqlite3.SQLITE_INTERRUPT: Condition.TIME_UP,
    sqlite3.SQLITE_FULL: Condition.STORAGE_FULL,
    sqlite3.SQLITE_IOERR: Condition.STORAGE_FULL,
    sqlite3.SQLITE_CANTOPEN: Condition.UNAVAILABLE,
    sqlite3.SQLITE_TOOBIG: Condition.BAD_DATA,
    sqlite3.SQLITE_MISMATCH: Condition.BAD_DATA,
}
_QUEUE_OPTIONS = ("pool_size", "max_overflow", "pool_use_lifo")


class SQLite(Adapter):
    """SQLite through aiosqlite and the standard library's driver."""

    dialect = "sqlite"
    drivers = ("sqlite3", "aiosqlite")
    one_writer = True
    over_a_link = False

    def __init__(self) -> None:
        self._turn = Turn()
        self._folder: Path | None = None
        self._file: str | None = None

    def resolve(self, url: URL) -> URL:
        """The URL itself, or that of a private temporary file for a database in memory.

        One shared connection would mix the units of all requests; a file keeps them apart.
        """
        if not _is_in_memory(url):
            return url
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="uow-"))
            logger.warning(
                "%s: kept in the private temporary file %s, removed at dispose()",
                url.render_as_string(),
                self._folder / "memory.sqlite3",
            )
        return URL.create(url.drivername, database=str(self._folder / "memory.sqlite3"))

    def shared_file(self, url: URL) -> str | None:
        if self._file is None and not _is_in_memory(url):
            name = url.database or ""
            if name.startswith("file:") and asbool(url.query.get("uri")):  # https://www.sqlite.org/uri.html
                name = unquote(urlsplit(name).path)
            self._file = os.path.realpath(name)  # SQLite names its own files beside it so; once, as an engine
        return self._file

    def dispose(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def engine_arguments(
        self, url: URL, options: dict[str, Any], *, asynchronous: bool, read_only: bool
    ) -> tuple[URL, dict[str, Any]]:
        wait = float(options.get("pool_timeout", DEFAULT_TIMEOUT))  # for other processes, in seconds
        given = options.get("connect_args", {})
        chosen = options | {
            "connect_args": {"timeout": wait, "factory": _Connection} | given | {"isolation_level": None},
            "pool_reset_on_return": None,  # the unit leaves its connection clean
        }
        if read_only:
            # Nothing is begun on a reader unless a snapshot is asked for, and the unit ends that one
            # itself, so a ROLLBACK of SQLAlchemy's would be a trip to a thread for nothing.
            chosen["skip_autocommit_rollback"] = True
            if not asynchronous and "pool" not in options:
                chosen.setdefault("poolclass", ThreadsPool)
        else:
            chosen = {name: value for name, value in chosen.items() if name not in _QUEUE_OPTIONS}
            chosen.setdefault("poolclass", writer_pool(self._turn, asynchronous=asynchronous))
        return url.set(drivername=f"sqlite+{'aiosqlite' if asynchronous else 'pysqlite'}"), chosen

    def prepare_writer(self, engine: Engine) -> None:
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin_immediate)
        event.listen(engine, "handle_error", _forget_read_only)

    def prepare_reader(self, engine: Engine) -> None:
        event.listen(engine, "connect", _set_up_reader)
        event.listen(engine, "before_cursor_execute", _keep_locked)

    def writer_at(self, engine: Engine, isolation: str) -> Engine:
        """The writer: BEGIN IMMEDIATE is serializable, which every level permits."""
        return engine

    def transactional_reader(self, engine: Engine, *, snapshot: bool) -> Engine:
        reader = engine.execution_options()
        event.listen(reader, "begin", _begin)
        return reader

    def needs_transaction_to_read(self) -> bool:
        return False

    def transaction_state(self, driver: Any) -> TransactionState:
        return TransactionState.OPEN if driver.in_transaction else TransactionState.IDLE

    def still_read_only(self, driver: Any) -> bool:
        return self.transaction_state(driver) is TransactionState.IDLE

    def interrupt(self, connection: Connection) -> None:
        """Stop what runs on in another thread: until its end it would hold the write lock."""
        stopping = driver_of(connection).interrupt()
        if connection.dialect.is_async:
            await_only(stopping)

    def driver_condition(self, error: BaseException) -> Condition:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return Condition.OTHER
        by_primary_code = _PRIMARY_CONDITIONS.get(code & 0xFF, Condition.OTHER)
        return _CONDITIONS.get(code, by_primary_code)


class _Connection(sqlite3.Connection):
    """Ends its statements and rolls back before it closes.

    SQLite keeps a closed connection, and its write lock, until its last cursor is freed, and a cancelled
    statement's may be part of a reference cycle (https://www.sqlite.org/c3ref/close.html). A statement that
    was interrupted with rows to come makes every other one fail as well, ROLLBACK included
    (https://www.sqlite.org/c3ref/interrupt.html).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()
        self._closed = False

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        cursor = super().cursor(factory)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            for cursor in list(self._cursors):
                cursor.close()
            if self.in_transaction:
                self.rollback()
        finally:
            super().close()


def _is_in_memory(url: URL) -> bool:
    name = url.database or ":memory:"
    query = url.query
    named = name == ":memory:" or name.startswith("file::memory:") or "mode=memory" in name
    return named or query.get("mode") == "memory" or query.get("vfs") == "memdb"


def _set_up(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _set_up_reader(connection: Any, record: object) -> None:
    _set_up(connection, record)
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only=ON")
    cursor.close()


def _keep_locked(connection: Connection, cursor: object, statement: str, *_: object) -> None:
    """Refuse to unlock a reader: its connection serves other units as well."""
    if "query_only" in statement.lower():
        raise ReadOnlyUnitOfWork(f"{statement!r} on a reader: its connections stay read-only")


def _forget_read_only(context: ExceptionContext) -> None:
    """Drop a writer's connection that cannot write.

    SQLite opens a file without the permission to write as one to read, and leaves it at that: the pool
    would refuse all writes long after the permission has come.
    """
    if _is_read_only(context.original_exception):
        context.is_disconnect = True


def _is_read_only(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY


def _begin_immediate(connection: Connection) -> None:
    _send(connection, "BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    _send(connection, "BEGIN")


def _send(connection: Connection, statement: str) -> None:
    """Send a statement past SQLAlchemy's cursor: one trip to the driver's thread instead of four.

    SQLAlchemy does not see what happens here, so a refusal is given its own exception, and a
    connection on which the statement may still be running is thrown away: the lock that it may yet
    take would stay with the pool.
    """
    driver = driver_of(connection)
    began = perf_counter()
    try:
        if connection.dialect.is_async:
            await_only(driver.execute(statement))
        else:
            driver.execute(statement)
    except sqlite3.Error as error:
        if _is_read_only(error):
            connection.invalidate()  # as in `_forget_read_only`
        raise DBAPIError.instance(statement, None, error, sqlite3.Error) from error
    except BaseException:
        connection.invalidate()
        raise
    connection.__dict__[SECONDS_TO_BEGIN] = perf_counter() - began
