"""What others are told of orders, once it is committed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from uow.outbox import event


class PlacedLine(BaseModel):
    """So much of one item, at the price of the moment."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    item_id: int
    quantity: int
    unit_price: int


@event("order.placed", subject="orders/{order_id}")
class OrderPlaced(BaseModel):
    """An order holds the stock of its lines."""

    model_config = ConfigDict(frozen=True)

    order_id: int
    lines: tuple[PlacedLine, ...]


@event("order.cancelled", subject="orders/{order_id}")
class OrderCancelled(BaseModel):
    """The stock of an order was put back."""

    model_config = ConfigDict(frozen=True)

    order_id: int
