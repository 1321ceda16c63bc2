"""PostgreSQL: readers that the server itself holds to reading, and COMMIT's own answer is read.

The reader runs in autocommit, one round trip per statement, on connections whose
`default_transaction_read_only` is on (https://www.postgresql.org/docs/current/runtime-config-client.html);
inside a transaction block only where a stream, a savepoint or a snapshot needs one.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
from contextlib import suppress
from socket import SHUT_RDWR, socket
from threading import Thread, Timer
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, Engine, event

from ..errors import ReadOnlyUnitOfWork
from ..problems import Condition
from .base import BORROWED, Adapter, TransactionState, driver_of
from .threads import ThreadsPool

logger = logging.getLogger("uow")

_READS_TAGS = "_uow_reads_tags"
_SETTING = "default_transaction_read_only"

_CONDITIONS = {
    "40003": Condition.COMMIT_UNKNOWN,
    "08007": Condition.COMMIT_UNKNOWN,
    "55P03": Condition.LOCK_TIMEOUT,
    "57014": Condition.TIME_UP,
    "25P03": Condition.TIME_UP,
    "25P04": Condition.TIME_UP,
    "23505": Condition.UNIQUE,
    "23P01": Condition.UNIQUE,
    "23503": Condition.FOREIGN_KEY,
    "23514": Condition.CHECK,
    "23502": Condition.BAD_DATA,
    "25P02": Condition.ABORTED,
    "25006": Condition.READ_ONLY,
    "53100": Condition.STORAGE_FULL,
    "57P01": Condition.CONNECTION_LOST,
    "57P02": Condition.CONNECTION_LOST,
    "57P03": Condition.UNAVAILABLE,
}
_CLASS_CONDITIONS = {
    "08": Condition.CONNECTION_LOST,
    "22": Condition.BAD_DATA,
    "40": Condition.SERIALIZATION,
    "53": Condition.UNAVAILABLE,
}

# What PgBouncer says, in the words of a broken protocol, while the server behind it is away
# (https://www.pgbouncer.org/config.html, server_login_retry).
_NO_SERVER = re.compile(r"server[ _]login|cannot connect to server").search

_TIMEOUTS = ("statement_timeout", "lock_timeout")
_MOST_MILLISECONDS = 2**31 - 1
_LIFT = "SET LOCAL statement_timeout TO DEFAULT"
_limits: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # to be sent with the next BEGIN or COMMIT
_own_limits: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()  # of the role or the database
_UNITS = {"": 1, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_SECONDS_TO_CANCEL = 1.0

# https://www.postgresql.org/docs/current/libpq-status.html#LIBPQ-PQTRANSACTIONSTATUS
_LIBPQ_STATES = {0: TransactionState.IDLE, 3: TransactionState.FAILED}

# What a URL may say in libpq's words, and asyncpg's keyword for it.
_ASYNCPG_WORDS = {"sslmode": "ssl", "connect_timeout": "timeout"}
_ASYNC_DRIVERS = {"psycopg": "psycopg", "psycopg_async": "psycopg_async"}
_SYNC_DRIVERS = {"psycopg2": "psycopg2", "psycopg2cffi": "psycopg2cffi", "pg8000": "pg8000"}


class PostgreSQL(Adapter):
    """PostgreSQL through asyncpg and psycopg."""

    dialect = "postgresql"
    drivers = ("asyncpg", "psycopg", "psycopg2")
    one_writer = False

    def engine_arguments(
        self, url: URL, options: dict[str, Any], *, asynchronous: bool, read_only: bool
    ) -> tuple[URL, dict[str, Any]]:
        named = url.drivername.partition("+")[2]
        driver = _ASYNC_DRIVERS.get(named, "asyncpg") if asynchronous else _SYNC_DRIVERS.get(named, "psycopg")
        url = url.set(drivername=f"postgresql+{driver}")
        settings = {_SETTING: "on"} if read_only else {}
        if driver == "asyncpg":
            url, arguments = _for_asyncpg(url, options.get("connect_args", {}), settings)
        else:
            arguments = _for_libpq(url, options.get("connect_args", {}), settings)
        chosen = options | {"connect_args": arguments}
        if not asynchronous and "pool" not in options:
            chosen.setdefault("poolclass", ThreadsPool)
        if read_only:
            # The unit ends its rare transactions itself; a ROLLBACK at every return would be a trip.
            chosen |= {
                "isolation_level": "AUTOCOMMIT",
                "pool_reset_on_return": None,
                "skip_autocommit_rollback": True,
            }
        return url, chosen

    def prepare_writer(self, engine: Engine) -> None:
        """Nothing: the driver begins with the first statement."""

    def prepare_reader(self, engine: Engine) -> None:
        event.listen(engine, "connect", _ask_whether_read_only)

    def writer_at(self, engine: Engine, isolation: str) -> Engine:
        return engine.execution_options(isolation_level=isolation)

    def transactional_reader(self, engine: Engine, *, snapshot: bool) -> Engine:
        level = "REPEATABLE READ" if snapshot else "READ COMMITTED"
        return engine.execution_options(isolation_level=level)

    def needs_transaction_to_read(self) -> bool:
        return True

    def adopt(self, driver: Any) -> None:
        if hasattr(driver, "is_in_transaction"):
            if not hasattr(driver, _READS_TAGS):
                driver.__class__ = _tag_reading(driver.__class__)
            elif _limits:
                _limits.pop(driver, None)  # of a unit that never began

    def limit(self, connection: Connection, seconds: float) -> None:
        """Without a trip of its own through asyncpg, whose BEGIN is a text that more can follow.

        But for the first time on a connection, which is asked for what its role and database say. None of
        these statements takes a snapshot: what the handler locks first is seen as it is then.
        """
        driver = driver_of(connection)
        if hasattr(driver, BORROWED):
            return
        is_new = driver not in _own_limits
        if is_new:
            _own_limits[driver] = {
                name: _milliseconds(connection.exec_driver_sql(f"SHOW {name}").scalar_one())
                for name in _TIMEOUTS
            }
        ours = min(max(round(seconds * 1000), 1), _MOST_MILLISECONDS)
        # The shorter one for locks, so that the answer says what was waited for
        # (https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT).
        limits = {"statement_timeout": ours, "lock_timeout": max(1, ours * 9 // 10)}
        own = _own_limits[driver]
        texts = [f"SET LOCAL {name} = {min(most, own[name] or most)}" for name, most in limits.items()]
        if hasattr(driver, _READS_TAGS) and not is_new:
            _limits[driver] = "; ".join(["", *texts])
        else:
            for text in texts:
                connection.exec_driver_sql(text)

    def lift_limit(self, connection: Connection) -> None:
        driver = driver_of(connection)
        if hasattr(driver, BORROWED):
            return
        if hasattr(driver, _READS_TAGS):
            _limits[driver] = f"{_LIFT}; "
        else:
            connection.exec_driver_sql(_LIFT)

    def interrupt(self, connection: Connection) -> None:
        """Cancel what a thread waits for, in another one: a link that is stalled would stop this one, too.

        A moment later the link is cut, because it may be that nothing arrives on it. The connection must
        not be used again.
        """
        if connection.dialect.is_async:
            return
        driver = driver_of(connection)
        for link in _links_of(driver):
            cut = Timer(_SECONDS_TO_CANCEL, _shut_down, (link,))
            cut.daemon = True
            cut.start()
        Thread(target=_cancel, args=(driver,), name="uow-cancel", daemon=True).start()

    def hang_up(self, driver: Any) -> None:
        if hasattr(driver, "terminate") and not hasattr(driver, BORROWED):  # asyncpg
            driver.terminate()
        for link in _links_of(driver):
            _shut_down(link)

    def transaction_state(self, driver: Any) -> TransactionState:
        if hasattr(driver, "is_in_transaction"):  # asyncpg, which does not tell a failed one
            return TransactionState.OPEN if driver.is_in_transaction() else TransactionState.IDLE
        return _LIBPQ_STATES.get(int(driver.info.transaction_status), TransactionState.OPEN)

    def still_read_only(self, driver: Any) -> bool:
        """Idle, and nobody switched it to writing: the server reports the setting since release 14."""
        if self.transaction_state(driver) is not TransactionState.IDLE:
            return False
        if hasattr(driver, "get_settings"):
            reported = getattr(driver.get_settings(), _SETTING, "on")
        else:
            reported = driver.info.parameter_status(_SETTING) or "on"
        return bool(reported == "on")

    def driver_condition(self, error: BaseException) -> Condition:
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if not isinstance(state, str):
            return Condition.OTHER
        if state == "08P01" and _NO_SERVER(str(error)):
            return Condition.UNAVAILABLE
        return _CONDITIONS.get(state) or _CLASS_CONDITIONS.get(state[:2], Condition.OTHER)


def _milliseconds(shown: str) -> int:
    """What SHOW says of a time, which has the largest unit that it is a multiple of."""
    number = shown.rstrip("mshdin")
    unit = shown[len(number) :]
    return int(number) * _UNITS[unit]


def _cancel(driver: Any) -> None:
    try:
        cancel = getattr(driver, "cancel_safe", None)  # of psycopg 3.2, with a bound of its own
        driver.cancel() if cancel is None else cancel(timeout=_SECONDS_TO_CANCEL)
    except Exception as error:
        logger.warning("a statement could not be cancelled (%s): its link is cut", error)


def _links_of(driver: Any) -> list[socket]:
    """A second handle of the driver's socket: by then the number of the first may be another one's.

    None of asyncpg's, of one that is closed already, and of one that goes on for somebody else.
    """
    with suppress(Exception):
        return [] if hasattr(driver, BORROWED) else [socket(fileno=os.dup(driver.fileno()))]
    return []


def _shut_down(link: socket) -> None:
    with suppress(OSError), link:
        link.shutdown(SHUT_RDWR)


def _for_asyncpg(url: URL, given: dict[str, Any], settings: dict[str, str]) -> tuple[URL, dict[str, Any]]:
    """The URL in asyncpg's words, and asyncpg's keywords with these server settings added."""
    query = {_ASYNCPG_WORDS.get(word, word): value for word, value in url.query.items()}
    name = query.pop("application_name", None)
    named = {} if name is None else {"application_name": name}
    arguments = {"server_settings": named | given.get("server_settings", {}) | settings}
    seconds = query.pop("timeout", None)
    if isinstance(seconds, str):
        arguments["timeout"] = float(seconds) or None  # libpq says 0 for no limit
    if unknown := unknown_to_asyncpg(url):
        raise ValueError(f"{unknown}, or give asyncpg's own keywords as connect_args")
    return url.set(query=query), arguments | given | {"server_settings": arguments["server_settings"]}


def unknown_to_asyncpg(url: URL) -> str | None:
    """What a URL says that asyncpg does not know, with the remedy; None if it knows all of it."""
    words = {_ASYNCPG_WORDS.get(word, word) for word in url.query} - {"application_name", "timeout"}
    if not words or not (unknown := sorted(words - _keywords_of_asyncpg())):
        return None
    return (
        f"asyncpg knows no {', '.join(unknown)} in a URL; write postgresql+psycopg://, whose driver takes "
        f"all that libpq does"
    )


@functools.cache
def _keywords_of_asyncpg() -> frozenset[str]:
    """What a URL may say to asyncpg: an unknown one would be a TypeError with the first connection."""
    import asyncpg  # here: not everybody has it

    return frozenset(inspect.signature(asyncpg.connect).parameters) | {"prepared_statement_cache_size"}


def _for_libpq(url: URL, given: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    """libpq's keywords with these server settings added to `options`, the URL's own included."""
    if not settings:
        return given
    before = given.get("options", url.query.get("options", ""))
    flags = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return given | {"options": f"{before if isinstance(before, str) else ' '.join(before)} {flags}".strip()}


def _ask_whether_read_only(connection: Any, record: object) -> None:
    """Refuse a reader's connection that can write: a pooler may drop start-up parameters."""
    cursor = connection.cursor()
    cursor.execute("SHOW transaction_read_only")
    answer = cursor.fetchone()[0]
    cursor.close()
    if answer != "on":
        raise ReadOnlyUnitOfWork(
            f"a new connection of the reader is not read-only: something between this process and the "
            f"server dropped {_SETTING}=on; let the pooler pass it on, or give the reader a role that has it "
            f"(ALTER ROLE ... SET {_SETTING} = on)"
        )


@functools.cache
def _tag_reading(cls: Any) -> Any:
    """A class of asyncpg's connections that asks COMMIT for its tag, and lets BEGIN set limits.

    PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK and no error, and errors on the
    raw driver connection (COPY, say) raise no event: without this the unit would be taken for committed.
    """
    from asyncpg.exceptions import InFailedSQLTransactionError  # here: not everybody has asyncpg

    async def execute(self: Any, query: str, *args: Any, timeout: float | None = None) -> str:
        if _limits and query.startswith(("BEGIN", "COMMIT")) and (limit := _limits.pop(self, None)):
            query = query + limit if query.startswith("BEGIN") else limit + query
        tag: str = await cls.execute(self, query, *args, timeout=timeout)
        if tag == "ROLLBACK" and "COMMIT" in query:
            raise InFailedSQLTransactionError("COMMIT was answered with ROLLBACK")
        return tag

    return type(cls.__name__, (cls,), {"__slots__": (), "execute": execute, _READS_TAGS: True})
