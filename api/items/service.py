"""The use cases of items."""

from __future__ import annotations

from collections.abc import Callable

from api.items.events import ItemCreated, ItemReceived
from api.items.models import Item, Receipt
from api.items.repository import ItemRepository
from api.items.schemas import ItemChanges
from api.paging import Page, id_before
from uow.outbox import publish

CURSOR_KIND = "items"

# What a caller demands of an item before it is changed; it raises what it likes.
Check = Callable[[Item], None]


async def create_item(items: ItemRepository, *, name: str, sku: str | None, price: int, stock: int) -> Item:
    """A new item; the stock that it comes with counts as received."""
    item = Item.of(name=name, sku=sku, price=price, stock=stock)
    await items.save(item)
    publish(ItemCreated(item_id=item.id, name=name, sku=sku, price=price, stock=item.stock))
    return item


async def list_items(items: ItemRepository, *, limit: int, cursor: str | None) -> Page[Item]:
    rows = await items.after(id_before(CURSOR_KIND, cursor), limit + 1)
    return Page.of(CURSOR_KIND, rows, limit)


async def change_item(items: ItemRepository, item_id: int, changes: ItemChanges, check: Check) -> Item:
    """Change what is named and leave the rest. Stock is not changed here: it is received."""
    item = await items.get_for_update(item_id)
    check(item)
    for name, value in changes.items():
        setattr(item, name, value)
    await items.save(item)
    return item


async def delete_item(items: ItemRepository, item_id: int, check: Check) -> None:
    """Delete the item and its receipts, unless orders refer to it."""
    check(await items.get_for_update(item_id))
    await items.remove(item_id)


async def receive(items: ItemRepository, item_id: int, quantity: int) -> Receipt:
    """More of the item arrives."""
    item = await items.get_for_update(item_id)
    receipt = item.receive(quantity)
    await items.save(item)
    publish(ItemReceived(item_id=item.id, receipt_id=receipt.id, quantity=quantity, stock=receipt.stock))
    return receipt
