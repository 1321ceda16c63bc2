"""A shelf of items, with the repositories of advanced-alchemy on `uow`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from advanced_alchemy.base import BigIntBase
from advanced_alchemy.filters import OrderBy
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.orm import Mapped

from uow import Database, UnitOfWorkMiddleware, current_session

ROOM = 3  # so many items fit on the shelf


class Item(BigIntBase):
    __tablename__ = "items"

    name: Mapped[str]


class ItemOut(BaseModel):
    id: int
    name: str


class ItemRepository(SQLAlchemyAsyncRepository[Item]):
    model_type = Item


database = Database("sqlite:///items.db")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with database.new_unit() as unit:
        connection = await unit.session.connection()
        await connection.run_sync(BigIntBase.metadata.create_all)
    yield
    await database.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(UnitOfWorkMiddleware, database=database)


async def provide_items() -> ItemRepository:
    return ItemRepository(session=current_session())


Items = Annotated[ItemRepository, Depends(provide_items)]


@app.post("/items/", status_code=201, response_model=ItemOut)
async def create_item(name: str, items: Items) -> Item | JSONResponse:
    item = await items.add(Item(name=name))
    if await items.count() > ROOM:
        return JSONResponse({"detail": "the shelf is full"}, 409)
    return item


@app.get("/items/", response_model=list[ItemOut])
async def list_items(items: Items) -> Sequence[Item]:
    return await items.list(OrderBy("id"))
