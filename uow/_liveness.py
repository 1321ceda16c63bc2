"""Connections that died while they were idle are found before a unit gets one of them (L7)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy import Dialect, Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from .engines import Adapter

logger = logging.getLogger("uow")

_IDLE = 1.0  # seconds; under load a connection rests for less, and no request pays for a round trip
_PATIENCE = 5.0  # seconds; a network that forgot the connection swallows the ping, and nobody answers
_SINCE = "uow_idle_since"


def watch_over_idle(engine: Engine, adapter: Adapter) -> None:
    """Ping a connection that was idle for over a second when it is handed out."""
    event.listen(engine, "checkin", _rests)
    event.listen(engine, "checkout", partial(_wakes, engine.dialect, adapter))


def _rests(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_SINCE] = monotonic()


def _wakes(
    dialect: Dialect, adapter: Adapter, connection: Any, record: ConnectionPoolEntry, _proxy: object
) -> None:
    """Raise what makes the pool throw away all that it had connected before, and connect anew."""
    since = record.info.get(_SINCE)
    if since is None or monotonic() - since < _IDLE:
        return
    hang_up = partial(adapter.hang_up, record.driver_connection)
    try:
        with _bounded(hang_up, asynchronous=dialect.is_async):
            dialect.do_ping(connection)
    except Exception as error:
        logger.info("an idle connection had died, and is replaced with all others of its age: %s", error)
        raise InvalidatePoolError from error


@contextmanager
def _bounded(hang_up: Callable[[], None], *, asynchronous: bool) -> Generator[None]:
    """End the link if what is done inside takes too long; neither driver can be asked to stop waiting."""
    is_late = False

    def end() -> None:
        nonlocal is_late
        is_late = True
        hang_up()

    timer: asyncio.TimerHandle | threading.Timer
    if asynchronous:
        timer = asyncio.get_running_loop().call_later(_PATIENCE, end)
    else:
        timer = threading.Timer(_PATIENCE, end)
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if is_late:  # answered at the last moment, and cut by then
        raise TimeoutError("a ping was not answered in time")
