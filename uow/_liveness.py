"""Connections that died while they were idle are found before a unit gets one of them (L7)."""

from __future__ import annotations

import logging
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy import Dialect, Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

logger = logging.getLogger("uow")

_IDLE = 1.0  # seconds; under load a connection rests for less, and no request pays for a round trip
_SINCE = "uow_idle_since"


def watch_over_idle(engine: Engine) -> None:
    """Ping a connection that was idle for over a second when it is handed out."""
    event.listen(engine, "checkin", _rests)
    event.listen(engine, "checkout", partial(_wakes, engine.dialect))


def _rests(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_SINCE] = monotonic()


def _wakes(dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Raise what makes the pool throw away all that it had connected before, and connect anew."""
    since = record.info.get(_SINCE)
    if since is None or monotonic() - since < _IDLE:
        return
    try:
        dialect.do_ping(connection)
    except Exception as error:
        logger.info("an idle connection had died, and is replaced with all others of its age: %s", error)
        raise InvalidatePoolError from error
