"""A connection to PostgreSQL that is asked again and again: to connect costs far more than a query."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow


class KeptConnection:
    """Connects when it is first asked, and anew where the server has been restarted meanwhile.

    Threads may share it, and wait for each other.
    """

    def __init__(self, connect: Callable[[], Connection[TupleRow]]) -> None:
        self._connect = connect
        self._connection: Connection[TupleRow] | None = None
        self._lock = threading.RLock()

    def query(self, sql: str, params: Sequence[Any] | None) -> list[tuple[Any, ...]]:
        """The rows of a query, which is asked again if the connection was lost."""
        with self._lock:
            try:
                return self._rows(sql, params)
            except psycopg.OperationalError:
                if self._connection is None or not self._connection.broken:
                    raise
                self.close()
                return self._rows(sql, params)

    def _rows(self, sql: str, params: Sequence[Any] | None) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection.execute(sql.encode(), params).fetchall()

    def close(self) -> None:
        """Leave the server; the next query connects again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
