"""A COMMIT whose answer was lost, of a unit with a key: what became of it is read from the key's row.

The row has the token of this very attempt, so that it says the truth after a failover as well, of whatever
database there then is. No trip before COMMIT is needed for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from time import monotonic, sleep
from typing import Any, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from ._table import NAME

logger = logging.getLogger("uow")

_SECONDS: Final = 5.0
_PAUSE: Final = 0.05  # between two questions while the server is busy with the COMMIT, or away
_LEVEL: Final = "READ COMMITTED"  # the second statement has to see what the first one did not

_LOOK: Final = text(f'SELECT token FROM {NAME} WHERE principal = :principal AND "key" = :key')
# Waits for whoever is about to commit this row; answers its token, or that of the row which it could make
# itself, because there was none. It is rolled back.
_TRY: Final = text(
    f"WITH bound AS MATERIALIZED (SELECT set_config('lock_timeout', '{_SECONDS * 1000:.0f}', true)) "
    f'INSERT INTO {NAME} (principal, "key", token, request, fingerprint, expires_at) '
    "SELECT CAST(:principal AS text), CAST(:key AS text), '', '', '', 0 FROM bound "
    f'ON CONFLICT (principal, "key") DO UPDATE SET token = {NAME}.token RETURNING token'
)


@dataclass(frozen=True, slots=True)
class Lost:
    """Asks PostgreSQL for the row of one attempt, for at most five seconds."""

    row: Mapping[str, Any]

    def identify(self, connection: Connection) -> None:
        """Nothing has to be asked before COMMIT: the row is named already."""

    async def ask(self, engine: AsyncEngine, transaction: Any) -> bool | None:
        """Whether the attempt was committed; None if that cannot be learnt in time."""
        # A driver that waits for a dead network does not always heed a time-out: it is left behind.
        asking = asyncio.ensure_future(self._ask(engine))
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            done, _ = await asyncio.wait({asking}, timeout=_SECONDS)
        finally:
            asking.cancel()
        return asking.result() if done else None

    def ask_sync(self, engine: Engine, transaction: Any) -> bool | None:
        """The same in a thread."""
        answer: Future[bool | None] = Future()

        def ask() -> None:
            answer.set_result(self._ask_sync(engine))

        Thread(target=ask, name="uow-idempotency", daemon=True).start()
        with suppress(TimeoutError):
            return answer.result(_SECONDS)
        return None

    async def _ask(self, engine: AsyncEngine) -> bool:
        while True:
            try:
                async with engine.connect() as connection:
                    return await connection.run_sync(self._was_kept)
            except (SQLAlchemyError, OSError) as error:
                _not_now(error)
            await asyncio.sleep(_PAUSE)

    def _ask_sync(self, engine: Engine) -> bool | None:
        until = monotonic() + _SECONDS
        while monotonic() < until:
            try:
                with engine.connect() as connection:
                    return self._was_kept(connection)
            except (SQLAlchemyError, OSError) as error:
                _not_now(error)
            sleep(_PAUSE)
        return None

    def _was_kept(self, connection: Connection) -> bool:
        """The row that is there is asked first: a standby that is about to be promoted takes no writes."""
        connection = connection.execution_options(isolation_level=_LEVEL)  # the engine's is AUTOCOMMIT
        token = self.row["token"]
        if connection.scalar(_LOOK, self.row) == token:
            return True
        found = connection.scalar(_TRY, self.row)
        connection.rollback()
        return bool(found == token)


def _not_now(error: Exception) -> None:
    logger.info("the row of an idempotency key cannot be asked for now: %s", error)
