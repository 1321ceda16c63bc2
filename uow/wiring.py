"""A look at the wiring of an app: what would break a promise later, without an error that says why.

Nothing is connected and nothing is called: the check reads what Starlette and FastAPI keep of the
middlewares, routes and mounts that they were given. An ASGI app of another make is passed over.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

from sqlalchemy.pool import AssertionPool, Pool, QueuePool, SingletonThreadPool, StaticPool
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Router

from . import middleware
from .database import Database

__all__ = ["Code", "Finding", "check_wiring"]

Code = Literal[
    "second-middleware",
    "base-http-middleware-around",
    "middleware-order",
    "expires-on-commit",
    "pool-too-small",
    "shared-connection",
]

logger = logging.getLogger("uow")

_DEEPEST = 100  # more layers than any app has; some objects pretend to have every attribute
_GIVES_UP = re.compile("time_?out", re.IGNORECASE)
_LAST_ADDED = "add_middleware() puts what is added last outside"

_looked_at: WeakSet[object] = WeakSet()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in the wiring of an app that breaks a promise."""

    code: Code
    """What kind of thing it is; stays the same when the words of the message change."""
    message: str
    """What, where, and what to do about it."""

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


def check_wiring(app: object, *, nested_at_once: int = 1) -> list[Finding]:
    """What is wrong with the wiring of this Starlette or FastAPI app; an empty list if nothing is.

    It looks at the middlewares of the app and of all that is mounted in it, before or after its first
    request, and at the database of each UnitOfWorkMiddleware. `nested_at_once` is how many requests may
    open a `new_unit()` inside their own unit at the same time: each of them holds one connection and waits
    for another, so that a pool needs one more than that.

    Two middlewares with different databases are in order: `current_session()` is then of the inner one,
    and the other database is reached by `other.new_unit()`.
    """
    findings: dict[Finding, None] = {}
    databases: dict[int, Database] = {}
    for layer, outside in _walk(app, "", ()):
        for rule in _RULES:
            findings |= dict.fromkeys(rule(layer, outside))
        if layer.database is not None:
            databases[id(layer.database)] = layer.database
    for database in databases.values():
        findings |= dict.fromkeys(_expiring(database))
        findings |= dict.fromkeys(_pool_rules(database, nested_at_once))
    return [*findings]


def log_findings(app: object, ours: object = None) -> None:
    """Log each finding of `check_wiring` as a warning of the logger "uow", once for each app.

    `ours` is the middleware that asks. If it stands around the app, or there is none, the look begins at it.
    """
    try:
        around = app is None or any(layer.node is app for layer, _ in _walk(ours, "", ()))
        start = ours if around else app
        if start not in _looked_at:
            _looked_at.add(start)
            for finding in check_wiring(start):
                logger.warning("wiring: %s", finding)
    except Exception:  # whatever an app is made of, it is served
        logger.debug("the wiring of %r could not be looked at", app, exc_info=True)


# -- the layers of an app


@dataclass(frozen=True, eq=False, slots=True)
class _Layer:
    """One thing that a request passes on its way in."""

    node: object
    kind: Any
    """Its class; what makes it, if that is no class."""
    given: Mapping[str, Any]
    """Its attributes, or the keywords that it is to be made with."""
    place: str
    """The path that leads to it; "" for all paths."""

    def __str__(self) -> str:
        name = getattr(self.kind, "__name__", repr(self.kind))
        if self.kind is BaseHTTPMiddleware:  # @app.middleware("http")
            name = f"{self._dispatch}()"
        return f"{name} at {self.place!r}" if self.place else name

    def is_a(self, kind: type) -> bool:
        return isinstance(self.kind, type) and issubclass(self.kind, kind)

    @property
    def database(self) -> Database | None:
        """That of a UnitOfWorkMiddleware; None for all others."""
        if isinstance(self.node, middleware.UnitOfWorkMiddleware):
            return self.node.database
        return self.given.get("database") if self.is_a(middleware.UnitOfWorkMiddleware) else None

    @property
    def gives_up(self) -> bool:
        """Whether it goes by the name of a time-out."""
        name: str = getattr(self.kind, "__name__", "")
        return _GIVES_UP.search(f"{name} {self._dispatch}") is not None

    @property
    def _dispatch(self) -> str:
        function = self.given.get("dispatch") or self.given.get("dispatch_func")
        return getattr(function, "__name__", "")


