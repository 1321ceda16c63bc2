"""Which events there are: classes with a type and a subject, and what of an object leaves as data."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from string import Formatter
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

_LONGEST = 255  # characters of a type and of a subject, which is what their columns hold
# What HTTP headers, terminals and logs take as it is.
_TYPE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")

Kind = TypeVar("Kind", bound=type[Any])


@dataclass(frozen=True, slots=True)
class Declared:
    """What is said of a class of events where it is defined."""

    type: str
    subject: str
    dump: Callable[[Any], str]

    def subject_of(self, event: object) -> str:
        """What the event is about; ValueError if that is no text that can be kept."""
        subject = self.subject.format_map(_Attributes(event))
        if not subject or len(subject) > _LONGEST or not subject.isprintable():
            raise ValueError(f"{subject[:80]!r} is no subject: 1 to {_LONGEST} printable characters")
        return subject


_declared: WeakKeyDictionary[type, Declared] = WeakKeyDictionary()


def event(type: str, /, *, subject: str) -> Callable[[Kind], Kind]:
    """Declare a dataclass or a pydantic model as a type of events.

    `type` is the CloudEvents attribute of that name, such as "order.placed". `subject` says what an event is
    about, with the names of its fields in braces: "orders/{order_id}". Events of one subject leave in the
    order in which they were committed. Raises TypeError for another class and for a field that it has not,
    ValueError for a type that is none.
    """
    if len(type) > _LONGEST or not _TYPE.fullmatch(type):
        raise ValueError(f"{type!r} is no type of events: letters, digits and . _ - / between them")

    def declare(cls: Kind) -> Kind:
        fields, dump = _shape(cls)
        for _, name, _, _ in Formatter().parse(subject):
            root = re.split(r"[.\[]", name, maxsplit=1)[0] if name is not None else None
            if root is not None and root not in fields and not hasattr(cls, root):
                raise TypeError(f"{cls.__name__} has no {root or '{}'}, which its subject names")
        _declared[cls] = Declared(type, subject, dump)
        return cls

    return declare


def declared(event: object) -> Declared:
    """What was declared of the event's own class; TypeError, with the remedy, if nothing was."""
    cls = type(event)
    found = _declared.get(cls)
    if found is None:
        raise TypeError(
            f"{cls.__name__} is no declared event: write @event('some.type', subject='things/{{id}}') "
            f"above the class, a dataclass or a pydantic model; a subclass needs a line of its own"
        )
    return found


class _Attributes(dict[str, Any]):
    """The attributes of an event as `format_map` asks for them."""

    def __init__(self, event: object) -> None:
        self._event = event

    def __missing__(self, name: str) -> Any:
        return getattr(self._event, name)


def _shape(cls: type[Any]) -> tuple[set[str], Callable[[Any], str]]:
    """The fields of a class, and what makes JSON of its objects."""
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls)}, _dump_dataclass
    if hasattr(cls, "model_fields") and hasattr(cls, "model_dump_json"):  # pydantic need not be there
        return set(cls.model_fields), _dump_model
    raise TypeError(f"{cls.__name__} is neither a dataclass nor a pydantic model")


def _dump_model(event: Any) -> str:
    text: str = event.model_dump_json()
    return text


def _dump_dataclass(event: Any) -> str:
    return _ENCODER.encode(_fields_of(event))


def _fields_of(event: Any) -> dict[str, Any]:
    return {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}


def _plain(value: object) -> object:
    """What JSON has no word for, as pydantic writes it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_of(value)
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case Enum():
            return value.value
        case UUID() | Decimal():
            return str(value)
        case _:
            raise TypeError(
                f"a {type(value).__name__} cannot be written as JSON: give the event a field that can"
            )


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
