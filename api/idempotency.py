"""Idempotency keys: a client may send a request again, and it is done once."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Header
from pydantic import Field, WithJsonSchema, field_validator
from starlette.types import Scope

from api.models import Base
from api.problems import DomainError
from api.section import Section
from api.units import Age, Bytes, Seconds
from uow.idempotency import IN_USE, INVALID, REQUIRED, REUSED, table

# For Alembic, which compares the metadata with the database.
KEYS = table(Base.metadata)

_MATCH = re.compile(r"(\*|[A-Z]+) (/[^\s*]*\*?|\*)")


class IdempotencySettings(Section):
    enabled: bool = Field(default=True, description="Whether Idempotency-Key is heeded.")
    required: tuple[str, ...] = Field(
        default=(), description='The routes that want a key: "POST /orders/", "* /orders/*".'
    )
    ttl: Age = Field(
        default=24 * 3600, ge=60, description="For how long a key and its answer are remembered."
    )
    wait: Seconds = Field(
        default=10.0, ge=0, description="The time that a repeat waits for the first request to be answered."
    )
    body_limit: Bytes = Field(
        default=256 * 1024, ge=1, description="The size of an answer that can be stored with its key."
    )
    sweep_every: Seconds = Field(
        default=3600.0, ge=0, description="The time between two removals of what has expired; 0 is never."
    )

    @field_validator("required")
    @classmethod
    def _are_routes(cls, routes: tuple[str, ...]) -> tuple[str, ...]:
        for route in routes:
            if not _MATCH.fullmatch(route):
                raise ValueError(f'{route} is no method and path, such as "POST /orders/" or "* /orders/*"')
        return routes

    def options(self, *, request_limit: int) -> dict[str, Any]:
        """The keywords of the middleware."""
        return {
            "principal": principal_of,
            "required": self.required,
            "ttl": self.ttl,
            "wait": self.wait,
            "body_limit": self.body_limit,
            "request_limit": request_limit,
        }


def principal_of(scope: Scope) -> str:
    """The holder of the API key, as the guard has found it; nobody, where no keys are asked for."""
    return str(scope.get("state", {}).get("principal", ""))


class InvalidIdempotencyKey(DomainError):
    """`Idempotency-Key` is sent once, and has 1 to 255 visible ASCII characters.

    Double quotes around them do not count. Nothing was done.
    """

    problem = INVALID


class IdempotencyKeyRequired(DomainError):
    """This route is set up so that nothing is done without a key.

    Make one that nobody has used, such as a random UUID, and send it as `Idempotency-Key` with the request,
    and with each repeat of it.
    """

    problem = REQUIRED


class IdempotencyKeyReused(DomainError):
    """The key came before with another method, path, query, `Content-Type` or body.

    Nothing was done this time. A request that is not the same has a key of its own.
    """

    problem = REUSED


class IdempotencyKeyInUse(DomainError):
    """The first request with the key is still being worked on, and this one has waited for as long as it may.

    Nothing was done by it: send it again, the same and with the same key, after `Retry-After` seconds.
    """

    problem = IN_USE


# For the `responses` of each route that writes.
KEYED = (InvalidIdempotencyKey, IdempotencyKeyRequired, IdempotencyKeyReused, IdempotencyKeyInUse)

# It is read by the middleware, before any route is looked for; here it is only told.
_KEY = WithJsonSchema({"type": "string", "pattern": "^[!#-~][!-~]{0,254}$"})
_Key = Annotated[
    list[str] | None,
    _KEY,
    Header(
        alias="Idempotency-Key",
        description="Names the request, so that it is done once however often it is sent: a random UUID.",
    ),
]


def _told(key: _Key = None) -> None:
    """Nothing to do."""


TAKES_KEY = [Depends(_told)]
