"""Items over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.items import service
from api.items.errors import ItemInUse, ItemNotFound, SkuTaken, StockLimitExceeded
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
from api.schemas import Cursor, Limit, PathId

router = APIRouter(prefix="/items", tags=["items"])
items = ItemRepository()


@router.post(
    "/",
    status_code=201,
    response_model=ItemAnswer,
    responses=documented(SkuTaken),
    summary="Create an item",
)
async def create_item(new: NewItem, response: Response) -> Item:
    item = await service.create_item(items, name=new.name, sku=new.sku, price=new.price, stock=new.stock)
    response.headers["Location"] = f"/items/{item.id}"
    return item


@router.get("/", response_model=ItemPage, responses=documented(InvalidCursor), summary="List the items")
async def list_items(limit: Limit = 50, cursor: Cursor = None) -> Page[Item]:
    return await service.list_items(items, limit=limit, cursor=cursor)


@router.get(
    "/{item_id}",
    response_model=ItemAnswer,
    responses=documented(ItemNotFound),
    summary="Show an item",
)
async def get_item(item_id: PathId) -> Item:
    return await items.get(item_id)


@router.patch(
    "/{item_id}",
    response_model=ItemAnswer,
    responses=documented(ItemNotFound, SkuTaken),
    summary="Change an item's name, SKU or price",
)
async def change_item(item_id: PathId, changes: ItemChanges) -> Item:
    return await service.change_item(items, item_id, changes)


@router.delete(
    "/{item_id}",
    status_code=204,
    response_class=Response,
    responses=documented(ItemNotFound, ItemInUse),
    summary="Delete an item that no order refers to",
)
async def delete_item(item_id: PathId) -> None:
    await items.remove(item_id)


@router.post(
    "/{item_id}/receipts",
    status_code=201,
    response_model=ReceiptAnswer,
    responses=documented(ItemNotFound, StockLimitExceeded),
    summary="Receive stock",
)
async def receive(item_id: PathId, new: NewReceipt) -> Receipt:
    return await service.receive(items, item_id, new.quantity)
