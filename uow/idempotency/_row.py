"""The row of a key, written in the unit of its request: first of all claimed, and last of all answered."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from json.encoder import encode_basestring_ascii as _quoted
from time import time
from typing import Any, Final

import anyio.to_thread
from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from .._connection import run
from .._greenlets import spawn
from .._sessions import UnitSession
from .._unit import UnitOfWork
from ._table import NAME

_ROWS: Final = "uow.idempotency"  # of a session: one for each middleware, and each has its header
_OF_THE_KEY: Final = 'principal = :principal AND "key" = :key'
_COLUMNS: Final = 'principal, "key", token, request, fingerprint, expires_at'
# Whoever meets the row of another transaction waits for its end here. One that has expired is taken over.
_TAKE_OVER: Final = (
    'ON CONFLICT (principal, "key") DO UPDATE SET token = excluded.token, request = excluded.request, '
    "fingerprint = excluded.fingerprint, expires_at = excluded.expires_at, status = NULL, headers = NULL, "
    f"body = NULL WHERE {NAME}.expires_at <= :now"
)
# The wait is bounded for this statement alone, at no trip of its own: what comes with WITH runs before the
# row is inserted, and the condition of the second SELECT, which never holds, after it. Rows that come back
# (RETURNING) would cost SQLAlchemy a twentieth of an insert.
_CLAIM: Final = {
    "postgresql": (
        "WITH bound AS MATERIALIZED (SELECT current_setting('lock_timeout') AS before, "
        "set_config('lock_timeout', CAST(:wait AS text), true)) "
        f"INSERT INTO {NAME} ({_COLUMNS}) SELECT CAST(:principal AS text), CAST(:key AS text), "
        "CAST(:token AS text), CAST(:request AS text), CAST(:fingerprint AS bytea), "
        "CAST(:expires_at AS bigint) FROM bound "
        "UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL FROM bound "
        f"WHERE set_config('lock_timeout', before, true) IS NULL {_TAKE_OVER}"
    ),
    "sqlite": (
        f"INSERT INTO {NAME} ({_COLUMNS}) VALUES (:principal, :key, :token, :request, :fingerprint, "
        f":expires_at) {_TAKE_OVER}"
    ),
}
_FIND: Final = f"SELECT fingerprint, status, headers, body FROM {NAME} WHERE {_OF_THE_KEY}"
_KEEP: Final = (
    f"UPDATE {NAME} SET status = :status, headers = :headers, body = :body, expires_at = :expires_at "
    f"WHERE {_OF_THE_KEY} AND token = :token"
)
_PARAMETER: Final = re.compile(r":(\w+)")
_BY_NAME: Final = ("pyformat", "named")
_MARKS: Final = {
    "numeric_dollar": "${number}",
    "numeric": ":{number}",
    "pyformat": "%({name})s",
    "format": "%s",
    "named": ":{name}",
    "qmark": "?",
}

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A row that somebody else has committed: whose request it is, and how that was answered."""

    fingerprint: bytes
    status: int
    headers: Headers
    body: bytes


