"""Conditional requests (RFC 9110, section 13): a client tells which state of a resource it speaks of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel, WithJsonSchema

from api.answers import EXAMPLE_TAG
from api.problems import DomainError
from uow.problems import Problem

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_ONE_TAG = re.compile(_TAG)
# Empty elements are allowed in every list of HTTP (RFC 9110, section 5.6.1.2).
_TAGS = re.compile(rf"[ \t,]*(?:{_TAG}[ \t]*(?:,[ \t,]*|$))*")

# Each answer speaks for one client and for one moment; a cache has to ask whether it still holds.
_CACHING = {"Cache-Control": "private, no-cache"}


class InvalidPrecondition(DomainError):
    """`If-Match` and `If-None-Match` take `*`, or entity tags in double quotes, separated by commas."""

    problem = Problem("invalid-precondition", "A precondition is not a list of entity tags", 400)

    def __init__(self, field: str) -> None:
        message = 'Use * or tags as they came in ETag, with their double quotes: "a", "b".'
        super().__init__(
            f"{field} is malformed.", errors=[{"field": f"header.{field.lower()}", "message": message}]
        )


class PreconditionFailed(DomainError):
    """The resource is no longer (or not yet) in the state that the request speaks of; nothing was changed.

    Get it again, decide again, and send the request with the new `ETag`.
    """

    problem = Problem("precondition-failed", "The resource is in another state", 412)

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} does not hold for the resource as it is now.")


class PreconditionRequired(DomainError):
    """This service lets nobody change a resource without saying which state of it is meant.

    Send the `ETag` that came with the resource as `If-Match`; `If-Match: *` means any state.
    """

    problem = Problem("precondition-required", "The request has to say If-Match", 428)

    def __init__(self) -> None:
        super().__init__("Send If-Match with the ETag of the resource that you have seen.")


@dataclass(frozen=True, slots=True)
class Representation:
    """A resource as it goes out, byte by byte, and the strong entity tag of these bytes."""

    content: bytes
    etag: str

    @classmethod
    def of(cls, answer: BaseModel) -> Representation:
        # Of the bytes, not of a counter: a new release that shows one more field, or a database that
        # was restored to an older state, must never answer with a tag that stood for something else.
        content = answer.model_dump_json().encode()
        return cls(content, f'"{blake2b(content, digest_size=15).hexdigest()}"')

    def response(self, status: int = 200, **headers: str) -> Response:
        """The answer that shows it; `location` and the like are given with `_` for `-`."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return Response(
            self.content, status, {"ETag": self.etag, **_CACHING, **fields}, media_type="application/json"
        )


@dataclass(frozen=True, slots=True)
class Tags:
    """The value of `If-Match` or `If-None-Match`: any state (`*`), or one of some."""

    any: bool
    listed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, field: str, lines: Sequence[str]) -> Tags | None:
        """None where the header is not sent; several lines of it are one list."""
        if not lines:
            return None
        value = ", ".join(lines).strip(" \t")
        if value == "*":
            return cls(any=True)
        if not _TAGS.fullmatch(value):
            raise InvalidPrecondition(field)
        return cls(any=False, listed=frozenset(_ONE_TAG.findall(value)))

    def match_strongly(self, etag: str) -> bool:
        """Byte by byte the same: a weak tag never is, and ours are all strong."""
        return self.any or etag in self.listed

    def match_weakly(self, etag: str) -> bool:
        return self.any or etag in self.listed or f"W/{etag}" in self.listed


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a request demands of the state of its resource."""

    if_match: Tags | None
    if_none_match: Tags | None

    def check(self, now: Representation) -> None:
        """Before a change, on the locked row: raises `PreconditionFailed` where it must not happen."""
        self._check_match(now)
        if self.if_none_match is not None and self.if_none_match.match_weakly(now.etag):
            raise PreconditionFailed("If-None-Match")

    def show(self, now: Representation) -> Response:
        """The answer to a GET: what is there, or 304 to a client that has it already."""
        self._check_match(now)
        if self.if_none_match is not None and self.if_none_match.match_weakly(now.etag):
            return Response(status_code=304, headers={"ETag": now.etag, **_CACHING})
        return now.response()

    def _check_match(self, now: Representation) -> None:
        if self.if_match is not None and not self.if_match.match_strongly(now.etag):
            raise PreconditionFailed("If-Match")


# All lines of the header are read; together they are one string of the form that is documented.
_AS_ONE = WithJsonSchema({"type": "string", "pattern": rf"^(?:[ \t]*\*[ \t]*|{_TAGS.pattern})$"})

IfMatch = Annotated[
    list[str] | None,
    _AS_ONE,
    Header(
        alias="If-Match",
        description="The `ETag` that the resource must have; several, with commas between; or `*`.",
        examples=[EXAMPLE_TAG],
    ),
]
IfNoneMatch = Annotated[
    list[str] | None,
    _AS_ONE,
    Header(
        alias="If-None-Match",
        description="The `ETag` that the resource must not have; several, with commas between; or `*`.",
        examples=[EXAMPLE_TAG],
    ),
]


def conditions(if_match: IfMatch = None, if_none_match: IfNoneMatch = None) -> Conditions:
    return Conditions(Tags.of("If-Match", if_match or ()), Tags.of("If-None-Match", if_none_match or ()))


Conditional = Annotated[Conditions, Depends(conditions)]


def edit_conditions(request: Request, given: Conditional) -> Conditions:
    """The same for an edit, which a service can forbid without `If-Match`."""
    if given.if_match is None and request.app.state.require_if_match:
        raise PreconditionRequired
    return given


ConditionalEdit = Annotated[Conditions, Depends(edit_conditions)]

CONDITIONAL = (InvalidPrecondition, PreconditionFailed)
CONDITIONAL_EDIT = (*CONDITIONAL, PreconditionRequired)
