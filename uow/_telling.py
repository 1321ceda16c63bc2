"""What the units of one database do, told to its observer; nothing is measured when there is none."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Engine

from .errors import UnitOfWorkError
from .observe import Settlement, UnitObserver
from .problems import PROBLEMS, misuse_of

if TYPE_CHECKING:
    from ._unit import UnitOfWork

logger = logging.getLogger("uow")


class Tap(Protocol):
    """Stands between the units and the database: `uow.testing` is one."""

    def engine_made(self, engine: Engine) -> None:
        """An engine is there, and has connected to nothing yet for who asks next."""
        ...

    def settled(self, unit: UnitOfWork) -> None:
        """A unit is over, and its callbacks have not run."""
        ...


@dataclass(slots=True)
class _Times:
    """When what began, of one unit."""

    opened: float
    waited: float = 0.0
    settles: float | None = None


class Telling:
    """The listeners of one database."""

    def __init__(self, observer: UnitObserver | None) -> None:
        self.observer = observer
        self.tap: Tap | None = None
        self._times: dict[UnitOfWork, _Times] = {}

    def opened(self, unit: UnitOfWork) -> None:
        """The unit has a session."""
        if self.observer is not None:
            self._times[unit] = _Times(perf_counter())
            _tell(self.observer.opened, unit)

    def connected(self, unit: UnitOfWork, waited: float) -> None:
        """The unit has a connection."""
        if self.observer is not None:
            times = self._times.get(unit, _Times(0.0))  # a late thread's unit may be over just now
            times.waited = times.waited or waited
            _tell(self.observer.connected, unit, waited)

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        """The unit has sent something."""
        if self.observer is not None:
            _tell(self.observer.statement, unit, seconds)

    def settles(self, unit: UnitOfWork) -> None:
        """The end of the unit has begun."""
        if self.observer is not None and (times := self._times.get(unit)) is not None:
            times.settles = perf_counter()

    def settled(self, unit: UnitOfWork) -> None:
        """The unit is over."""
        if self.tap is not None:
            _tell(self.tap.settled, unit)
        if self.observer is not None:
            _tell(self.observer.settled, unit, _settlement(unit, self._times.pop(unit, None)))

    def client_gone(self, unit: UnitOfWork) -> None:
        """The client has left."""
        if self.observer is not None:
            _tell(self.observer.client_gone, unit)


def _tell(call: Callable[..., None], *what: Any) -> None:
    try:
        call(*what)
    except Exception:
        logger.exception("the observer failed in %r", call)


def _settlement(unit: UnitOfWork, times: _Times | None) -> Settlement:
    now = perf_counter()
    times = times or _Times(now)
    assert unit.outcome is not None  # this is what it is told for
    return Settlement(
        outcome=unit.outcome,
        reason=None if unit.outcome == "committed" else _reason(unit, sys.exception()),
        attempt=unit.attempt,
        lasted=now - times.opened,
        waited=times.waited,
        settled_for=now - (times.settles or now),
    )


def _reason(unit: UnitOfWork, handled: BaseException | None) -> str:
    """Why a unit was not committed, from the nearest cause to the farthest."""
    if unit.failure is None and unit.is_rollback_only:
        return "rollback-only"
    for error in (unit.failure, handled):
        if isinstance(error, UnitOfWorkError):
            return misuse_of(error).name
        if error is not None and (condition := unit.condition(error)) is not None:
            return PROBLEMS[condition].name
    if isinstance(handled, asyncio.CancelledError):
        return "cancelled"
    return "answer" if handled is None else type(handled).__name__
