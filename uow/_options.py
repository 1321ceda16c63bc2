"""The options of a unit, and where they come from: default < decorator < rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.routing import Match, Route

from . import _deadlines

if TYPE_CHECKING:
    from ._rules import Rules

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
HttpScope = MutableMapping[str, Any]

ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
_MARK = "__unit_options__"


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """What a unit may do and when it commits."""

    read_only: bool = False
    isolation: str | None = None
    commit_on: frozenset[int] = frozenset()
    snapshot: bool = False
    stream_timeout: float | None = None
    retry: bool = False
    deadline: float | None = None

    def commits(self, status: int) -> bool:
        """Whether an answer with this status commits: 2xx, 3xx and what `commit_on` names."""
        return 200 <= status < 400 or status in self.commit_on


def checked_isolation(level: str | None) -> str | None:
    """The level as the databases spell it; ValueError for one that does not exist."""
    if level is None:
        return None
    spelt = level.upper().replace("_", " ").replace("-", " ")
    if spelt not in ISOLATION_LEVELS:
        raise ValueError(f"isolation={level!r} is none of {', '.join(ISOLATION_LEVELS)}")
    return spelt


def checked_statuses(statuses: Collection[int]) -> frozenset[int]:
    """The statuses as a set; ValueError for what is no HTTP error status (RFC 9110, section 15)."""
    wrong = [status for status in statuses if not 400 <= status <= 599]
    if wrong:
        raise ValueError(f"commit_on={wrong!r}: name 4xx and 5xx statuses only; 2xx and 3xx always commit")
    return frozenset(statuses)


def checked_seconds(name: str, seconds: float | None) -> float | None:
    """The number of seconds, or None for no limit; ValueError for what is neither."""
    if seconds is not None and not seconds > 0:
        raise ValueError(f"{name}={seconds!r} is no number of seconds above 0; None is no limit")
    return seconds


def checked_options(
    *,
    read_only: bool | None = None,
    isolation: str | None = None,
    commit_on: Collection[int] | None = None,
    snapshot: bool | None = None,
    stream_timeout: float | None = None,
    retry: bool | None = None,
    deadline: float | None = None,
) -> dict[str, Any]:
    """The options that were given, without those that are None; ValueError for what does not exist."""
    given: dict[str, Any] = {
        "read_only": read_only,
        "isolation": checked_isolation(isolation),
        "commit_on": None if commit_on is None else checked_statuses(commit_on),
        "snapshot": snapshot,
        "stream_timeout": checked_seconds("stream_timeout", stream_timeout),
        "retry": retry,
        "deadline": checked_seconds("deadline", deadline),
    }
    return {name: value for name, value in given.items() if value is not None}


OPTION_NAMES = tuple(inspect.signature(checked_options).parameters)


def unit_options(
    *,
    read_only: bool | None = None,
    isolation: str | None = None,
    commit_on: Collection[int] | None = None,
    snapshot: bool | None = None,
    stream_timeout: float | None = None,
    retry: bool | None = None,
    deadline: float | None = None,
) -> Callable[[Endpoint], Endpoint]:
    """Mark an endpoint with the options of its unit; what is None stays as the middleware has it.

    `read_only`: whether the database refuses writes (by default for GET, HEAD and OPTIONS).
    `isolation`: "read committed", "repeatable read" or "serializable".
    `commit_on`: 4xx and 5xx statuses that commit as well, such as a 401 that counts a failed login.
    `snapshot`: whether all reads of a read-only unit see one moment of the database.
    `stream_timeout`: seconds after which a read-only unit is taken from an answer that is still streaming.
    `retry`: whether the request is run again when its unit is known to be aborted, see `uow.retry`.
    `deadline`: seconds that a request may take from when it comes until its answer begins.
    Place it directly above the `def`. Raises ValueError for what does not exist.
    """
    given = checked_options(
        read_only=read_only,
        isolation=isolation,
        commit_on=commit_on,
        snapshot=snapshot,
        stream_timeout=stream_timeout,
        retry=retry,
        deadline=deadline,
    )

    if deadline is not None:
        _deadlines.use()

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _MARK, given)
        return endpoint

    return mark


def options_of(
    scope: HttpScope, default: UnitOptions, rules: Rules | None = None, root: str = ""
) -> UnitOptions:
    """The options of a request's unit: the default < the decorator of its endpoint < the rules."""
    endpoint = found = scope.get("endpoint")
    if found is None or hasattr(found, "routes"):
        endpoint = found = _endpoint_of(scope, getattr(scope.get("app"), "routes", ()))
    if isinstance(endpoint, type):  # a class-based endpoint is marked at its method
        endpoint = getattr(endpoint, scope["method"].lower(), endpoint)
    marked = getattr(endpoint, _MARK, None)
    options = replace(default, **marked) if marked else default
    return options if rules is None else rules.change(options, scope, root, found)


def _endpoint_of(scope: HttpScope, routes: Iterable[Any]) -> Any:
    """The endpoint that these routes would choose, asked before they have been.

    Works on a copy: what a match writes must not reach the request. A group of routes (a mount, a host,
    an included router) is entered; `effective_route_contexts` is how FastAPI shows an included one.
    """
    copy = dict(scope)  # one for all of them, as a router asks them
    method = scope["method"]
    for route in routes:
        if _is_of_another(method, route):
            continue
        if hasattr(route, "effective_route_contexts"):
            endpoint = _endpoint_of(copy, route.effective_route_contexts())
            if endpoint is not None:
                return endpoint
            continue
        match, child = route.matches(copy)
        if match is Match.FULL:
            endpoint = child.get("endpoint")
            inner = getattr(endpoint, "routes", None)
            return endpoint if inner is None else _endpoint_of({**copy, **child}, inner)
    return None


def _is_of_another(method: str, route: Any) -> bool:
    """Whether it matches in part at most, and need not be asked; a class of somebody's is always asked."""
    if not _looks_at_methods(route.__class__):
        return False
    methods: Collection[str] = getattr(route, "methods", None) or (method,)  # none are all
    return method not in methods


@lru_cache(256)
def _looks_at_methods(kind: type[Any]) -> bool:
    """Whether it is known what routes of this class do with their `methods`: those of the frameworks do."""
    judges = next((cls for cls in kind.__mro__ if "matches" in vars(cls)), None)
    return judges is Route or getattr(judges, "__module__", None) == "fastapi.routing"
