"""The same service on `uow`; only who gives the session, and who commits, has changed.

Run it with `uvicorn examples.moving.depends_after:app`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from uow import Database, UnitOfWorkMiddleware, current_session


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class ItemOut(BaseModel):
    id: int
    name: str


database = Database("sqlite:///items.db")


async def get_db() -> AsyncSession:
    return current_session()


Db = Annotated[AsyncSession, Depends(get_db)]


class ItemRepository:
    def __init__(self, db: Db) -> None:
        self.db = db

    async def add(self, item: Item) -> None:
        self.db.add(item)
        await self.db.flush()

    async def all(self) -> Sequence[Item]:
        result = await self.db.scalars(select(Item).order_by(Item.id))
        return result.all()


Items = Annotated[ItemRepository, Depends()]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with database.new_unit() as unit:
        connection = await unit.session.connection()
        await connection.run_sync(Base.metadata.create_all)
    yield
    await database.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(UnitOfWorkMiddleware, database=database)


@app.post("/items/", response_model=ItemOut)
async def create_item(name: str, items: Items) -> Item:
    item = Item(name=name)
    await items.add(item)
    return item


@app.get("/items/", response_model=list[ItemOut])
async def list_items(items: Items) -> Sequence[Item]:
    return await items.all()
