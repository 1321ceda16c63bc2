"""Keys that have expired are removed, a few at a time, so that nobody waits long for it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import sleep, time
from typing import Any, Final

from sqlalchemy import text

from ..database import Database
from ._table import NAME

logger = logging.getLogger("uow")

_PAUSE: Final = 0.05  # seconds between two batches, in which others write
_NAME: Final = "sweep of idempotency keys"


def _statement(database: Database) -> Any:
    # A row that somebody takes over at this moment is locked, and lives on.
    skip = " FOR UPDATE SKIP LOCKED" if database.adapter.dialect == "postgresql" else ""
    return text(
        f'DELETE FROM {NAME} WHERE (principal, "key") IN (SELECT principal, "key" FROM {NAME} '
        f"WHERE expires_at <= :now ORDER BY expires_at LIMIT :batch{skip})"
    )


async def sweep(database: Database, *, batch: int = 200) -> int:
    """Remove all keys that have expired, each `batch` in a unit of its own; answers how many they were."""
    statement = _statement(database)
    removed = 0
    while True:
        async with database.new_unit(name=_NAME) as unit:
            result: Any = await unit.session.execute(statement, {"now": int(time()), "batch": batch})
            count: int = result.rowcount
        removed += count
        if count < batch:
            return removed
        await asyncio.sleep(_PAUSE)


def sweep_sync(database: Database, *, batch: int = 200) -> int:
    """The same through the sync driver."""
    statement = _statement(database)
    removed = 0
    while True:
        with database.new_unit(name=_NAME) as unit:
            result: Any = unit.sync_session.execute(statement, {"now": int(time()), "batch": batch})
            count: int = result.rowcount
        removed += count
        if count < batch:
            return removed
        sleep(_PAUSE)


@asynccontextmanager
async def sweeping(database: Database, *, every: float, batch: int = 200) -> AsyncGenerator[None]:
    """Sweep while the block runs, about every so many seconds; 0 is never.

    The pauses differ by up to a half, so that several processes do not do so at once. What fails is logged,
    and tried again the next time.
    """
    if not every > 0:
        yield
        return
    task = asyncio.ensure_future(_sweep_for_ever(database, every, batch))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def _sweep_for_ever(database: Database, every: float, batch: int) -> None:
    while True:
        await asyncio.sleep(every * random.uniform(0.5, 1.5))
        try:
            removed = await sweep(database, batch=batch)
        except Exception as error:
            logger.warning("the %s failed: %s", _NAME, error)
        else:
            logger.log(logging.INFO if removed else logging.DEBUG, "%s: %d removed", _NAME, removed)
