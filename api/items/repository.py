"""Every query of the items. The session is the one of the unit that is running."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from api.items.errors import ItemInUse, ItemNotFound, ReceiptNotFound, SkuTaken, UnknownItems
from api.items.models import Item, Receipt
from uow import current_session


class ItemRepository:
    """The items of the inventory, as a collection."""

    async def get(self, item_id: int) -> Item:
        item = await current_session().get(Item, item_id)
        if item is None:
            raise ItemNotFound(item_id)
        return item

    async def get_for_update(self, item_id: int) -> Item:
        """The item as it is now; nobody else changes it before this unit is settled."""
        item = await current_session().get(Item, item_id, with_for_update=True, populate_existing=True)
        if item is None:
            raise ItemNotFound(item_id)
        return item

    async def lock(self, item_ids: Collection[int]) -> Sequence[Item]:
        """These items as they are now, locked and sorted by id.

        Whoever locks several items locks them here: two units that took them in different orders
        could wait for each other for ever.
        """
        statement = (
            select(Item)
            .where(Item.id.in_(item_ids))
            .order_by(Item.id)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
        found = (await current_session().scalars(statement)).all()
        if missing := set(item_ids) - {item.id for item in found}:
            raise UnknownItems(sorted(missing))
        return found

    async def after(self, last_id: int, limit: int) -> Sequence[Item]:
        """The next items in the order of their ids."""
        statement = select(Item).where(Item.id > last_id).order_by(Item.id).limit(limit)
        return (await current_session().scalars(statement)).all()

    async def receipt(self, item_id: int, receipt_id: int) -> Receipt:
        """One receipt of the item."""
        statement = select(Receipt).where(Receipt.id == receipt_id, Receipt.item_id == item_id)
        receipt = await current_session().scalar(statement)
        if receipt is None:
            raise ReceiptNotFound(item_id, receipt_id)
        return receipt

    async def save(self, item: Item) -> None:
        """Send a new or changed item to the database, which may find its SKU taken."""
        session = current_session()
        sku = item.sku
        session.add(item)
        try:
            await session.flush()
        except IntegrityError as refused:
            if _is_about_sku(refused):
                raise SkuTaken(sku) from refused
            raise

    async def remove(self, item_id: int) -> None:
        """Delete the item and its receipts; the database refuses where orders refer to it."""
        statement = delete(Item).where(Item.id == item_id).returning(Item.id)
        try:
            removed = await current_session().scalar(statement)
        except IntegrityError as refused:
            raise ItemInUse(item_id) from refused
        if removed is None:
            raise ItemNotFound(item_id)


def _is_about_sku(refused: IntegrityError) -> bool:
    """PostgreSQL names the constraint, SQLite the column."""
    message = str(refused.orig)
    return "uq_items_sku" in message or "items.sku" in message
