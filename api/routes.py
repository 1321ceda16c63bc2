"""The routes of an app with the options of their units, and who has set each of these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from fastapi import FastAPI

from api.units import spelt_seconds

# The marks of a decorator, and the rules, are read by what reads them for a request, so that what is shown
# is what happens.
from uow._options import UnitOptions, options_of
from uow._rules import Declared, Rules, declared
from uow.idempotency import IdempotencyMiddleware
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
    made = UnitOfWorkMiddleware(app, **_keywords(app))
    found = [
        Route(method, route.path, _options(made, route, method))
        for route in declared(app)
        for method in route.methods
    ]
    readable = {route.path for route in found if route.method == "GET"}
    found = [route for route in found if route.method != "HEAD" or route.path not in readable]
    return sorted(found, key=lambda route: (route.path, route.method))


def wrong_rules(app: FastAPI) -> Iterator[tuple[int, str]]:
    """The number of each rule that matches no route, and the message of the middleware."""
    for number, rule in enumerate(_keywords(app)["rules"], start=1):
        try:
            Rules([rule], app).bind()
        except ValueError as error:
            yield number, str(error).removeprefix("rule 1 ")  # each is asked alone


def wrong_required(app: FastAPI) -> Iterator[tuple[int, str]]:
    """The number, from 0, of each route that is to want a key and does not exist, and what is said of it."""
    for keywords in _added(app, IdempotencyMiddleware):
        for number, match in enumerate(keywords["required"]):
            try:
                Rules([{"match": match, "read_only": False}], app).bind()
            except ValueError as error:
                yield number, str(error).removeprefix("rule 1 ")


def _keywords(app: FastAPI) -> dict[str, Any]:
    """What the app gives to its middleware."""
    (ours,) = _added(app, UnitOfWorkMiddleware)
    return ours


def _added(app: FastAPI, kind: Any) -> Iterator[dict[str, Any]]:
    added: list[Any] = [*app.user_middleware]
    return (dict(each.kwargs) for each in added if each.cls is kind)


def _options(middleware: UnitOfWorkMiddleware, route: Declared, method: str) -> tuple[Option, ...]:
    scope = {"type": "http", "method": method, "endpoint": route.endpoint}
    # The middleware has no other way to tell: what it hands to the requests is asked.
    given = middleware._settings
    default = given.reading if method in given.read_only_methods else given.writing
    chosen = options_of(scope, default)
    # What a decorator leaves alone comes back as it was given.
    untouched = options_of(scope, UnitOptions(*[_UNTOUCHED] * len(fields(UnitOptions))))
    origins = {}
    for name in (field.name for field in fields(UnitOptions)):
        origins[name] = "default" if getattr(untouched, name) is _UNTOUCHED else "decorator"
        if origins[name] == "default" and getattr(chosen, name) != getattr(given.writing, name):
            origins[name] = f"default for {method}"
    for number, rule in given.rules.of(route, method) if given.rules else ():
        chosen = replace(chosen, **rule.options)
        origins |= dict.fromkeys(rule.options, f"rule {number}")
    return tuple(Option(name, _plain(getattr(chosen, name)), origin) for name, origin in origins.items())


def _plain(value: Any) -> Any:
    """A value as the configuration has it."""
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, str):
        return value.lower()
    return spelt_seconds(value) if isinstance(value, float) else value