_Found = Iterator[tuple[_Layer, tuple[_Layer, ...]]]


def _walk(node: object, place: str, outside: tuple[_Layer, ...]) -> _Found:
    """Each layer from here inwards, with those outside of it, outermost first."""
    if isinstance(router := getattr(node, "__self__", None), Router):  # behind its own middlewares
        yield from _walk_routes(router, place, outside)
        return
    if len(outside) >= _DEEPEST or any(layer.node is node for layer in outside):
        return  # an app that is mounted in itself
    layer = _Layer(node, node if isinstance(node, type) else type(node), getattr(node, "__dict__", {}), place)
    yield layer, outside
    outside += (layer,)
    if isinstance(node, Starlette):
        yield from _walk_stack(node, place, outside)
    elif isinstance(node, Router):
        yield from _walk(node.middleware_stack, place, outside)
    elif not isinstance(node, type) and (inner := getattr(node, "app", None)) is not None:
        yield from _walk(inner, place, outside)


def _walk_stack(app: Starlette, place: str, outside: tuple[_Layer, ...]) -> _Found:
    """The middlewares of an app: as they stand, or as they will when it gets its first request."""
    if app.middleware_stack is not None:
        yield from _walk(app.middleware_stack, place, outside)
        return
    for planned in (*app.user_middleware, Middleware(ExceptionMiddleware)):
        layer = _Layer(planned, planned.cls, planned.kwargs, place)
        yield layer, outside
        outside += (layer,)
    yield from _walk(app.router, place, outside)


def _walk_routes(router: object, place: str, outside: tuple[_Layer, ...]) -> _Found:
    for route in getattr(router, "routes", ()):
        path = place + (getattr(route, "path", None) or getattr(route, "host", None) or "")
        included = getattr(route, "original_router", None)  # FastAPI keeps what include_router() was given
        if included is not None:
            prefix = getattr(getattr(route, "include_context", None), "prefix", "")
            yield from _walk_routes(included, place + prefix, outside)
        elif (inner := getattr(route, "app", None)) is not None:
            yield from _walk(inner, path, outside)


# -- the rules for one layer and those outside of it


def _second(layer: _Layer, outside: tuple[_Layer, ...]) -> Iterator[Finding]:
    if layer.database is not None and any(other.database is layer.database for other in outside):
        yield Finding(
            "second-middleware",
            f"{layer} stands inside of another one with the same {layer.database!r}: code between the two "
            f"works in a transaction of its own, which is not that of the endpoint. Take one of them out",
        )


def _base_http_around(layer: _Layer, outside: tuple[_Layer, ...]) -> Iterator[Finding]:
    for other in outside if layer.database is not None else ():
        if other.is_a(BaseHTTPMiddleware) and not other.gives_up:
            yield Finding(
                "base-http-middleware-around",
                f"{other}, a BaseHTTPMiddleware, is outside of {layer}: if it raises or answers otherwise "
                f"after call_next(), the client is told of a failure and the work is kept. Add it before "
                f"UnitOfWorkMiddleware ({_LAST_ADDED}), or make it a pure ASGI middleware that only watches",
            )


def _timeout_around(layer: _Layer, outside: tuple[_Layer, ...]) -> Iterator[Finding]:
    for other in outside if layer.database is not None else ():
        if other.gives_up:
            yield Finding(
                "middleware-order",
                f"{other}, a time-out by its name, is outside of {layer}: what it answers while COMMIT is on "
                f"its way says that work has failed which is kept. Add it before UnitOfWorkMiddleware "
                f"({_LAST_ADDED}): inside, it has no say any more once COMMIT is sent",
            )


def _cors_inside(layer: _Layer, outside: tuple[_Layer, ...]) -> Iterator[Finding]:
    if not layer.is_a(CORSMiddleware):
        return
    for ours in [other for other in outside if other.database is not None][-1:]:
        yield Finding(
            "middleware-order",
            f"{layer} is inside of {ours}: the problem documents that UnitOfWorkMiddleware answers with have "
            f"no CORS headers, so that a browser keeps them from its script. Add CORSMiddleware after "
            f"UnitOfWorkMiddleware ({_LAST_ADDED})",
        )


