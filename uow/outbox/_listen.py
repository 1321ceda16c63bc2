"""Waking up when something was published: PostgreSQL tells it, on a connection of its own.

NOTIFY is a part of the statement that writes the events, and is heard when that transaction has committed
(https://www.postgresql.org/docs/current/sql-notify.html). It is a hint: who misses it looks a bit later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool

from .._options import UnitOptions
from ..database import Database
from ._table import CHANNEL

logger = logging.getLogger("uow")

_LOOK = 15.0  # seconds after which a connection that says nothing is asked whether it is there
_PAUSE = 5.0  # seconds after which a lost one is replaced
_GRACE = 0.5  # seconds for which who is stopped waits for one that is being made
_left: set[asyncio.Task[None]] = set()  # an event loop itself holds its tasks weakly


def can_listen(database: Database) -> bool:
    """Whether this database tells of anything."""
    return database.adapter.dialect == "postgresql"


async def listen(database: Database, told: Callable[[], None]) -> None:
    """Call `told` for each notification, and where some may have been missed; until it is cancelled.

    Returns where a pooler stands before the server: LISTEN would stay with a connection of others.
    """
    while True:
        try:
            await _listen(database, told)
            logger.warning(
                "the outbox cannot listen through a pooler, and looks from time to time: say listens=False"
            )
            return
        except (SQLAlchemyError, OSError) as error:
            logger.info("the outbox cannot listen, and looks from time to time: %s", error)
        except Exception as error:
            if not database.adapter.is_drivers(error):
                raise
            logger.info("the outbox does not hear any more, and looks from time to time: %s", error)
        await asyncio.sleep(_PAUSE)


async def _listen(database: Database, told: Callable[[], None]) -> None:
    """Returns, at once, where one must not."""
    connection = await _connected(_engine(database))
    try:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        is_asyncpg = hasattr(driver, "add_listener")
        # A pooler tells who connects a process of its own invention, because the real one may change.
        process = driver.get_server_pid() if is_asyncpg else driver.info.backend_pid
        if await connection.scalar(text("SELECT pg_backend_pid()")) != process:
            return
        await connection.exec_driver_sql(f"LISTEN {CHANNEL}")
        told()
        await (_with_asyncpg if is_asyncpg else _with_psycopg)(driver, told)
    finally:
        await asyncio.shield(connection.close())


async def _connected(engine: AsyncEngine) -> AsyncConnection:
    """A new connection. Cancelled, the attempt goes on, and what it makes is closed.

    Were it cancelled itself, SQLAlchemy would forget a connection that is being set up, and leave it open.
    Nobody waits long for a server that does not answer: the driver gives it up when its own time is over.
    """
    making = asyncio.ensure_future(engine.connect().start())
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        closing = asyncio.create_task(_close(making), name="outbox: a connection nobody wants")
        _left.add(closing)
        closing.add_done_callback(_left.discard)
        await asyncio.wait((closing,), timeout=_GRACE)
        raise


async def _close(making: asyncio.Future[AsyncConnection]) -> None:
    with suppress(Exception):
        await (await making).close()


def _engine(database: Database) -> AsyncEngine:
    """The reader's, with a connection that is no place in the pool which others wait for."""
    made = database.engine(UnitOptions(True, None, frozenset(), False), asynchronous=True).sync_engine
    creator = made.pool._creator  # it has no other name
    engine = Engine(NullPool(creator, dialect=made.dialect), made.dialect, made.url)
    return AsyncEngine(engine.execution_options(isolation_level="AUTOCOMMIT"))


async def _with_asyncpg(driver: Any, told: Callable[[], None]) -> None:
    await driver.add_listener(CHANNEL, _telling(told))
    while True:
        await asyncio.sleep(_LOOK)
        await driver.execute("SELECT 1")


async def _with_psycopg(driver: Any, told: Callable[[], None]) -> None:
    while True:
        async for _ in driver.notifies(timeout=_LOOK):
            told()
        await driver.execute("SELECT 1")


def _telling(told: Callable[[], None]) -> Callable[..., None]:
    """What asyncpg calls with the connection, its process, the channel and the payload."""

    def call(*_: object) -> None:
        told()

    return call
