"""What orchestrators ask: whether the process is alive, and whether it may be sent requests."""

from __future__ import annotations

import asyncio
from typing import Literal

import structlog
from fastapi import Request
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.orm import Session

from api import migrations
from api.problems import DomainError, documented
from api.routing import Router
from uow import Database, UnitOfWork
from uow.observe import Settlement, UnitObserver
from uow.problems import PROBLEMS, Condition, Problem

router = Router(tags=["health"])
log = structlog.stdlib.get_logger(__name__)

# What keeps a database that can be read from storing anything, in words for whoever has to do something.
_REFUSALS = {
    PROBLEMS[Condition.STORAGE_FULL].name: "The database cannot store anything: its disk or a quota is full, "
    "or fails.",
    PROBLEMS[Condition.READ_ONLY].name: "The database takes no writes: the service may not write to its file "
    "or folder, or its server is a standby or set to read only.",
}


class Storage(UnitObserver):
    """Knows whether the database can store anything, and writes to it only where that is in doubt.

    A full disk shows in what is written and in nothing else: a transaction begins, and rolls back, as ever.
    So doubt begins with a unit that was refused for it, which this observer is told of, and ends with a write
    that went well. Once at the start there is doubt as well: a backup that was put back may have another
    owner. While writes go well, a probe writes nothing. Each worker process knows only what it has seen.

    All else that it is told goes on to `observer`.
    """

    def __init__(self, observer: UnitObserver) -> None:
        self._observer = observer
        self._refusal: str | None = None
        self._doubtful = True
        self._trying = asyncio.Lock()  # of two probes at once, the second waits for what the first finds

    def opened(self, unit: UnitOfWork) -> None:
        self._observer.opened(unit)

    def connected(self, unit: UnitOfWork, waited: float) -> None:
        self._observer.connected(unit, waited)

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        self._observer.statement(unit, seconds)

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        """Note a unit that failed because the database could not store it."""
        if how.reason in _REFUSALS:
            self._refusal, self._doubtful = how.reason, True
        self._observer.settled(unit, how)

    def client_gone(self, unit: UnitOfWork) -> None:
        self._observer.client_gone(unit)

    async def refusal(self, database: Database) -> str | None:
        """The problem that keeps all from being stored, as far as it is known; if in doubt, it is tried.

        A try that fails for another reason, such as a busy writer, changes nothing: the next one will tell.
        """
        async with self._trying:
            if self._doubtful:
                await self._try(database)
            return self._refusal

    async def _try(self, database: Database) -> None:
        self._doubtful, known = False, False  # who is refused from here on, the try included, doubts again
        try:
            async with database.new_unit(name="the try of /readyz") as unit:
                await unit.session.run_sync(_store_what_is_there)
            known = True
        except Exception as error:  # whatever a driver raises here
            log.warning("the database could not be written", reason=repr(error))
            # The role may not change this table, say: that is for certain not the storage.
            known = database.condition(error) is Condition.OTHER
        finally:
            if known and not self._doubtful:
                self._refusal = None
            self._doubtful = self._doubtful or not known


def _store_what_is_there(session: Session) -> None:
    """Have something written that changes nothing."""
    if session.get_bind().dialect.name == "sqlite":
        # An UPDATE to the same value is found to change nothing, and nothing is written; this always is.
        version = int(session.execute(text("PRAGMA user_version")).scalar_one())
        session.execute(text(f"PRAGMA user_version = {version}"))
    else:
        session.execute(text("UPDATE alembic_version SET version_num = version_num"))


async def _revision(database: Database) -> str | None:
    """The migration that the database has; asked twice where the first connection had died.

    Not in the unit of the request, which would be run again for seconds: who probes wants to know now.
    """
    for is_last in (False, True):
        try:
            async with database.new_unit(read_only=True, name="GET /readyz") as unit:
                return await unit.session.run_sync(lambda s: migrations.revision_of(s.connection()))
        except Exception as error:
            if is_last or database.condition(error) is not Condition.CONNECTION_LOST:
                raise
    raise AssertionError  # the last one returns or raises


class NotReady(DomainError):
    """The database cannot be reached or written, or its schema is not the one that the service needs."""

    problem = Problem("not-ready", "The service is not ready", 503, retry_after=5)


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = Field(default="alive", examples=["alive"])


class Ready(BaseModel):
    """The database answers, has the schema that the code needs, and has stored what it was last given."""

    status: Literal["ready"] = Field(default="ready", examples=["ready"])
    revision: str = Field(description="The newest migration.", examples=["0001"])


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Alive:
    return Alive()


@router.get("/readyz", responses=documented(NotReady, takes_input=False), summary="Can requests be served?")
async def readyz(request: Request) -> Ready:
    """503 while the database cannot be reached or written, or its migrations are not those of the code.

    The member `database` names the check that failed: "unreachable", "unwritable" (with `refusal`, the name
    of the problem that clients are told), or "ok" if it is the revision.
    """
    try:
        revision = await _revision(request.app.state.database)
    except Exception as error:  # whatever a driver raises here, the answer is the same
        log.warning("the database cannot be reached", reason=repr(error))
        raise NotReady("The database cannot be reached.", database="unreachable") from error
    if lack := migrations.lack_of(revision):
        raise NotReady(lack, database="ok", revision=revision, needed=migrations.head())
    storage: Storage = request.app.state.storage
    if refusal := await storage.refusal(request.app.state.database):
        raise NotReady(_REFUSALS[refusal], database="unwritable", refusal=refusal)
    return Ready(revision=migrations.head())
