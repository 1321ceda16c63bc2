"""What orchestrators ask: whether the process is alive, and whether it may be sent requests."""

from __future__ import annotations

from typing import Literal

import structlog
from pydantic import BaseModel, Field

from api import migrations
from api.problems import DomainError, documented
from api.routing import Router
from uow import current_session
from uow.problems import Problem

router = Router(tags=["health"])
log = structlog.stdlib.get_logger(__name__)


class NotReady(DomainError):
    """The database cannot be reached, or its schema is not the one that the service needs."""

    problem = Problem("not-ready", "The service is not ready", 503, retry_after=5)


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = Field(default="alive", examples=["alive"])


class Ready(BaseModel):
    """The database answers and has the schema that the code needs."""

    status: Literal["ready"] = Field(default="ready", examples=["ready"])
    revision: str = Field(description="The newest migration.", examples=["0001"])


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Alive:
    return Alive()


@router.get("/readyz", responses=documented(NotReady, takes_input=False), summary="Can requests be served?")
async def readyz() -> Ready:
    """503 while the database cannot be reached, or its migrations are not those of the code."""
    try:
        revision = await current_session().run_sync(lambda s: migrations.revision_of(s.connection()))
    except Exception as error:  # whatever a driver raises here, the answer is the same
        log.warning("the database cannot be reached", reason=repr(error))
        raise NotReady("The database cannot be reached.", database="unreachable") from error
    if lack := migrations.lack_of(revision):
        raise NotReady(lack, database="ok", revision=revision, needed=migrations.head())
    return Ready(revision=migrations.head())
