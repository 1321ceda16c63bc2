"""Orders and their lines: those of an open order hold stock, those of a cancelled one hold none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal

from sqlalchemy import CheckConstraint, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from api.items.models import Item
from api.models import BIG, Amount, Base, Numbered, now
from api.orders.errors import OrderAlreadyCancelled

Status = Literal["open", "cancelled"]


class Order(Numbered):
    """So much of some items, at the prices of the moment."""

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint("status IN ('open', 'cancelled')", name="status_known"),
        {"sqlite_autoincrement": True},
    )

    status: Mapped[Status] = mapped_column(String(16))
    created_at: Mapped[datetime]

    # Loading lazily needs a session that waits, and there is none of that kind here: a query that
    # forgot the lines fails at once, on every engine, and not first under async.
    lines: Mapped[list[OrderLine]] = relationship(
        lazy="raise", order_by="OrderLine.item_id", passive_deletes=True
    )

    @classmethod
    def of(cls, items: Iterable[Item], quantities: Mapping[int, int]) -> Order:
        """An open order of these items; `quantities` are by item id."""
        lines = [
            OrderLine(item_id=item.id, quantity=quantities[item.id], unit_price=item.price) for item in items
        ]
        return cls(status="open", created_at=now(), lines=lines)

    def cancel(self) -> None:
        """From now on the order holds nothing. Once only."""
        if self.status == "cancelled":
            raise OrderAlreadyCancelled(self.id)
        self.status = "cancelled"


class OrderLine(Base):
    """One item of an order; an order has one line for an item, however often it was named."""

    __tablename__ = "order_lines"
    __table_args__ = (
        CheckConstraint("quantity > 0", name="quantity_positive"),
        CheckConstraint("unit_price >= 0", name="unit_price_not_negative"),
    )

    order_id: Mapped[int] = mapped_column(BIG, ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True)
    # No action on deletion: an item stays as long as an order refers to it.
    item_id: Mapped[int] = mapped_column(BIG, ForeignKey("items.id"), primary_key=True, index=True)
    quantity: Mapped[Amount]
    unit_price: Mapped[Amount]
