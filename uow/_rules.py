"""The rules of a deployment: options for the units of chosen routes, over what the code says.

A rule names a route as it is declared, "POST /orders/". One that matches nothing is an error when the app
starts; the routes are looked at once, before the first unit, so that a request pays for a look into a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import count
from typing import Any

from starlette.routing import WebSocketRoute, compile_path

from ._options import OPTION_NAMES, HttpScope, UnitOptions, checked_options

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")
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
    """What answers; None where an app of another make has more to say."""


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

    __slots__ = ("_app", "_bound", "_rules")

    def __init__(self, rules: Sequence[Mapping[str, Any]], app: Any) -> None:
        self._rules = checked_rules(rules)
        self._app = app
        self._bound: dict[int, list[_Bound]] | None = None

    def bind(self) -> None:
        """Find the routes; ValueError, with the nearest ones, for a rule that names none."""
        routes = [*declared(self._app)]
        for number, rule in enumerate(self._rules, start=1):
            if not any(rule.names(route, method) for route in routes for method in route.methods or METHODS):
                raise ValueError(_no_route(number, rule, routes))
        bound: dict[int, list[_Bound]] = {}
        for route in routes:
            methods = route.methods or METHODS
            changes = {method: self._changes(route, method) for method in methods}
            bound.setdefault(id(route.endpoint), []).append(_Bound(route, _pattern(route.path), changes))
        self._bound = bound

    def change(self, options: UnitOptions, scope: HttpScope, root: str, endpoint: Any) -> UnitOptions:
        """The options of a request's unit, changed by all rules that name its route; the last one wins.

        `root` is the `root_path` that the middleware was entered with: mounts inside have moved it since.
        """
        if self._bound is None:
            self.bind()
        assert self._bound is not None
        path = _below(root, scope["path"])
        method = scope["method"]
        for route in (*self._bound.get(id(endpoint), ()), *self._bound.get(id(None), ())):
            if method in route.changes and route.pattern.match(path):
                return replace(options, **route.changes[method])
        return options

    def of(self, route: Declared, method: str) -> Iterator[tuple[int, Rule]]:
        """The rules for this method of a route, each with its number, in the order in which they count."""
        for number, rule in enumerate(self._rules, start=1):
            if rule.names(route, method):
                yield number, rule

    def _changes(self, route: Declared, method: str) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for _, rule in self.of(route, method):
            changes |= rule.options
        return changes


@dataclass(frozen=True, slots=True)
class _Bound:
    """A route, and what the rules change for each of its methods."""

    route: Declared
    pattern: re.Pattern[str]
    changes: Mapping[str, Mapping[str, Any]]


def declared(app: Any) -> Iterator[Declared]:
    """Every route of an app, or of the app that a middleware stands around."""
    yield from _declared(_routes_inside(app), "")


def _routes_inside(app: Any) -> Iterable[Any]:
    """The routes of an app, also behind middlewares that keep it as `app`; none for one of another make."""
    while not hasattr(app, "routes") and hasattr(app, "app"):
        app = app.app
    return getattr(app, "routes", None) or ()


def _declared(routes: Iterable[Any], prefix: str) -> Iterator[Declared]:
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if hasattr(route, "effective_route_contexts"):  # how FastAPI shows an included router
            yield from _declared(route.effective_route_contexts(), prefix)
        elif isinstance(getattr(route, "original_route", route), WebSocketRoute):
            continue  # what it serves has no unit of its own
        elif hasattr(route, "methods"):
            yield Declared(path, frozenset(route.methods or ()), route.endpoint)
        elif inner := _routes_inside(getattr(route, "app", None)) or _routes_inside(route):
            yield from _declared(inner, path)
        elif hasattr(route, "app"):
            yield Declared(path + "/{path:path}", frozenset(), None)


def _below(root: str, path: str) -> str:
    """The path that the routes of an app match, where it stands below `root`."""
    return path[len(root) :] if path == root or path.startswith(root + "/") else path


def _pattern(path: str) -> re.Pattern[str]:
    """As Starlette would match it, were it one route; its mounts may use a parameter's name again."""
    number = count()
    return compile_path(re.sub(r"{[^}:]*", lambda _: f"{{part_{next(number)}", path))[0]


def _no_route(number: int, rule: Rule, routes: Sequence[Declared]) -> str:
    known = sorted({f"{method} {route.path}" for route in routes for method in route.methods or ("*",)})
    near = get_close_matches(rule.match, known, n=3, cutoff=0.5)
    there = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'no routes'}"
    return f'rule {number} matches no route: match = "{rule.match}"; {there}'
