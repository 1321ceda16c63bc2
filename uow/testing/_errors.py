"""What the databases raise where something goes wrong: a `Condition` backwards."""

from __future__ import annotations

import sqlite3

from ..problems import Condition

INJECTED = "injected by the test"

_SQLSTATES = {
    Condition.SERIALIZATION: "40001",
    Condition.LOCK_TIMEOUT: "55P03",
    Condition.TIME_UP: "57014",
    Condition.UNIQUE: "23505",
    Condition.FOREIGN_KEY: "23503",
    Condition.CHECK: "23514",
    Condition.BAD_DATA: "22000",
    Condition.UNAVAILABLE: "57P03",
    Condition.STORAGE_FULL: "53100",
    Condition.READ_ONLY: "25006",
    Condition.COMMIT_UNKNOWN: "40003",
    Condition.ABORTED: "25P02",
    Condition.OTHER: "XX000",
}
_RESULT_CODES: dict[Condition, tuple[type[sqlite3.Error], str]] = {
    Condition.SERIALIZATION: (sqlite3.OperationalError, "SQLITE_BUSY"),
    Condition.TIME_UP: (sqlite3.OperationalError, "SQLITE_INTERRUPT"),
    Condition.UNIQUE: (sqlite3.IntegrityError, "SQLITE_CONSTRAINT_UNIQUE"),
    Condition.FOREIGN_KEY: (sqlite3.IntegrityError, "SQLITE_CONSTRAINT_FOREIGNKEY"),
    Condition.CHECK: (sqlite3.IntegrityError, "SQLITE_CONSTRAINT_CHECK"),
    Condition.BAD_DATA: (sqlite3.IntegrityError, "SQLITE_CONSTRAINT_NOTNULL"),
    Condition.UNAVAILABLE: (sqlite3.OperationalError, "SQLITE_CANTOPEN"),
    Condition.STORAGE_FULL: (sqlite3.OperationalError, "SQLITE_FULL"),
    Condition.READ_ONLY: (sqlite3.OperationalError, "SQLITE_READONLY"),
    Condition.OTHER: (sqlite3.OperationalError, "SQLITE_ERROR"),
}


def check(dialect: str, error: Condition | BaseException) -> None:
    """Raise ValueError for a condition that this database has no error for."""
    known = _RESULT_CODES if dialect == "sqlite" else _SQLSTATES
    if isinstance(error, Condition) and error is not Condition.CONNECTION_LOST and error not in known:
        raise ValueError(f"{dialect} has no error that means {error.name}")


def sqlstate(condition: Condition) -> str:
    """PostgreSQL's code for it."""
    return _SQLSTATES[condition]


def sqlite_error(condition: Condition, message: str = INJECTED) -> sqlite3.Error:
    """SQLite's exception for it."""
    cls, name = _RESULT_CODES[condition]
    error = cls(message)
    error.sqlite_errorname = name
    error.sqlite_errorcode = getattr(sqlite3, name)
    return error
