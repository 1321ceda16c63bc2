"""The rules of a deployment: options for the units of chosen routes, over what the code says.

A rule names a route as it is declared, "POST /orders/". It is looked up once, when the app starts, so that
one that matches nothing is an error then, and costs a request no more than a look into a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from starlette.routing import compile_path

from ._options import OPTION_NAMES, HttpScope, UnitOptions, checked_options

_ANY = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")
_MATCH = re.compile(r"(\*|[A-Z]+) (\*|/\S*)")


@dataclass(frozen=True, slots=True)
class Rule:
    """Options for the units of the routes that `match` names."""

    match: str
    method: str
    path: str
    options: Mapping[str, Any]

    def names(self, route: Declared, method: str) -> bool:
        """Whether it is for this method of this route; one for GET is for HEAD as well (RFC 9110, 9.3.2)."""
        asked = ("*", method, "GET" if method == "HEAD" else method)
        if self.method not in asked:
            return False
        whole = not self.path.endswith("*")
        return route.path == self.path if whole else route.path.startswith(self.path[:-1])


@dataclass(frozen=True, slots=True)
class Declared:
    """A route of an app, with the paths of the mounts and routers that it is in."""

    path: str
    methods: frozenset[str]
    """What it answers to; empty for any method, as a mounted app of another make has it."""
    endpoint: Any


def checked_rules(rules: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """The rules as they were given to the middleware; ValueError, with its number, for a wrong one."""
    return tuple(_checked(number, given) for number, given in enumerate(rules, start=1))


def _checked(number: int, given: Mapping[str, Any]) -> Rule:
    options = dict(given)
    match = options.pop("match", None)
    parts = _MATCH.fullmatch(match) if isinstance(match, str) else None
    if parts is None or "*" in parts[2][:-1]:
        raise ValueError(
            f'rule {number}: match={match!r} is no method and path, such as "POST /orders/", "* /orders/*" '
            f'or "GET *"'
        )
    if unknown := options.keys() - OPTION_NAMES:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"rule {number} ({match}): {names} is none of {', '.join(OPTION_NAMES)}")
    try:
        options = checked_options(**options)
    except ValueError as error:
        raise ValueError(f"rule {number} ({match}): {error}") from None
    if not options:
        raise ValueError(f"rule {number} ({match}) sets none of {', '.join(OPTION_NAMES)}")
    return Rule(parts[0], parts[1], parts[2], options)


class Rules:
    """The rules of a middleware, and the routes of its app that they are for."""

    __slots__ = ("_app", "_of_endpoint", "_rules")

    def __init__(self, rules: Sequence[Mapping[str, Any]], app: Any) -> None:
        self._rules = checked_rules(rules)
        self._app = app
        self._of_endpoint: dict[int, list[Declared]] | None = None

    def bind(self) -> dict[int, list[Declared]]:
        """The routes by their endpoints; ValueError, with the nearest ones, for a rule that names none."""
        routes = [*declared(self._app)]
        for number, rule in enumerate(self._rules, start=1):
            if not any(rule.names(route, method) for route in routes for method in route.methods or _ANY):
                raise ValueError(_no_route(number, rule, routes))
        by_endpoint: dict[int, list[Declared]] = {}
        for route in routes:
            by_endpoint.setdefault(id(route.endpoint), []).append(route)
        return by_endpoint

    def change(self, options: UnitOptions, scope: HttpScope, endpoint: Any) -> UnitOptions:
        """The options of a request's unit, changed by all rules that name its route; the last one wins."""
        if self._of_endpoint is None:
            self._of_endpoint = self.bind()
        routes = self._of_endpoint.get(id(endpoint), [])
        if len(routes) > 1:  # one function under several paths
            path = _path_of(scope)
            routes = [route for route in routes if _matches(route, path)]
        for route in routes[:1]:
            for _, rule in self.of(route, scope["method"]):
                options = replace(options, **rule.options)
        return options

    def of(self, route: Declared, method: str) -> Iterator[tuple[int, Rule]]:
        """The rules for this method of a route, each with its number, in the order in which they count."""
        for number, rule in enumerate(self._rules, start=1):
            if rule.names(route, method):
                yield number, rule


def declared(app: Any) -> Iterator[Declared]:
    """Every route of an app, or of the app that a middleware stands around."""
    while not hasattr(app, "routes") and hasattr(app, "app"):
        app = app.app
    yield from _declared(getattr(app, "routes", ()), "")


def _declared(routes: Iterable[Any], prefix: str) -> Iterator[Declared]:
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # how FastAPI shows an included router
            yield from _declared(route.effective_route_contexts(), prefix)
            continue
        path = prefix + getattr(route, "path", "")
        if hasattr(route, "methods"):
            yield Declared(path, frozenset(route.methods or ()), route.endpoint)
        elif hasattr(route, "app"):
            inner = getattr(route, "routes", None)
            if inner:
                yield from _declared(inner, path)
            else:
                yield Declared(path + "/{path:path}", frozenset(), route.app)


def _path_of(scope: HttpScope) -> str:
    """The path below the app: a mount moves `root_path`, and remembers where the app's own ends."""
    root: str = scope.get("app_root_path", scope.get("root_path", ""))
    path: str = scope["path"]
    return path.removeprefix(root)


def _matches(route: Declared, path: str) -> bool:
    pattern, _, _ = compile_path(route.path)
    return pattern.match(path) is not None


def _no_route(number: int, rule: Rule, routes: Sequence[Declared]) -> str:
    known = sorted({f"{method} {route.path}" for route in routes for method in route.methods or ("*",)})
    near = get_close_matches(rule.match, known, n=3, cutoff=0.5)
    there = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'no routes'}"
    return f'rule {number} matches no route: match = "{rule.match}"; {there}'