class Row:
    """The row of one attempt of a request."""

    __slots__ = (
        "_answer", "_connection", "_request", "_ttl", "fingerprint", "is_sync", "key", "name", "owner",
        "unit",
    )  # fmt: skip

    def __init__(
        self, unit: UnitOfWork, owner: str, key: str, request: str, fingerprint: bytes, *, is_sync: bool
    ) -> None:
        self.unit = unit
        self.owner = owner
        self.key = key
        self.fingerprint = fingerprint
        self.is_sync = is_sync
        self._answer: Mapping[str, Any] | None = None
        self._connection: Connection | None = None
        self._ttl = 0
        self.name: Mapping[str, Any] = {"principal": owner, "key": key, "token": os.urandom(16).hex()}
        """What finds it; the `token` is that of this attempt."""
        self._request = request

    async def claim(self, *, ttl: float, wait: float) -> bool:
        """Write the row; False if there is one that has not expired.

        Waits for a transaction that has one, on PostgreSQL for at most `wait` seconds: then the statement
        is refused as a lock time-out is. On SQLite it waits for its turn to write, as every unit does.
        """
        now = int(time())
        self._ttl = int(ttl)
        dialect = self.unit.database.adapter.dialect
        parameters = {
            **self.name,
            "request": self._request,
            "fingerprint": self.fingerprint,
            "now": now,
            "expires_at": now + self._ttl,
        }
        if dialect == "postgresql":
            parameters["wait"] = str(max(1, int(wait * 1000)))  # 0 would be no bound
        written: int = await self._call(self._write, _CLAIM[dialect], parameters)
        return written == 1

    async def find(self) -> Stored | None:
        """The row that was in the way; None if it has gone since."""
        rows = await self._call(self._read, _FIND, self.name)
        if not rows:
            return None
        fingerprint, status, headers, body = rows[0]
        if status is None:
            raise RuntimeError(f"{self.unit.name}: the key {self.key!r} is kept without an answer")
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(headers)]
        return Stored(bytes(fingerprint), status, pairs, bytes(body))

    def keep(self, status: int, headers: Headers, body: bytes) -> None:
        """Have the answer written just before COMMIT; it is remembered from now on: work takes its time."""
        expires_at = int(time()) + self._ttl
        answer = {"status": status, "headers": _as_json(headers), "body": body, "expires_at": expires_at}
        self._answer = {**self.name, **answer}

    def write_answer(self) -> None:
        """Write it, in the greenlet or the thread of COMMIT; RuntimeError where there is none, or no row."""
        if self._answer is None:
            raise RuntimeError(
                f"{self.unit.name}: what would be committed has an idempotency key, and an answer that is "
                f"not the one which IdempotencyMiddleware has seen. Add what changes whether an answer "
                f"commits before IdempotencyMiddleware, so that it is inside of it, or after "
                f"UnitOfWorkMiddleware"
            )
        if self._write(_KEEP, self._answer) != 1:
            raise RuntimeError(
                f"{self.unit.name}: the row of its idempotency key is not there any more; leave the table "
                f"{NAME} to uow.idempotency"
            )

    async def _call(self, call: Callable[..., Any], statement: str, parameters: Mapping[str, Any]) -> Any:
        """What the call answers, in a greenlet or in a thread."""
        if not self.is_sync:
            return await spawn(call, statement, parameters)
        in_thread = partial(call, statement, parameters)
        return await anyio.to_thread.run_sync(in_thread, limiter=self.unit.database.limiter)

    def _write(self, statement: str, parameters: Mapping[str, Any]) -> int:
        """How many rows it has changed."""
        connection = self._open()
        return run(connection, *_in_words_of(connection, statement, parameters))

    def _read(self, statement: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows that it answers."""
        connection = self._open()
        return connection.exec_driver_sql(*_in_words_of(connection, statement, parameters)).all()

    def _open(self) -> Connection:
        """The connection: the session would flush first, and what that raises is for the unit to judge."""
        if self._connection is None:
            unit = self.unit
            session = unit.sync_session if self.is_sync else unit.session.sync_session
            self._connection = session.connection()
            session.info.setdefault(_ROWS, []).append(self)
        return self._connection


def _as_json(headers: Headers) -> str:
    """A list of pairs, without an encoder, which `json.dumps` would make for each answer."""
    pairs = [
        f"[{_quoted(name.decode('latin-1'))}, {_quoted(value.decode('latin-1'))}]" for name, value in headers
    ]
    return f"[{', '.join(pairs)}]"


@event.listens_for(UnitSession, "before_commit", insert=True)
def _before_commit(session: Session) -> None:
    """Commit no key without its answer: all who repeat the request would be told of a 500.

    Before other listeners: the outbox takes locks that others wait for, and has to be the last.
    """
    if not session.in_nested_transaction():
        rows: list[Row] = session.info.get(_ROWS, [])
        for row in rows:
            row.write_answer()


def _in_words_of(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> tuple[str, Any]:
    """Both as the driver takes them: to compile what never changes would double the cost of a key."""
    style = connection.dialect.paramstyle
    spelt, names = _spelt(statement, style)
    return spelt, parameters if style in _BY_NAME else tuple([parameters[name] for name in names])


@cache
def _spelt(statement: str, style: str) -> tuple[str, list[str]]:
    """The statement with the parameters as a driver marks them, and their names in order."""
    names: list[str] = []

    def mark(found: re.Match[str]) -> str:
        names.append(found[1])
        return _MARKS[style].format(number=len(names), name=found[1])

    return _PARAMETER.sub(mark, statement), names
