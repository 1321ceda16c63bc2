"""Results end with their unit: whoever fetches from one later gets `UnitOfWorkClosed`."""

from __future__ import annotations

import functools
from typing import Any, NoReturn

from ._messages import closed

_NAME = "uow_name"


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
    fetches = ("_fetchiter_impl", "_fetchone_impl", "_fetchall_impl", "_fetchmany_impl", "_raw_all_rows")
    return type(f"Sealed{cls.__name__}", (cls,), {"__slots__": (), **dict.fromkeys(fetches, _refuse)})
