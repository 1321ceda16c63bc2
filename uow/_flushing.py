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
        before = [(found, found.__dict__.copy(), _changes(found)) for found in self._objects]
        answer = execute(*args, **kwargs)
        for found, values, changes in before:
            if changes != _changes(found) or _differs(values, found.__dict__):
                return answer, found
        return answer, None


def _changes(found: object) -> int:
    return len(instance_state(found).committed_state)


def _differs(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return len(before) != len(after) or any(
        after.get(name, before) is not value for name, value in before.items()
    )
