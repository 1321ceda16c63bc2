"""The side of `uow`: the same handlers, with the session of the request's unit."""

from fastapi import APIRouter, FastAPI
from sqlalchemy import select

from benchmarks.models import Item, ItemOut, Receipt
from uow import Database, UnitOfWorkMiddleware, current_session

router = APIRouter()


@router.get("/items/{item_id}")
async def get_item(item_id: int) -> ItemOut:
    item = await current_session().get(Item, item_id)
    return ItemOut.model_validate(item)


@router.get("/items/")
async def list_items() -> list[ItemOut]:
    items = await current_session().scalars(select(Item).order_by(Item.id).limit(50))
    return [ItemOut.model_validate(item) for item in items]


@router.post("/items/", status_code=201)
async def create_item(name: str) -> ItemOut:
    session = current_session()
    item = Item(name=name)
    session.add(item)
    await session.flush()
    return ItemOut.model_validate(item)


@router.post("/items/{item_id}/receipts", status_code=201)
async def receive(item_id: int, quantity: int) -> ItemOut:
    session = current_session()
    item = await session.get_one(Item, item_id, with_for_update=True)
    item.stock += quantity
    session.add(Receipt(item_id=item_id, quantity=quantity))
    return ItemOut.model_validate(item)


def app_with_uow(database: Database) -> FastAPI:
    app = FastAPI()
    app.add_middleware(UnitOfWorkMiddleware, database=database)
    app.include_router(router)
    return app