def _behind_handlers(layer: _Layer, outside: tuple[_Layer, ...]) -> Iterator[Finding]:
    """Class-based endpoints raise through all that is around them; functions have their errors mapped."""
    if not layer.is_a(HTTPEndpoint):
        return
    handlers = [place for place, other in enumerate(outside) if other.is_a(ExceptionMiddleware)]
    for other in outside[handlers[-1] :] if handlers else ():
        if other.database is not None:
            yield Finding(
                "middleware-order",
                f"{other} is on a route or mount, and {layer} is a class: what it raises is rolled back "
                f"before the app's exception handlers see it, also if they answer 2xx or 3xx, or a status "
                f"that commit_on names. Use app.add_middleware(), which puts it outside of the handlers",
            )


_RULES: tuple[Callable[[_Layer, tuple[_Layer, ...]], Iterator[Finding]], ...] = (
    _second, _base_http_around, _timeout_around, _cors_inside, _behind_handlers,
)  # fmt: skip


# -- the rules for a database


def _expiring(database: Database) -> Iterator[Finding]:
    """Look at a session as a unit makes it, but with no engine and no unit."""
    classes = database.async_session_class, database.session_class
    unit: Any = None
    try:
        made = classes[0](sync_session_class=classes[1], work=unit, expire_on_commit=False)
    except Exception:  # one that wants more than that is not looked at
        return
    if made.sync_session.expire_on_commit:
        names = " and ".join(each.__name__ for each in classes)
        yield Finding(
            "expires-on-commit",
            f"{database!r}: its sessions ({names}) have expire_on_commit=True, though a unit asks for False: "
            f"after COMMIT a callback, a background task or a stream that reads an object gets an error "
            f"instead of the value. Pass expire_on_commit on to super().__init__() as it comes",
        )


def _pool_rules(database: Database, nested_at_once: int) -> Iterator[Finding]:
    for whose, room in _pools(database):
        if room is _SHARED:
            yield Finding(
                "shared-connection",
                f"{database!r}: {whose} gives several units the same connection, so that one commits what "
                f"another has half done. Leave its poolclass to SQLAlchemy",
            )
        elif room <= nested_at_once:
            yield Finding(
                "pool-too-small",
                f"{database!r}: {whose} may open {room:g} and no more, and a new_unit() inside a unit takes "
                f"a second connection while the first is held: where {nested_at_once} at once do so, they "
                f"wait until pool_timeout is over. Let pool_size + max_overflow be at least "
                f"{nested_at_once + 1}",
            )


_SHARED = -1.0


def _pools(database: Database) -> Iterator[tuple[str, float]]:
    """Its pools, and how many connections each may open; `_SHARED` where units share one.

    The queue before a single writer is left out: a unit inside a unit is refused there, and never waits.
    """
    if database.own:
        given = database._options  # pyright: ignore[reportPrivateUsage]  # an engine would need its driver
        size, overflow = given.get("pool_size", 5), given.get("max_overflow", 10)
        yield "each of its pools", _room(given.get("poolclass", QueuePool), size, overflow)
        return
    engines = database._engines  # pyright: ignore[reportPrivateUsage]  # those that the user has made
    seen: set[int] = set()
    for (role, _), engine in engines.items():
        pool = engine.pool
        size, overflow = (pool.size(), vars(pool)["_max_overflow"]) if isinstance(pool, QueuePool) else (0, 0)
        room = _room(type(pool), size, overflow)
        refused = role == "writer" and database.adapter.one_writer and room is not _SHARED
        if not refused and id(pool) not in seen:
            seen.add(id(pool))
            yield f"the pool of its {role}", room


def _room(kind: type[Pool], size: int, overflow: int) -> float:
    if issubclass(kind, (StaticPool, SingletonThreadPool)):
        return _SHARED
    if issubclass(kind, AssertionPool):
        return 1
    if issubclass(kind, QueuePool) and size > 0 and overflow >= 0:
        return size + overflow
    return math.inf
