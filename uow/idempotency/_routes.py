"""Which routes want a key, and which kind of session the endpoint of a request uses."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection
from types import FunctionType, MethodType
from typing import Any, Literal

from starlette.types import Scope

from .._options import _endpoint_of  # pyright: ignore[reportPrivateUsage]  # the one way to look routes up
from .._rules import (
    METHODS,
    Declared,
    Rule,
    _below,  # pyright: ignore[reportPrivateUsage]  # paths are matched as those of rules are
    _no_route,  # pyright: ignore[reportPrivateUsage]  # and what matches nothing is told as it is of them
    _pattern,  # pyright: ignore[reportPrivateUsage]  # and so are parameters in them
    declared,
)

Sessions = Literal["auto", "async", "sync"]

_MATCH = re.compile(r"(\*|[A-Z]+) (\*|/\S*)")


class Required:
    """The routes on which a key is required, as they are declared."""

    def __init__(self, routes: Collection[str], app: Any) -> None:
        self._rules = [_rule(match) for match in routes]
        self._app = app
        self._patterns: list[tuple[frozenset[str], re.Pattern[str]]] | None = None

    def __bool__(self) -> bool:
        return bool(self._rules)

    def bind(self) -> None:
        """Look at the routes of the app, once; ValueError, with the nearest ones, if one is not there."""
        found: list[tuple[Declared, frozenset[str]]] = []
        routes = [*declared(self._app)]
        for number, rule in enumerate(self._rules, start=1):
            named = [
                (route, frozenset(each for each in route.methods or METHODS if rule.names(route, each)))
                for route in routes
            ]
            meant = [(route, methods) for route, methods in named if methods]
            if not meant:
                raise ValueError(f"required idempotency keys: {_no_route(number, rule, routes)}")
            found += meant
        self._patterns = [(methods, _pattern(route.path)) for route, methods in found]

    def names(self, scope: Scope) -> bool:
        """Whether the request is for one of them."""
        if self._patterns is None:
            self.bind()
        path = _below(scope.get("root_path", ""), scope["path"])
        method = scope["method"]
        return any(method in methods and pattern.match(path) for methods, pattern in self._patterns or ())


def _rule(match: str) -> Rule:
    parts = _MATCH.fullmatch(match)
    if parts is None or "*" in parts[2][:-1]:
        raise ValueError(f'required={match!r} is no method and path, such as "POST /orders/" or "POST *"')
    return Rule(parts[0], parts[1], parts[2], {})


def find_endpoint(scope: Scope) -> Any:
    """The endpoint that will answer, also before the router has looked for it; None if none will."""
    found = scope.get("endpoint")
    if found is None or hasattr(found, "routes"):
        return _endpoint_of(scope, getattr(scope.get("app"), "routes", ()))
    return found


def is_sync(endpoint: Any, scope: Scope) -> bool:
    """Whether the endpoint is a plain function, which runs in a thread and uses a sync session there."""
    if isinstance(endpoint, type):  # a class-based endpoint
        endpoint = getattr(endpoint, scope["method"].lower(), None)
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    if not isinstance(endpoint, (FunctionType, MethodType)):
        return False  # an app, or an object that is called
    if hasattr(endpoint, "__wrapped__"):
        endpoint = inspect.unwrap(endpoint)
    return not inspect.iscoroutinefunction(endpoint)
