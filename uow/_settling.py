"""What happens when a handler settles its unit itself: refused, or, for code that moves over, a flush."""

from __future__ import annotations

import inspect
import logging
import os
from pathlib import Path
from typing import Literal

import sqlalchemy
from greenlet import getcurrent

from ._messages import settle_refused

HandlersSettle = Literal["refuse", "flush"]

logger = logging.getLogger("uow")

_NOT_A_HANDLER = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, sqlalchemy.__file__))


class HandlersSettling:
    """What one database does about it."""

    def __init__(self, *, flush: bool) -> None:
        self._flush = flush
        self._told: set[tuple[str, int]] = set()

    def tried(self, name: str, call: str) -> None:
        """Raise SettleRefused; or log, once for each place in the code, that it is a flush."""
        if not self._flush:
            raise settle_refused(name, call)
        place = _place_of_call()
        if place not in self._told:
            self._told.add(place)
            logger.warning(
                "%s: %s at %s:%d only flushes, or sets a savepoint: the unit of work commits when the answer "
                "is 2xx or 3xx. Write flush(), or begin_nested(), or nothing",
                name,
                call,
                *place,
            )


def _place_of_call() -> tuple[str, int]:
    """File and line of the code that called the session, seen from inside of the session."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_A_HANDLER):
        caller = frame.f_back
        if caller is None:  # the first frame of the greenlet: a task awaits the call in another one
            waiting = getcurrent().parent
            caller = None if waiting is None else waiting.gr_frame
        frame = caller
    assert frame is not None  # somebody has called, and it was none of us
    return frame.f_code.co_filename, frame.f_lineno
