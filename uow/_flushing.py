"""What one task changes while a flush of another is writing it is found, and not lost.

After a flush SQLAlchemy takes all that was flushed for clean, also an attribute that was set after the
statement had been built. Within one task that cannot be; between gathered tasks it can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import instance_state

_WATCHED = 100  # objects; each is looked at twice a statement, so more would cost more than their flush


class Flushing:
    """The objects of a flush that is under way."""

    __slots__ = ("_objects",)

    def __init__(self, session: Session) -> None:
        objects = [*session.new, *session.dirty]
        self._objects = objects if len(objects) <= _WATCHED else []

    def watching(self, execute: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, object]:
        """The answer of a statement, and an object that somebody has changed while it ran; None if none."""
        before = [_values(found) for found in self._objects]
        answer = execute(*args, **kwargs)
        pairs = zip(self._objects, before, strict=True)
        return answer, next((found for found, values in pairs if _changed(found, values)), None)


def _values(found: object) -> tuple[dict[str, Any], int]:
    return found.__dict__.copy(), len(instance_state(found).committed_state)


def _changed(found: object, before: tuple[dict[str, Any], int]) -> bool:
    values, changes = _values(found)
    old, old_changes = before
    return (
        changes != old_changes
        or values.keys() != old.keys()
        or any(values[name] is not value for name, value in old.items())
    )
