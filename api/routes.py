"""The routes of an app with the options of their units, and who has set each of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from fastapi import FastAPI

# The marks of a decorator are read by the function that reads them for a request, so that what is
# shown is what happens.
from uow._options import UnitOptions, options_of
from uow.middleware import UnitOfWorkMiddleware

_UNTOUCHED: Any = object()


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a unit."""

    name: str
    value: Any
    origin: str

    @property
    def is_set(self) -> bool:
        return self.value not in (None, False, [])

    def __str__(self) -> str:
        value = "" if self.value is True else f"={self.value}"
        return f"{self.name}{value} ({self.origin})"


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path, and the unit that its requests get."""

    method: str
    path: str
    options: tuple[Option, ...]


def routes_of(app: FastAPI) -> list[Route]:
    """Every route in the order of the paths; HEAD is left out where there is a GET."""
    added: list[Any] = [*app.user_middleware]
    (ours,) = [each for each in added if each.cls is UnitOfWorkMiddleware]
    made = UnitOfWorkMiddleware(app, **ours.kwargs)
    found: list[Route] = []
    for route in _flat(app.routes):
        methods = route.methods or set[str]()
        if "GET" in methods:
            methods = methods - {"HEAD"}
        found += [Route(method, route.path, _options(made, route.endpoint, method)) for method in methods]
    return sorted(found, key=lambda route: (route.path, route.method))


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # how FastAPI shows an included router
            yield from _flat(route.effective_route_contexts())
        elif hasattr(route, "endpoint"):
            yield route


def _options(middleware: UnitOfWorkMiddleware, endpoint: Any, method: str) -> tuple[Option, ...]:
    scope = {"type": "http", "method": method, "endpoint": endpoint}
    # The middleware has no other way to tell: what it hands to the requests is asked.
    given = middleware._settings
    default = given.reading if method in given.read_only_methods else given.writing
    chosen = options_of(scope, default)
    # What a decorator leaves alone comes back as it was given.
    untouched = options_of(scope, UnitOptions(*[_UNTOUCHED] * len(fields(UnitOptions))))
    options = []
    for field in fields(UnitOptions):
        name = field.name
        value = getattr(chosen, name)
        origin = "default" if getattr(untouched, name) is _UNTOUCHED else "decorator"
        if origin == "default" and value != getattr(given.writing, name):
            origin = f"default for {method}"
        options.append(Option(name, sorted(value) if isinstance(value, frozenset) else value, origin))
    return tuple(options)
