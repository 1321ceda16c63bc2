"""Orders as clients send and see them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from api.orders.models import Status
from api.schemas import Answer, Body, Cents, CreatedAt, Id, NextCursor, Quantity


class NewLine(Body):
    """So much of one item."""

    item_id: Id
    quantity: Quantity


class NewOrder(Body):
    """An order to be."""

    lines: Annotated[
        list[NewLine],
        Field(
            min_length=1,
            max_length=100,
            description="Several lines of one item add up.",
            examples=[[{"item_id": 1, "quantity": 2}]],
        ),
    ]


class LineAnswer(Answer):
    """So much of one item, at the price that it had when it was ordered."""

    item_id: int = Field(examples=[1])
    quantity: Quantity
    unit_price: Cents


class OrderAnswer(Answer):
    """An order; while it is open it holds the stock of its lines."""

    id: int = Field(examples=[1])
    status: Status = Field(examples=["open"])
    lines: list[LineAnswer] = Field(description="One for each item, by item id.")
    created_at: CreatedAt


class OrderPage(Answer):
    """A page of orders in the order of their ids."""

    items: list[OrderAnswer]
    next_cursor: NextCursor
