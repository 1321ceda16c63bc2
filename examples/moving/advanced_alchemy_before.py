"""A shelf of items, with advanced-alchemy."""

from collections.abc import Sequence
from typing import Annotated

from advanced_alchemy.base import BigIntBase
from advanced_alchemy.extensions.fastapi import AdvancedAlchemy, AsyncSessionConfig, SQLAlchemyAsyncConfig
from advanced_alchemy.filters import OrderBy
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped

ROOM = 3  # so many items fit on the shelf


class Item(BigIntBase):
    __tablename__ = "items"

    name: Mapped[str]


class ItemOut(BaseModel):
    id: int
    name: str


class ItemRepository(SQLAlchemyAsyncRepository[Item]):
    model_type = Item


config = SQLAlchemyAsyncConfig(
    connection_string="sqlite+aiosqlite:///items.db",
    session_config=AsyncSessionConfig(expire_on_commit=False),
    create_all=True,
    commit_mode="autocommit",
)

app = FastAPI()
alchemy = AdvancedAlchemy(config=config, app=app)

Db = Annotated[AsyncSession, Depends(alchemy.provide_session())]


async def provide_items(db: Db) -> ItemRepository:
    return ItemRepository(session=db)


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
