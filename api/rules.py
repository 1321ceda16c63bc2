"""`[[unit_of_work.rules]]`: the operator's last word on the units of single routes."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api.section import EMPTY, Section
from api.units import Seconds

# The functions that judge a decorator's options judge a rule's, so that both say the same.
from uow._options import checked_isolation, checked_statuses

_MATCH = re.compile(r"(\*|[A-Z]+) (/[^\s*]*\*?|\*)")


class Rule(Section):
    """One `[[unit_of_work.rules]]`: the routes that it is for, and what it sets for their units."""

    match: str = Field(
        description='The method and the path as `python -m api routes` prints them: "POST /orders/". '
        '"*" is any method; a path that ends in "*" is every path that begins so.'
    )
    read_only: bool | None = Field(default=None, description="Whether the database refuses writes.")
    isolation: str | None = Field(
        default=None, description='"read committed", "repeatable read" or "serializable".'
    )
    commit_on: tuple[int, ...] | None = Field(
        default=None, description="Statuses beside 2xx and 3xx whose answer commits."
    )
    snapshot: bool | None = Field(
        default=None, description="Whether all reads of a read-only unit see one moment."
    )
    stream_timeout: Seconds | None = Field(
        default=None, gt=0, description="How long a read-only unit stays open for an answer that streams."
    )
    deadline: Seconds | None = Field(
        default=None, gt=0, description="The time that a request may take until its answer begins."
    )
    retry: bool | None = Field(
        default=None, description="Whether a request is run again whose unit is known to be aborted."
    )

    @field_validator("match")
    @classmethod
    def _is_method_and_path(cls, match: str) -> str:
        if not _MATCH.fullmatch(match):
            raise ValueError('is a method and a path, such as "POST /orders/", "* /orders/*" or "GET *"')
        return match

    @field_validator("isolation")
    @classmethod
    def _exists(cls, isolation: str | None) -> str | None:
        try:
            level = checked_isolation(isolation)
            return None if level is None else level.lower()  # as the documents spell it
        except ValueError:
            raise ValueError('is "read committed", "repeatable read" or "serializable"') from None

    @field_validator("commit_on")
    @classmethod
    def _are_errors(cls, statuses: tuple[int, ...] | None) -> tuple[int, ...] | None:
        try:
            checked_statuses(statuses or ())
        except ValueError:
            raise ValueError("names 4xx and 5xx statuses only; 2xx and 3xx always commit") from None
        return statuses

    @model_validator(mode="after")
    def _sets_something(self) -> Self:
        if not self.options():
            names = ", ".join(name for name in Rule.model_fields if name != "match")
            raise PydanticCustomError(EMPTY, "sets nothing; name one of {names}", {"names": names})
        return self

    def options(self) -> dict[str, Any]:
        """What it sets, as the keywords of `unit_options`."""
        given = self.model_dump(exclude={"match"})
        return {name: value for name, value in given.items() if value is not None}

    def as_given(self) -> dict[str, Any]:
        """As `UnitOfWorkMiddleware(rules=[...])` takes it."""
        return {"match": self.match, **self.options()}
