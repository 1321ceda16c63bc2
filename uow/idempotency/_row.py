"""The row of a key, written in the unit of its request: first of all claimed, and last of all answered."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from time import time
from typing import Any, Final

import anyio.to_thread
from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from .._greenlets import spawn
from .._sessions import UnitSession
from .._unit import UnitOfWork
from .._watch import work_of
from ..engines.postgresql import literal
from ..errors import ConcurrentUse
from ._table import NAME

_KEY: Final = "uow.idempotency"
_OF_THE_KEY: Final = 'principal = :principal AND "key" = :key'
_COLUMNS: Final = 'principal, "key", token, request, fingerprint, expires_at'
# Whoever meets the row of another transaction waits for its end here. One that has expired is taken over.
_TAKE_OVER: Final = (
    'ON CONFLICT (principal, "key") DO UPDATE SET token = excluded.token, request = excluded.request, '
    "fingerprint = excluded.fingerprint, expires_at = excluded.expires_at, status = NULL, headers = NULL, "
    f"body = NULL WHERE {NAME}.expires_at <= :now"
)
# The wait is bounded for this statement alone, at no trip of its own: what comes with WITH runs before the
# first row is inserted, and what is RETURNING runs after it.
_CLAIM: Final = {
    "postgresql": (
        "WITH bound AS MATERIALIZED (SELECT current_setting('lock_timeout') AS before, "
        "set_config('lock_timeout', CAST(:wait AS text), true)) "
        f"INSERT INTO {NAME} ({_COLUMNS}) SELECT CAST(:principal AS text), CAST(:key AS text), "
        "CAST(:token AS text), CAST(:request AS text), CAST(:fingerprint AS bytea), "
        f"CAST(:expires_at AS bigint) FROM bound {_TAKE_OVER} "
        "RETURNING (SELECT set_config('lock_timeout', before, true) FROM bound)"
    ),
    "sqlite": (
        f"INSERT INTO {NAME} ({_COLUMNS}) VALUES (:principal, :key, :token, :request, :fingerprint, "
        f":expires_at) {_TAKE_OVER} RETURNING token"
    ),
}
_FIND: Final = f"SELECT fingerprint, status, headers, body FROM {NAME} WHERE {_OF_THE_KEY}"
# The whole row, because a handler may have emptied the table: the answer is kept all the same.
_KEEP: Final = (
    f"INSERT INTO {NAME} ({_COLUMNS}, status, headers, body) VALUES (:principal, :key, :token, :request, "
    ":fingerprint, :expires_at, :status, :headers, :body) "
    'ON CONFLICT (principal, "key") DO UPDATE SET status = excluded.status, headers = excluded.headers, '
    "body = excluded.body, expires_at = excluded.expires_at"
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
Outcome = tuple[list[Any], int]


@dataclass(frozen=True, slots=True)
class Stored:
    """A row that somebody else has committed: whose request it is, and how that was answered."""

    fingerprint: bytes
    status: int
    headers: Headers
    body: bytes


class Row:
    """The row of one attempt of a request."""

    __slots__ = ("_connection", "_parameters", "_ttl", "is_kept", "is_sync", "unit")

    def __init__(
        self, unit: UnitOfWork, owner: str, key: str, request: str, print_: bytes, *, is_sync: bool
    ) -> None:
        self.unit = unit
        self.is_sync = is_sync
        self.is_kept = False
        self._connection: Connection | None = None
        self._ttl = 0
        self._parameters: Mapping[str, Any] = {
            "principal": owner,
            "key": key,
            "token": os.urandom(16).hex(),
            "request": request,
            "fingerprint": print_,
        }

    @property
    def name(self) -> Mapping[str, Any]:
        """What finds it: `principal`, `key`, and the `token` of this attempt."""
        return {name: self._parameters[name] for name in ("principal", "key", "token")}

    async def claim(self, *, ttl: float, wait: float) -> bool:
        """Write the row; False if there is one that has not expired.

        Waits for a transaction that has one, on PostgreSQL for at most `wait` seconds: then the statement
        is refused as a lock time-out is. On SQLite it waits for its turn to write, as every unit does.
        """
        now = int(time())
        self._ttl = int(ttl)
        dialect = self.unit.database.adapter.dialect
        parameters = {**self._parameters, "now": now, "expires_at": now + self._ttl}
        if dialect == "postgresql":
            parameters["wait"] = str(max(1, int(wait * 1000)))  # 0 would be no bound
        rows, _ = await self._run(_CLAIM[dialect], parameters)
        return bool(rows)

    async def find(self) -> Stored | None:
        """The row that was in the way; None if it has gone since."""
        rows, _ = await self._run(_FIND, self.name)
        if not rows:
            return None
        fingerprint, status, headers, body = rows[0]
        if status is None:
            raise RuntimeError(f"{self.unit.name}: the key {self.name['key']!r} is kept without an answer")
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(headers)]
        return Stored(bytes(fingerprint), status, pairs, bytes(body))

    async def keep(self, status: int, headers: Headers, body: bytes) -> None:
        """Have the answer in the row when the unit is committed.

        It goes out with COMMIT where it can, and elsewhere a trip before it. It is remembered from now on:
        the work may have taken longer than that.
        """
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        answer = {"status": status, "headers": json.dumps(pairs), "body": body}
        answer["expires_at"] = int(time()) + self._ttl
        parameters = {**self._parameters, **answer}
        if not self._keep_with_commit(parameters):
            await self._run_last(_KEEP, parameters)
        self.is_kept = True

    def _keep_with_commit(self, parameters: Mapping[str, Any]) -> bool:
        connection = self._connection
        work = work_of(connection)
        if connection is None or work is None or not work.adapter.sends_with_commit(connection):
            return False
        work.with_commit += f"{_PARAMETER.sub(lambda mark: literal(parameters[mark[1]]), _KEEP)}; "
        return True

    async def _run_last(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """Run a statement after the handler; whom it has left inside of the session is not waited for."""
        seconds = self.unit.database.settle_timeout
        try:
            async with asyncio.timeout(seconds):
                await self._run(statement, parameters)
        except TimeoutError as late:
            raise ConcurrentUse(
                f"{self.unit.name}: the answer to its idempotency key could not be stored within {seconds:g} "
                f"seconds, because a task was still inside the session or the database did not answer"
            ) from late

    async def _run(self, statement: str, parameters: Mapping[str, Any]) -> Outcome:
        """The rows that it answers, and how many it has changed."""
        if not self.is_sync:
            outcome: Outcome = await spawn(self._execute, statement, parameters)
            return outcome
        execute = partial(self._execute, statement, parameters)
        return await anyio.to_thread.run_sync(execute, limiter=self.unit.database.limiter)

    def _execute(self, statement: str, parameters: Mapping[str, Any]) -> Outcome:
        """On the connection: the session would flush first, and what that raises is for the unit to judge.

        In the driver's own words: to compile what never changes would double the cost of a key.
        """
        connection = self._connection
        if connection is None:
            unit = self.unit
            session = unit.sync_session if self.is_sync else unit.session.sync_session
            connection = self._connection = session.connection()
            session.info[_KEY] = self
        style = connection.dialect.paramstyle
        spelt, names = _spelt(statement, style)
        given: Any = parameters if style in _BY_NAME else tuple([parameters[name] for name in names])
        result = connection.exec_driver_sql(spelt, given)
        return ([*result] if result.returns_rows else []), result.rowcount


@event.listens_for(UnitSession, "before_commit")
def _before_commit(session: Session) -> None:
    """Refuse to commit a key without its answer: all who repeat the request would be told of a 500."""
    row: Row | None = session.info.get(_KEY)
    if row is not None and not row.is_kept and not session.in_nested_transaction():
        raise RuntimeError(
            f"{row.unit.name}: what would be committed has an idempotency key, and an answer that is not the "
            f"one which IdempotencyMiddleware has seen. Add what changes whether an answer commits before "
            f"IdempotencyMiddleware, so that it is inside of it, or after UnitOfWorkMiddleware"
        )


@cache
def _spelt(statement: str, style: str) -> tuple[str, list[str]]:
    """The statement with the parameters as a driver marks them, and their names in order."""
    names: list[str] = []

    def mark(found: re.Match[str]) -> str:
        names.append(found[1])
        return _MARKS[style].format(number=len(names), name=found[1])

    return _PARAMETER.sub(mark, statement), names
