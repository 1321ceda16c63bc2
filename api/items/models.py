"""Items and receipts. What was received of an item is on hand or held by open orders, at any time.

    sum(receipts.quantity) = items.stock + sum(order_lines.quantity of open orders)

Stock therefore changes in three ways only: `receive`, `reserve` and `put_back`, on a locked row.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, String
from sqlalchemy.orm import Mapped, WriteOnlyMapped, mapped_column, relationship

from api.items.errors import StockLimitExceeded
from api.models import BIG, MAX_AMOUNT, Amount, Numbered, now

NAME_LENGTH = 200
SKU_LENGTH = 64


class Item(Numbered):
    """Something that is kept in stock and can be ordered."""

    __tablename__ = "items"
    __table_args__ = (
        CheckConstraint("price >= 0", name="price_not_negative"),
        CheckConstraint("stock >= 0", name="stock_not_negative"),
        # An id that was deleted is never given out again, as on every other engine.
        {"sqlite_autoincrement": True},
    )

    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    sku: Mapped[str | None] = mapped_column(String(SKU_LENGTH), unique=True)
    price: Mapped[Amount]
    stock: Mapped[Amount]
    created_at: Mapped[datetime]

    # Only ever added to: the receipts of an item are not loaded to change its stock.
    receipts: WriteOnlyMapped[Receipt] = relationship(passive_deletes=True)

    @classmethod
    def of(cls, *, name: str, sku: str | None, price: int, stock: int) -> Item:
        """A new item; the stock that it comes with counts as received."""
        item = cls(name=name, sku=sku, price=price, stock=0, created_at=now())
        if stock > 0:
            item.receive(stock)
        return item

    def receive(self, quantity: int) -> Receipt:
        """More of the item arrives, and a receipt says so."""
        self.put_back(quantity)
        receipt = Receipt(quantity=quantity, stock=self.stock, created_at=now())
        self.receipts.add(receipt)
        return receipt

    def reserve(self, quantity: int) -> None:
        """Some of the stock goes to an order; a table constraint refuses more than there is."""
        self.stock -= quantity

    def put_back(self, quantity: int) -> None:
        """The stock grows, up to `MAX_AMOUNT`."""
        if self.stock + quantity > MAX_AMOUNT:
            raise StockLimitExceeded(self.id, stock=self.stock, quantity=quantity)
        self.stock += quantity


class Receipt(Numbered):
    """So much of an item has arrived. Never changed; deleted only with its item."""

    __tablename__ = "receipts"
    __table_args__ = (
        CheckConstraint("quantity > 0", name="quantity_positive"),
        {"sqlite_autoincrement": True},
    )

    item_id: Mapped[int] = mapped_column(BIG, ForeignKey("items.id", ondelete="CASCADE"), index=True)
    quantity: Mapped[Amount]
    stock: Mapped[Amount] = mapped_column(comment="on hand with it")
    created_at: Mapped[datetime]
