"""What others are told of items, once it is committed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from uow.outbox import event


@event("item.created", subject="items/{item_id}")
class ItemCreated(BaseModel):
    """There is a new item."""

    model_config = ConfigDict(frozen=True)

    item_id: int
    name: str
    sku: str | None
    price: int
    stock: int


@event("item.received", subject="items/{item_id}")
class ItemReceived(BaseModel):
    """So much of an item has arrived; `stock` is what is on hand with it."""

    model_config = ConfigDict(frozen=True)

    item_id: int
    receipt_id: int
    quantity: int
    stock: int
