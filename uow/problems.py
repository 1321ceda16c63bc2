"""What went wrong, as data: the error table and its RFC 9457 problem documents.

An engine says which `Condition` a driver's error means (`uow.engines`); the table `PROBLEMS` says what
a client is told about it. Sources of the conditions: PostgreSQL's Appendix A (SQLSTATE codes) and
SQLite's result codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from starlette.responses import Response

from . import errors

__all__ = ["PROBLEMS", "Condition", "Problem", "problem_response"]


class Condition(Enum):
    """What a database's error means to a unit of work, whatever the engine."""

    SERIALIZATION = auto()  # this transaction lost against another and is known to be aborted
    LOCK_TIMEOUT = auto()
    TIME_UP = auto()
    UNIQUE = auto()
    FOREIGN_KEY = auto()
    CHECK = auto()
    BAD_DATA = auto()
    STALE = auto()
    UNAVAILABLE = auto()  # no connection to be had: pool empty, server full, starting or stopping
    STORAGE_FULL = auto()
    READ_ONLY = auto()
    CONNECTION_LOST = auto()
    COMMIT_UNKNOWN = auto()
    ABORTED = auto()  # the transaction had failed before; only its end was left
    OTHER = auto()

    @property
    def known_aborted(self) -> bool:
        """Nothing of the unit was kept, through no fault of the request: it may be tried again."""
        return self in _KNOWN_ABORTED


_KNOWN_ABORTED = frozenset(
    {Condition.SERIALIZATION, Condition.LOCK_TIMEOUT, Condition.CONNECTION_LOST, Condition.UNAVAILABLE}
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem: its name, its title, its HTTP status and, in seconds, when to try again."""

    name: str
    title: str
    status: int
    retry_after: int | None = None

    @property
    def type(self) -> str:
        """The `type` member of RFC 9457, section 3.1.1: a reference that names this kind of problem."""
        return f"/problems/{self.name}"


_AGAIN = 1  # seconds: the request met another one, or a moment of the database
_LATER = 5  # seconds: somebody has to do something

PROBLEMS: Mapping[Condition, Problem] = {
    Condition.SERIALIZATION: Problem("serialization-failure", "Lost against another request", 503, _AGAIN),
    Condition.LOCK_TIMEOUT: Problem("lock-timeout", "The wait for a lock was too long", 503, _AGAIN),
    Condition.TIME_UP: Problem("time-is-up", "The database had no time left for it", 503, _AGAIN),
    Condition.UNIQUE: Problem("unique-violation", "The same value exists already", 409),
    Condition.FOREIGN_KEY: Problem("foreign-key-violation", "What is referred to is missing or in use", 409),
    Condition.CHECK: Problem("check-violation", "A value is outside of what is allowed", 422),
    Condition.BAD_DATA: Problem("database-error", "The database refused the request", 500),
    Condition.STALE: Problem("stale-version", "The object was changed by another request", 409),
    Condition.UNAVAILABLE: Problem("database-unavailable", "The database is busy or away", 503, _AGAIN),
    Condition.STORAGE_FULL: Problem("storage-full", "The database cannot store anything now", 503, _LATER),
    Condition.READ_ONLY: Problem("read-only-database", "The database takes no writes now", 503, _AGAIN),
    Condition.CONNECTION_LOST: Problem("connection-lost", "The database was lost on the way", 503, _AGAIN),
    Condition.COMMIT_UNKNOWN: Problem("commit-outcome-unknown", "Whether it took effect is not known", 500),
    Condition.ABORTED: Problem("unit-doomed", "The unit of work could not be committed", 500),
    Condition.OTHER: Problem("database-error", "The database refused the request", 500),
}

MISUSES: Mapping[type[errors.UnitOfWorkError], Problem] = {
    errors.NoUnitOfWork: Problem("no-unit-of-work", "There is no unit of work here", 500),
    errors.UnitOfWorkClosed: Problem("unit-closed", "The unit of work is over", 500),
    errors.UnitOfWorkDoomed: Problem("unit-doomed", "The unit of work could not be committed", 500),
    errors.MixedSessions: Problem("mixed-sessions", "One unit, two sessions", 500),
    errors.ConcurrentUse: Problem("concurrent-use", "Two tasks inside one session", 500),
    errors.DeadlineExceeded: PROBLEMS[Condition.TIME_UP],
    errors.ReadOnlyUnitOfWork: Problem("read-only-unit", "A read-only unit was asked to write", 500),
    errors.SendRefused: Problem("send-refused", "A WebSocket is told what is committed", 500),
    errors.SettleRefused: Problem("settle-refused", "Handlers do not settle their unit", 500),
    errors.WouldDeadlock: Problem("would-deadlock", "A unit would wait for its own outer unit", 500),
    errors.OutcomeUnknown: PROBLEMS[Condition.COMMIT_UNKNOWN],
    errors.UnitOfWorkError: Problem("unit-of-work-error", "The unit of work failed", 500),
}


def misuse_of(error: errors.UnitOfWorkError) -> Problem:
    """The problem of an error of ours: that of the nearest class which has one."""
    return next(MISUSES[cls] for cls in type(error).__mro__ if cls in MISUSES)


def problem_response(
    problem: Problem,
    *,
    detail: str | None = None,
    instance: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """A problem document (RFC 9457, `application/problem+json`) as a response.

    `detail` speaks of this occurrence, `instance` is its URI, and `members` are the extension members
    of section 3.2; all must be JSON. `Retry-After` is set, in seconds, where the problem says so.
    """
    document: dict[str, Any] = {"type": problem.type, "title": problem.title, "status": problem.status}
    if detail is not None:
        document["detail"] = detail
    if instance is not None:
        document["instance"] = instance
    fields = dict(headers or {})
    if problem.retry_after is not None:
        fields.setdefault("Retry-After", str(problem.retry_after))
    return Response(
        json.dumps(document | members, ensure_ascii=False).encode(),
        status_code=problem.status,
        headers=fields,
        media_type="application/problem+json",
    )
