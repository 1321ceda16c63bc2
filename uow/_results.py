"""Results belong to their unit: fetching takes turns, and ends with `UnitOfWorkClosed` when the unit does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from ._messages import closed

if TYPE_CHECKING:
    from ._watch import Watch

_NAME = "uow_name"
_WATCH = "uow_watch"
_FETCHES = ("_fetchone_impl", "_fetchall_impl", "_fetchmany_impl")
_ITERATES = "_fetchiter_impl"
_END = object()


def take_turns(result: Any, watch: Watch) -> None:
    """Make each fetch from a result that is still connected to the database a call like any other."""
    result.__dict__[_WATCH] = watch
    result.__class__ = _turn_taking(result.__class__)


@functools.cache
def _turn_taking(cls: Any) -> Any:
    """A subclass of a result's class that fetches inside the unit; it has the same layout."""
    fetches = {name: _fetching(getattr(cls, name)) for name in _FETCHES}
    iterates = _iterating(getattr(cls, _ITERATES))
    return type(cls.__name__, (cls,), {"__slots__": (), _ITERATES: iterates, **fetches})


def _fetching(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = self.__dict__[_WATCH]
        watch.enter_open()
        try:
            return plain(self, *args, **kwargs)
        finally:
            watch.give()

    return fetch


def _iterating(plain: Callable[..., Any]) -> Callable[..., Any]:
    def iterate(self: Any) -> Iterator[Any]:
        rows = plain(self)

        def next_row(_: Any) -> Any:
            return next(rows, _END)

        fetch = _fetching(next_row)
        while (row := fetch(self)) is not _END:
            yield row

    return iterate


def seal(result: Any, name: str) -> None:
    """Close a result and make it say whose it was.

    SQLAlchemy's own closed results raise ResourceClosedError, and exhausted ones return nothing; neither
    tells a reader of the log that a task has outlived its request.
    """
    if getattr(result, "_soft_closed", False):
        return
    try:
        result.close()
    finally:
        result.__dict__[_NAME] = name
        result.__class__ = _sealed(result.__class__)


def _refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise closed(self.__dict__[_NAME])


@functools.cache
def _sealed(cls: Any) -> Any:
    """A subclass of a result's class whose every fetch raises; it has the same layout."""
    fetches = dict.fromkeys((_ITERATES, *_FETCHES), _refuse)
    return type(f"Sealed{cls.__name__}", (cls,), {"__slots__": (), **fetches})
