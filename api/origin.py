"""Where the values of the configuration came from, to name the place of a wrong one."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from api.section import CONFLICT, EMPTY

# The way to a value: section, key, and below a list of tables the number of the table and its key.
Place = tuple[str | int, ...]
Values = Mapping[str, Mapping[str, object]]

# Somebody may have written an API key there, where its hash belongs: what is wrong is not repeated.
_NOT_REPEATED = ("security", "keys")


@dataclass(frozen=True, slots=True)
class Origin:
    """The file, the options, and the names of the variables and secret files that values came from."""

    model: type[BaseModel]
    path: Path | None = None
    text: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    options: Values = field(default_factory=dict)
    variables: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """The name of the environment variable of a section and key."""
    secrets: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    """The secret file of a section and key."""

    def message(self, fault: Mapping[str, Any]) -> str:
        """The place, the name of the key, and what is wrong with it."""
        location: Place = fault["loc"]
        if fault["type"] == CONFLICT:  # of two keys; the fault knows which of them is to be changed
            location = (fault["ctx"]["section"] or location[0], *fault["ctx"]["key"])
        if fault["type"] == "missing":  # there is no line of what is not there
            return f"{self.place(*location[:-1])}: {self._name(location)}: is missing"
        return self.wrong(location, self._reason(location, fault))

    def wrong(self, location: Place, reason: str) -> str:
        """The message for a value that is in order by itself, and cannot be used."""
        return f"{self.place(*location)}: {self._name(location)}: {reason}"

    def of_value(self, section: str, key: str) -> str:
        """Where the value of a key came from, in words."""
        elsewhere = self._elsewhere(section, key)
        in_file = key in self.values.get(section, {})
        return elsewhere or (self.place(section, key) if in_file else "default")

    def is_from_secret(self, section: str, key: str) -> bool:
        """Whether the value of a key is that of a secret file."""
        return (self._elsewhere(section, key) or "").startswith("secret file ")

    def place(self, *location: str | int) -> str:
        """Where a value stands, or where it would have to be written."""
        section, key = str(location[0]), str(location[1]) if len(location) > 1 else ""
        if elsewhere := self._elsewhere(section, key):
            return elsewhere
        if self.path is None:
            return "defaults"
        lines = lines_of(self.text)
        ends = (location[:end] for end in range(len(location), 0, -1))
        line = next((lines[each] for each in ends if each in lines), None)
        return f"{self.path}, line {line}" if line else str(self.path)

    def _elsewhere(self, section: str, key: str) -> str | None:
        """Where a value came from that did not come from the file; what wins is asked first."""
        if key in self.options.get(section, {}):
            return f"option --{key}"
        if variable := self.variables.get((section, key)):
            return f"environment variable {variable}"
        if secret := self.secrets.get((section, key)):
            return f"secret file {secret}"
        return None

    def _name(self, location: Place) -> str:
        section, *rest = location
        if len(rest) > 1 and isinstance(rest[1], int) and keys_at(self.model, location[:3]):
            key, number, *rest = rest
            table = f"[[{section}.{key}]] {str(key).removesuffix('s')} {int(number) + 1}"
            return ", ".join([table, *map(_spelt, rest)])
        return " ".join([f"[{section}]", *map(_spelt, rest)])

    def _reason(self, location: Place, fault: Mapping[str, Any]) -> str:
        if fault["type"] == "extra_forbidden":
            kind = "section" if len(location) == 1 else "key"
            return f"unknown {kind}{guess(str(location[-1]), keys_at(self.model, location[:-1]))}"
        if fault["type"] in {"model_type", "model_attributes_type"}:
            return "is a section, not a value" if len(location) == 1 else "is a table, not a value"
        if fault["type"] in {"tuple_type", "list_type"}:
            return "is a list; in a variable and in a secret file it is written as JSON"
        reason = str(fault["msg"]).removeprefix("Value error, ")
        section, key = str(location[0]), str(location[1]) if len(location) > 1 else ""
        hidden = is_secret(self.model, location) or self.is_from_secret(section, key)
        hidden = hidden or (section, key) == _NOT_REPEATED
        if fault["type"] in {CONFLICT, EMPTY} or hidden:
            return reason
        return f"{reason} (it is {fault['input']!r})"


def keys_at(model: type[BaseModel] | None, location: Place) -> list[str]:
    """The keys that there can be at a place; empty where it is none of tables and sections."""
    for part in location:
        if model is None:
            return []
        if isinstance(part, str):
            info = model.model_fields.get(part)
            model = _model_in(info.annotation) if info else None
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a type is, or that its list is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


def is_secret(model: type[BaseModel] | None, location: Place) -> bool:
    """Whether a value at this place, or around it, is never to be printed."""
    for part in location:
        if isinstance(part, str) and model is not None:
            info = model.model_fields.get(part)
            if info is not None and not info.repr:
                return True
            model = _model_in(info.annotation) if info else None
    return False


def guess(name: str, known: Iterable[str]) -> str:
    """The known name that was meant, or all of them."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _spelt(part: str | int) -> str:
    return f"number {part + 1}" if isinstance(part, int) else part


@lru_cache(maxsize=1)
def lines_of(text: str) -> dict[Place, int]:
    """The line of every section, table and key of a TOML document that is in order.

    A statement ends with the first line that makes it TOML by itself, so each is read alone.
    """
    found: dict[Place, int] = {}
    tables: dict[Place, int] = {}
    header: Place = ()
    for line, source in _statements(text.replace("\r\n", "\n").split("\n")):
        statement = tomllib.loads(source)
        if source.lstrip().startswith("["):
            header = _opened(statement, tables)
            found.setdefault(header[:1], line)
            found.setdefault(header, line)
        else:
            for place in _places(statement):
                found.setdefault(header + place, line)
    return found


def _statements(lines: list[str]) -> Iterator[tuple[int, str]]:
    start = 0
    for end in range(1, len(lines) + 1):
        source = "\n".join(lines[start:end])
        try:
            tomllib.loads(source)
        except tomllib.TOMLDecodeError:
            continue  # it goes on in the next line
        yield start + 1, source
        start = end


def _opened(statement: dict[str, Any], tables: dict[Place, int]) -> Place:
    """The place that a header opens; the last table of a list is the one that is meant later."""
    place: Place = ()
    node: Any = statement
    while node:
        ((key, node),) = node.items()
        place = (*place, key)
        if isinstance(node, list):
            node = None
            tables[place] = tables.get(place, -1) + 1
        if place in tables:
            place = (*place, tables[place])
    return place


def _places(node: Any, place: Place = ()) -> Iterator[Place]:
    if place:
        yield place
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, each in below:
        yield from _places(each, (*place, key))
