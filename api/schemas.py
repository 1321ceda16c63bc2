"""What all request bodies and answers share: input is strict, amounts and ids are bounded."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from api.models import MAX_AMOUNT, MAX_ID

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


def _in_digits(text: object) -> object:
    """Text that is only digits: `int()` would also read "1_0", "1.0" and "+1" as numbers."""
    if isinstance(text, str) and not (text.isascii() and text.isdigit()):
        raise PydanticCustomError("digits", "Input should be a number in digits")
    return text


Id = Annotated[int, Field(ge=1, le=MAX_ID, examples=[1])]
# Bounds stand before the validator: behind it they would hold, but not be documented.
PathId = Annotated[int, Field(ge=1, le=MAX_ID), BeforeValidator(_in_digits), Path(examples=[1])]
Quantity = Annotated[int, Field(ge=1, le=MAX_AMOUNT, examples=[3])]
Cents = Annotated[int, Field(ge=0, le=MAX_AMOUNT, description="In cents.", examples=[1250])]

CreatedAt = Annotated[datetime, Field(description="In UTC.", examples=["2026-01-01T12:00:00.000001Z"])]

NextCursor = Annotated[
    str | None,
    Field(description="The `cursor` of the next page; null on the last.", examples=["aXRlbXM6MjU"]),
]
Limit = Annotated[
    int,
    Field(ge=1, le=100),
    BeforeValidator(_in_digits),
    Query(description="How many, at most.", examples=[25]),
]
Cursor = Annotated[
    str | None,
    Query(
        max_length=100,
        description="`next_cursor` of the page before; none for the first.",
        examples=["aXRlbXM6MjU"],
    ),
]


class Body(BaseModel):
    """A request body: unknown fields and values of another type are refused."""

    model_config = STRICT


class Answer(BaseModel):
    """An answer, read from the attributes of a mapped object."""

    model_config = ConfigDict(from_attributes=True, frozen=True)
