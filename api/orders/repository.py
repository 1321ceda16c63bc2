"""Every query of the orders. The session is the one of the unit that is running."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import selectinload

from api.orders.errors import OrderNotFound
from api.orders.models import Order
from uow import current_session

_WITH_LINES = selectinload(Order.lines)


class OrderRepository:
    """The orders, each with its lines, as a collection."""

    async def get(self, order_id: int) -> Order:
        order = await current_session().get(Order, order_id, options=[_WITH_LINES])
        if order is None:
            raise OrderNotFound(order_id)
        return order

    async def get_for_update(self, order_id: int) -> Order:
        """The order as it is now; nobody else changes it before this unit is settled."""
        order = await current_session().get(
            Order, order_id, options=[_WITH_LINES], with_for_update=True, populate_existing=True
        )
        if order is None:
            raise OrderNotFound(order_id)
        return order

    async def after(self, last_id: int, limit: int) -> Sequence[Order]:
        """The next orders in the order of their ids."""
        statement = (
            select(Order).where(Order.id > last_id).order_by(Order.id).limit(limit).options(_WITH_LINES)
        )
        return (await current_session().scalars(statement)).all()

    async def save(self, order: Order) -> None:
        """Send a new or changed order to the database."""
        session = current_session()
        session.add(order)
        await session.flush()
