"""Orders over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.items.errors import StockLimitExceeded, UnknownItems
from api.items.repository import ItemRepository
from api.orders import service
from api.orders.errors import OrderAlreadyCancelled, OrderNotFound, OutOfStock
from api.orders.models import Order
from api.orders.repository import OrderRepository
from api.orders.schemas import NewOrder, OrderAnswer, OrderPage
from api.paging import InvalidCursor, Page
from api.problems import documented
from api.schemas import Cursor, Limit, PathId

router = APIRouter(prefix="/orders", tags=["orders"])
items = ItemRepository()
orders = OrderRepository()


@router.post(
    "/",
    status_code=201,
    response_model=OrderAnswer,
    responses=documented(UnknownItems, OutOfStock),
    summary="Place an order: every line or none",
)
async def place_order(new: NewOrder, response: Response) -> Order:
    lines = [(line.item_id, line.quantity) for line in new.lines]
    order = await service.place_order(items, orders, lines)
    response.headers["Location"] = f"/orders/{order.id}"
    return order


@router.get("/", response_model=OrderPage, responses=documented(InvalidCursor), summary="List the orders")
async def list_orders(limit: Limit = 50, cursor: Cursor = None) -> Page[Order]:
    return await service.list_orders(orders, limit=limit, cursor=cursor)


@router.get(
    "/{order_id}",
    response_model=OrderAnswer,
    responses=documented(OrderNotFound),
    summary="Show an order",
)
async def get_order(order_id: PathId) -> Order:
    return await orders.get(order_id)


@router.post(
    "/{order_id}/cancel",
    response_model=OrderAnswer,
    responses=documented(OrderNotFound, OrderAlreadyCancelled, StockLimitExceeded),
    summary="Cancel an order and put its stock back",
)
async def cancel_order(order_id: PathId) -> Order:
    return await service.cancel_order(items, orders, order_id)
