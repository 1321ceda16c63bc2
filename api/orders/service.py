"""The use cases of orders.

Rows are locked in one order everywhere: first the order, if there is one, then its items by id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from api.items.repository import ItemRepository
from api.orders.errors import OutOfStock, Shortage
from api.orders.events import OrderCancelled, OrderPlaced, PlacedLine
from api.orders.models import Order
from api.orders.repository import OrderRepository
from api.paging import Page, id_before
from uow.outbox import publish

CURSOR_KIND = "orders"

# What a caller demands of an order before it is changed; it raises what it likes.
Check = Callable[[Order], None]


async def place_order(
    items: ItemRepository, orders: OrderRepository, lines: Iterable[tuple[int, int]]
) -> Order:
    """Reserve the stock of every line, or of none. A line is an item's id and a quantity."""
    wanted = Counter[int]()
    for item_id, quantity in lines:
        wanted[item_id] += quantity
    locked = await items.lock(wanted)
    short = [
        Shortage(item.id, requested=wanted[item.id], available=item.stock)
        for item in locked
        if wanted[item.id] > item.stock
    ]
    if short:
        raise OutOfStock(short)
    for item in locked:
        item.reserve(wanted[item.id])
    order = Order.of(locked, wanted)
    await orders.save(order)
    lines_of = tuple(PlacedLine.model_validate(line) for line in order.lines)
    publish(OrderPlaced(order_id=order.id, lines=lines_of))
    return order


async def list_orders(orders: OrderRepository, *, limit: int, cursor: str | None) -> Page[Order]:
    rows = await orders.after(id_before(CURSOR_KIND, cursor), limit + 1)
    return Page.of(CURSOR_KIND, rows, limit)


async def cancel_order(items: ItemRepository, orders: OrderRepository, order_id: int, check: Check) -> Order:
    """Cancel the order and put the stock of all its lines back."""
    order = await orders.get_for_update(order_id)
    check(order)
    order.cancel()
    held = {line.item_id: line.quantity for line in order.lines}
    for item in await items.lock(held):
        item.put_back(held[item.id])
    await orders.save(order)
    publish(OrderCancelled(order_id=order.id))
    return order
