"""Items as clients send and see them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, with_config
from typing_extensions import TypedDict

from api.items.models import NAME_LENGTH, SKU_LENGTH
from api.models import MAX_AMOUNT
from api.schemas import STRICT, Answer, Body, Cents, CreatedAt, NextCursor, Quantity

# No control characters, which PostgreSQL refuses in part, and not only blanks.
_NAME = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"

Name = Annotated[str, Field(max_length=NAME_LENGTH, pattern=_NAME, examples=["Blue mug"])]
Sku = Annotated[
    str,
    Field(
        max_length=SKU_LENGTH,
        pattern=r"^[!-~]+$",
        description="The article number: printable ASCII without blanks; no two items share one.",
        examples=["MUG-BLUE"],
    ),
]
Stock = Annotated[int, Field(ge=0, le=MAX_AMOUNT, description="On hand.", examples=[10])]


class NewItem(Body):
    """An item to be."""

    name: Name
    sku: Sku | None = None
    price: Cents
    stock: Stock = 0


@with_config(STRICT)
class ItemChanges(TypedDict, total=False):
    """What to change; what is left out stays. An `sku` of null takes the SKU away."""

    name: Name
    sku: Sku | None
    price: Cents


class NewReceipt(Body):
    """So much has arrived."""

    quantity: Quantity


class ItemAnswer(Answer):
    """An item."""

    id: int = Field(examples=[1])
    name: Name
    sku: Sku | None
    price: Cents
    stock: Stock
    created_at: CreatedAt


class ItemPage(Answer):
    """A page of items in the order of their ids."""

    items: list[ItemAnswer]
    next_cursor: NextCursor


class ReceiptAnswer(Answer):
    """What has arrived, and the stock with it."""

    id: int = Field(examples=[1])
    item_id: int = Field(examples=[1])
    quantity: Quantity
    stock: Stock
    created_at: CreatedAt
