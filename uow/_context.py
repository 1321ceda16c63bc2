"""The unit of work that the running code belongs to, found through a context variable.

The variable holds a mutable `Place`, set once and never again: what is set in a thread or a child task
does not come back to the request, but a change to the place does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from .errors import NoUnitOfWork

if TYPE_CHECKING:
    from ._unit import UnitOfWork
    from .database import Database

_NOWHERE = (
    "there is no unit of work here: a request has one where UnitOfWorkMiddleware is installed; other code "
    "opens its own with `async with database.new_unit():` (or `with`)"
)
AFTERWARDS = (
    "there is no unit of work here any more: the answer is out, and its unit was settled before. Background "
    "tasks and tasks that outlive their request open their own with `async with new_unit():` (or `with`)"
)
_WEBSOCKET = (
    "a WebSocket has no unit of work of its own: open one for each message with `async with new_unit():` "
    "(or `with`)"
)


class Place(ABC):
    """Where code runs: the database of its app, and the unit if there is one."""

    __slots__ = ()

    unit: UnitOfWork | None

    @property
    @abstractmethod
    def database(self) -> Database:
        """The database of the app."""

    @abstractmethod
    def current(self) -> UnitOfWork:
        """The unit of this place; NoUnitOfWork, with the remedy, if it has none."""


class Block(Place):
    """Inside of `new_unit()`, or, without a unit, inside of a WebSocket."""

    __slots__ = ("_database", "unit")

    def __init__(self, database: Database, unit: UnitOfWork | None) -> None:
        self._database = database
        self.unit = unit

    @property
    def database(self) -> Database:
        return self._database

    def current(self) -> UnitOfWork:
        if self.unit is None:
            raise NoUnitOfWork(_WEBSOCKET)
        return self.unit


_place: ContextVar[Place] = ContextVar("uow_place")


enter = _place.set
"""Make this the place of the code that runs from here on in this context; returns the token to leave by."""
leave = _place.reset
"""Go back; to be called in the frame that entered."""


def current_place() -> Place:
    """Where the running code is; NoUnitOfWork, with the remedy, outside of everything."""
    try:
        return _place.get()
    except LookupError:
        raise NoUnitOfWork(_NOWHERE) from None


def unit_around() -> UnitOfWork | None:
    """The unit that the running code is inside of, if there is one."""
    place = _place.get(None)
    return None if place is None else place.unit


def current_unit() -> UnitOfWork:
    """The running unit of work; raises NoUnitOfWork, with the remedy, where there is none."""
    return current_place().current()


def current_session() -> AsyncSession:
    """The async session of the running unit, made on the first call; the first SQL takes a connection.

    Raises NoUnitOfWork outside a unit, UnitOfWorkClosed after it was settled, and MixedSessions if the
    unit has a sync session.
    """
    return current_unit().session


def current_sync_session() -> Session:
    """The sync session of the running unit, for `def` endpoints; otherwise as `current_session()`."""
    return current_unit().sync_session


def on_commit(callback: Callable[[], Any]) -> None:
    """Call `callback` once the running unit is committed: see `UnitOfWork.on_commit`."""
    current_unit().on_commit(callback)
