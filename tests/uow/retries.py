"""Work that fails in its first attempts, for the tests of replay."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, get_args

import pytest
from fastapi import HTTPException
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from tests.support.backends import Backend
from tests.support.wait import LIMIT
from tests.uow.units import Work, insert, run
from uow import current_session, current_unit, on_commit
from uow.retry import Retry

QUICK = Retry(first_pause=0.0, seconds=LIMIT)
How = Literal["raise", "map", "swallow", "wrap"]
HOWS: tuple[How, ...] = get_args(How)


def refused(sqlstate: str) -> str:
    """A statement that PostgreSQL answers with this error."""
    return f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"


FAILS = refused("40001")


def serialization_failure(session: Session) -> None:
    session.execute(text(FAILS))


def terminated(backend: Backend) -> Work[None]:
    """Work whose connection is cut, from outside, before its next statement."""

    def work(session: Session) -> None:
        pid = int(session.execute(text("SELECT pg_backend_pid()")).scalar_one())
        backend.query("SELECT pg_terminate_backend(?, 30000)", (pid,))
        session.execute(text("SELECT 1"))

    return work


class Flaky:
    """Work that inserts the number of its attempt; the first `failures` attempts then do what fails."""

    def __init__(self, fail: Work[Any] = serialization_failure, *, failures: int = 1) -> None:
        self.fail = fail
        self.failures = failures
        self.attempts: list[int] = []
        self.done: list[int] = []

    def __call__(self, session: Session) -> int:
        number = current_unit().attempt
        self.attempts.append(number)
        insert(f"attempt-{number}")(session)
        on_commit(lambda: self.done.append(number))
        if len(self.attempts) <= self.failures:
            self.fail(session)
        return number


async def work_of(flaky: Flaky) -> int:
    """Do it in the unit of the request."""
    return await current_session().run_sync(flaky)


def reacting(how: How, work: Work[Any]) -> Work[Any]:
    """Work of an app that deals with the errors of the database in one of the usual ways."""

    def reacts(session: Session) -> Any:
        try:
            return work(session)
        except SQLAlchemyError as error:
            if how == "map":
                raise HTTPException(409, "busy") from error
            if how == "wrap":
                raise LookupError("something else") from error
            if how == "raise":
                raise
            return "swallowed"

    return reacts


def contained(session: Session) -> None:
    """A failure that a savepoint contains."""
    with suppress(SQLAlchemyError), session.begin_nested():
        session.execute(text(FAILS))


def fail_commits(backend: Backend, until: int) -> Work[None]:
    """Work whose COMMIT is refused with 40001, in attempts up to this one."""
    backend.execute("CREATE TABLE late (attempt INT)")
    backend.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF NEW.attempt <= {until} THEN RAISE EXCEPTION USING ERRCODE = '40001'; END IF; RETURN NULL; "
        "END $$"
    )
    backend.execute(
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )

    def work(session: Session) -> None:
        run("INSERT INTO late VALUES (:attempt)", attempt=current_unit().attempt)(session)

    return work


def at_pause(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], float | None]) -> None:
    """Do this between two attempts; what it returns is how long the pause is."""

    def pause(_: Retry, attempt: int) -> float:
        return do(attempt) or 0.0

    monkeypatch.setattr(Retry, "pause", pause)
