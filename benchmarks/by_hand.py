"""The hand-written side: a session for each request through `Depends`, committed by the handlers."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from benchmarks.models import Item, ItemOut, Receipt

router = APIRouter()


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]


@router.get("/items/{item_id}")
async def get_item(item_id: int, session: Session) -> ItemOut:
    item = await session.get(Item, item_id)
    return ItemOut.model_validate(item)


@router.get("/items/")
async def list_items(session: Session) -> list[ItemOut]:
    items = await session.scalars(select(Item).order_by(Item.id).limit(50))
    return [ItemOut.model_validate(item) for item in items]


@router.post("/items/", status_code=201)
async def create_item(name: str, session: Session) -> ItemOut:
    item = Item(name=name)
    session.add(item)
    await session.commit()
    return ItemOut.model_validate(item)


@router.post("/items/{item_id}/receipts", status_code=201)
async def receive(item_id: int, quantity: int, session: Session) -> ItemOut:
    item = await session.get_one(Item, item_id, with_for_update=True)
    item.stock += quantity
    session.add(Receipt(item_id=item_id, quantity=quantity))
    await session.commit()
    return ItemOut.model_validate(item)


def app_by_hand(engine: AsyncEngine) -> FastAPI:
    app = FastAPI()
    app.state.session = async_sessionmaker(engine, expire_on_commit=False)
    app.include_router(router)
    return app
