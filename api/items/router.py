"""Items over HTTP."""

from __future__ import annotations

from fastapi import Response

from api.answers import FIRST_ID, ID, TAG, leads_to, located, paged, tagged, tagged_or_304
from api.conditional import (
    CONDITIONAL,
    CONDITIONAL_EDIT,
    Conditional,
    ConditionalEdit,
    Representation,
)
from api.idempotency import KEYED, TAKES_KEY
from api.items import service
from api.items.errors import ItemInUse, ItemNotFound, ReceiptNotFound, SkuTaken, StockLimitExceeded
from api.items.models import Item, Receipt
from api.items.repository import ItemRepository
from api.items.schemas import (
    ItemAnswer,
    ItemChanges,
    ItemPage,
    NewItem,
    NewReceipt,
    ReceiptAnswer,
)
from api.paging import InvalidCursor, Page
from api.problems import documented
from api.routing import Router
from api.schemas import Cursor, Limit, PathId
from api.strict import UnsupportedMediaType

router = Router(prefix="/items", tags=["items"])
items = ItemRepository()

AFTER_CREATION = leads_to("get_item", "receive_stock", item_id=ID) | leads_to(
    "change_item", "delete_item", **{"path.item_id": ID, "header.If-Match": TAG}
)


def shown(item: Item) -> Representation:
    return Representation.of(ItemAnswer.model_validate(item))


@router.post(
    "/",
    status_code=201,
    response_model=ItemAnswer,
    responses=documented(SkuTaken, UnsupportedMediaType, *KEYED, body=True) | tagged(201, AFTER_CREATION),
    dependencies=TAKES_KEY,
    summary="Create an item",
)
async def create_item(new: NewItem) -> Response:
    item = await service.create_item(items, name=new.name, sku=new.sku, price=new.price, stock=new.stock)
    return shown(item).response(201, Location=f"/items/{item.id}")


@router.get(
    "/",
    response_model=ItemPage,
    responses=documented(InvalidCursor) | paged(leads_to("get_item", item_id=FIRST_ID)),
    summary="List the items",
)
async def list_items(response: Response, limit: Limit = 50, cursor: Cursor = None) -> Page[Item]:
    page = await service.list_items(items, limit=limit, cursor=cursor)
    response.headers.update(page.links("/items/", limit))
    return page


@router.get(
    "/{item_id}",
    response_model=ItemAnswer,
    responses=documented(ItemNotFound, *CONDITIONAL) | tagged_or_304(),
    summary="Show an item",
)
async def get_item(item_id: PathId, conditions: Conditional) -> Response:
    return conditions.show(shown(await items.get(item_id)))


@router.patch(
    "/{item_id}",
    response_model=ItemAnswer,
    responses=documented(ItemNotFound, SkuTaken, UnsupportedMediaType, *CONDITIONAL_EDIT, *KEYED, body=True)
    | tagged(200),
    dependencies=TAKES_KEY,
    summary="Change an item's name, SKU or price",
)
async def change_item(item_id: PathId, changes: ItemChanges, conditions: ConditionalEdit) -> Response:
    item = await service.change_item(items, item_id, changes, lambda item: conditions.check(shown(item)))
    return shown(item).response()


@router.delete(
    "/{item_id}",
    status_code=204,
    response_class=Response,
    responses=documented(ItemNotFound, ItemInUse, *CONDITIONAL_EDIT, *KEYED),
    dependencies=TAKES_KEY,
    summary="Delete an item that no order refers to",
)
async def delete_item(item_id: PathId, conditions: ConditionalEdit) -> None:
    await service.delete_item(items, item_id, lambda item: conditions.check(shown(item)))


@router.post(
    "/{item_id}/receipts",
    status_code=201,
    response_model=ReceiptAnswer,
    responses=documented(ItemNotFound, StockLimitExceeded, UnsupportedMediaType, *KEYED, body=True)
    | located(leads_to("get_receipt", item_id="$request.path.item_id", receipt_id=ID)),
    dependencies=TAKES_KEY,
    summary="Receive stock",
)
async def receive_stock(item_id: PathId, new: NewReceipt, response: Response) -> Receipt:
    receipt = await service.receive(items, item_id, new.quantity)
    response.headers["Location"] = f"/items/{item_id}/receipts/{receipt.id}"
    return receipt


@router.get(
    "/{item_id}/receipts/{receipt_id}",
    response_model=ReceiptAnswer,
    responses=documented(ReceiptNotFound),
    summary="Show a receipt",
)
async def get_receipt(item_id: PathId, receipt_id: PathId) -> Receipt:
    return await items.receipt(item_id, receipt_id)
