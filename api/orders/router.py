"""Orders over HTTP."""

from __future__ import annotations

from fastapi import Response

from api.answers import FIRST_ID, ID, leads_to, paged, tagged, tagged_or_304
from api.conditional import CONDITIONAL, Conditional, Representation
from api.idempotency import KEYED, TAKES_KEY
from api.items.errors import StockLimitExceeded, UnknownItems
from api.items.repository import ItemRepository
from api.orders import service
from api.orders.errors import OrderAlreadyCancelled, OrderNotFound, OutOfStock
from api.orders.models import Order
from api.orders.repository import OrderRepository
from api.orders.schemas import NewOrder, OrderAnswer, OrderPage
from api.paging import InvalidCursor, Page
from api.problems import documented
from api.routing import Router
from api.schemas import Cursor, Limit, PathId
from api.strict import UnsupportedMediaType

router = Router(prefix="/orders", tags=["orders"])
items = ItemRepository()
orders = OrderRepository()


def shown(order: Order) -> Representation:
    return Representation.of(OrderAnswer.model_validate(order))


@router.post(
    "/",
    status_code=201,
    response_model=OrderAnswer,
    responses=documented(UnknownItems, OutOfStock, UnsupportedMediaType, *KEYED, body=True)
    | tagged(201, leads_to("get_order", "cancel_order", order_id=ID)),
    dependencies=TAKES_KEY,
    summary="Place an order: every line or none",
)
async def place_order(new: NewOrder) -> Response:
    lines = [(line.item_id, line.quantity) for line in new.lines]
    order = await service.place_order(items, orders, lines)
    return shown(order).response(201, Location=f"/orders/{order.id}")


@router.get(
    "/",
    response_model=OrderPage,
    responses=documented(InvalidCursor) | paged(leads_to("get_order", order_id=FIRST_ID)),
    summary="List the orders",
)
async def list_orders(response: Response, limit: Limit = 50, cursor: Cursor = None) -> Page[Order]:
    page = await service.list_orders(orders, limit=limit, cursor=cursor)
    response.headers.update(page.links("/orders/", limit))
    return page


@router.get(
    "/{order_id}",
    response_model=OrderAnswer,
    responses=documented(OrderNotFound, *CONDITIONAL) | tagged_or_304(),
    summary="Show an order",
)
async def get_order(order_id: PathId, conditions: Conditional) -> Response:
    return conditions.show(shown(await orders.get(order_id)))


@router.post(
    "/{order_id}/cancel",
    response_model=OrderAnswer,
    responses=documented(OrderNotFound, OrderAlreadyCancelled, StockLimitExceeded, *CONDITIONAL, *KEYED)
    | tagged(200),
    dependencies=TAKES_KEY,
    summary="Cancel an order and put its stock back",
)
async def cancel_order(order_id: PathId, conditions: Conditional) -> Response:
    """Its preconditions are about the order, which is also what the answer shows."""
    order = await service.cancel_order(items, orders, order_id, lambda order: conditions.check(shown(order)))
    return shown(order).response(Content_Location=f"/orders/{order_id}")
